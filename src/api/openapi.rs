//! The API document (`GET /openapi.json`), made from the same table as the router: a route without an entry does not
//! compile, and a test calls every operation the document names.

mod operation;
mod operators;
mod schema;

use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::Value;
use utoipa::openapi::path::{HttpMethod, Operation, Paths};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Info, OpenApi};

use self::operation::{Kind, describe};
use super::Method;
use super::dialect::Dialect;

const SECURITY: &str = "api_key";
/// Why reads of the log may fail where others do not.
const TRIMMED: &str =
    "Service Unavailable; `archive_unavailable` when what was trimmed cannot be read from the archive";
/// How much one page may be asked to hold.
const PAGE: Kind = Kind::Within(1, 1_000);

/// The document as JSON.
pub(crate) fn document_json() -> Bytes {
    static JSON: OnceLock<Bytes> = OnceLock::new();
    let render = || {
        let mut json = serde_json::to_value(document()).unwrap_or_default();
        widen(&mut json);
        Bytes::from(json.to_string())
    };
    JSON.get_or_init(render).clone()
}

/// Gives the counts of a document their whole range: the format that stands for them ends at half of it.
fn widen(json: &mut Value) {
    match json {
        Value::Object(members) => {
            if members.get("format").is_some_and(|format| format == "int64")
                && members.contains_key("minimum")
            {
                members.remove("format");
                members.entry("maximum").or_insert(u64::MAX.into());
            }
            members.values_mut().for_each(widen);
        }
        Value::Array(items) => items.iter_mut().for_each(widen),
        _ => {}
    }
}

fn document() -> OpenApi {
    let mut paths = Paths::new();
    for (_, route) in super::routes() {
        let method = match route.method {
            Method::Get => HttpMethod::Get,
            Method::Put => HttpMethod::Put,
            Method::Post => HttpMethod::Post,
            Method::Patch => HttpMethod::Patch,
            Method::Delete => HttpMethod::Delete,
        };
        paths.add_path_operation(route.path, vec![method], route.document);
    }
    let mut components = schema::components();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme(SECURITY, SecurityScheme::Http(bearer));
    let mut document = OpenApi::new(Info::new("Fastpaca", env!("CARGO_PKG_VERSION")), paths);
    document.info.description =
        Some("A replicated conversation log: append, window, compact, replay, stream.".into());
    document.components = Some(components);
    document
}

/// The entries of one dialect's routes.
#[derive(Clone, Copy)]
pub(crate) struct Describe(pub Dialect);

impl Describe {
    /// A name of the dialect's own for an operation.
    fn name(self, verb: &str) -> String {
        format!("{verb}_{}", self.0.resource())
    }

    /// One of the two, by dialect.
    fn pick(self, primary: &'static str, other: &'static str) -> &'static str {
        match self.0 {
            Dialect::Conversations => primary,
            Dialect::Contexts => other,
        }
    }

    pub(crate) fn list(self) -> Operation {
        let plural = self.0.resources();
        describe(&format!("list_{plural}"), &format!("List {plural} in id order"))
            .query("prefix", Kind::Text, "Only ids that begin with this.")
            .query("status", Kind::OneOf(&["active", "tombstoned"]), "Only these.")
            .query(
                "metadata.KEY",
                Kind::Text,
                "Only those whose metadata has this value under KEY; repeatable.",
            )
            .query("limit", PAGE, "100 by default.")
            .query("cursor", Kind::Text, "The `next_cursor` of the page before.")
            .consistency()
            .answers(
                200,
                "A page; empty pages may have a `next_cursor`.",
                self.pick("ConversationList", "ContextList"),
            )
            .fails(&[400])
    }

    pub(crate) fn put(self) -> Operation {
        describe(&self.name("put"), &format!("Create or update a {}", self.0.resource()))
            .id()
            .takes("Settings", false)
            .answers(200, "Updated, or unchanged.", "Conversation")
            .answers(201, "Created.", "Conversation")
            .fails(&[400, 409, 413, 415])
    }

    pub(crate) fn get(self) -> Operation {
        describe(&self.name("get"), &format!("Describe a {}", self.0.resource()))
            .id()
            .freshness()
            .conditional()
            .answers(200, "Settings and state.", "Conversation")
            .fails(&[400, 404])
    }

    pub(crate) fn delete(self) -> Operation {
        describe(&self.name("delete"), "Tombstone: reads go on, writes are refused")
            .id()
            .empty(204, "Tombstoned, now or before.")
            .fails(&[400, 404])
    }

    pub(crate) fn patch_metadata(self) -> Operation {
        describe(&self.name("patch_metadata_of"), "Merge top-level keys into the metadata; null removes one")
            .id()
            .takes_any_object()
            .answers(200, "The result.", "Conversation")
            .fails(&[400, 404, 409, 413, 415])
    }

    pub(crate) fn append(self) -> Operation {
        describe(
            &format!("append_{}", self.0.events()),
            &format!("Append one {0} or a batch", self.0.event()),
        )
        .id()
        .takes(self.pick("AppendEvents", "AppendMessages"), true)
        .answers_one_of(201, "Appended.", ["Appended", "BatchAppended"])
        .answers_one_of(200, "Appended by an earlier request with this key.", ["Appended", "BatchAppended"])
        .fails(&[400, 404, 409, 413, 415])
    }

    pub(crate) fn events(self) -> Operation {
        describe(&format!("read_{}", self.0.events()), "Read the log by range or cursor; long poll; export")
            .id()
            .query(
                "from_seq",
                Kind::Integer,
                "Inclusive; negative counts from the end: -100 is the last 100.",
            )
            .query("to_seq", Kind::Number, "Inclusive.")
            .query(
                "cursor",
                Kind::Number,
                "Only after this seq (before it when descending). With `order=asc` it excludes `from_seq`.",
            )
            .query("order", Kind::OneOf(&["asc", "desc"]), "`asc` by default.")
            .query("limit", PAGE, "100 by default.")
            .query(
                "wait",
                Kind::Within(0, 60),
                "Seconds to hold back an empty answer; needs `cursor` and `order=asc`.",
            )
            .freshness()
            .conditional()
            .answers(200, "A page.", self.pick("EventPage", "MessagePage"))
            .streams(200, super::export::NDJSON, "The whole range, one a line.")
            .answers(503, TRIMMED, "Error")
            .fails(&[400, 404, 406])
    }

    pub(crate) fn tail(self) -> Operation {
        describe(&format!("tail_{}", self.0.events()), "Page from the newest backwards, each page in order")
            .id()
            .query("offset", Kind::Number, "How many of the newest to skip; 0 by default.")
            .query("limit", PAGE, "100 by default.")
            .freshness()
            .conditional()
            .answers(200, "A page; past the beginning an empty one.", self.pick("EventTail", "MessageTail"))
            .answers(503, TRIMMED, "Error")
            .fails(&[400, 404])
    }

    pub(crate) fn window(self) -> Operation {
        describe(&format!("read_{}_to_send", self.0.window()), "What to send to the model")
            .id()
            .query("budget_tokens", Kind::Number, "Instead of the token budget, in either direction.")
            .query("at_version", Kind::Number, "As of this version.")
            .query("if_version", Kind::Number, "409 unless this is the current version.")
            .query("explain", Kind::Flag, "Adds what was left out, and why.")
            .freshness()
            .conditional()
            .answers(200, "The messages, within the budget.", "Window")
            .answers(503, TRIMMED, "Error")
            .fails(&[400, 404, 409, 413])
    }

    pub(crate) fn compact(self) -> Operation {
        describe(&self.name("compact"), "Replace a range of the window by a summary")
            .id()
            .takes("Compact", true)
            .answers(200, "Compacted.", "Compacted")
            .fails(&[400, 404, 409, 413, 415])
    }

    pub(crate) fn stream(self) -> Operation {
        describe(&self.name("stream"), "Replay and follow, by websocket or server-sent events")
            .id()
            .query(
                "cursor",
                Kind::Number,
                "The last version processed; 0 from the beginning; omitted from now.",
            )
            .query(
                self.0.include_flag(),
                Kind::Flag,
                "false leaves the log's own frames out; true by default.",
            )
            .header("Last-Event-ID", "As `cursor`, for server-sent events; comes before it.")
            .empty(101, "Websocket frames follow.")
            .streams(200, "text/event-stream", "Frames as `data`, versions as `id`.")
            .empty(204, "Server-sent events: deleted, and the client had everything.")
            .fails(&[400, 404, 406, 503])
    }
}

/// The entries of routes that belong to no dialect.
pub(crate) mod node {
    use utoipa::openapi::path::Operation;

    use super::operation::{Kind, describe};

    pub(crate) fn live() -> Operation {
        describe("live", "Whether the process serves").open().answers(200, "It does.", "Health").done()
    }

    pub(crate) fn ready() -> Operation {
        describe("ready", "Whether this node should get traffic")
            .open()
            .answers(200, "It should.", "Health")
            .answers(503, "It should not; the reason says why.", "Health")
            .done()
    }

    pub(crate) fn metrics() -> Operation {
        describe("metrics", "Prometheus metrics; public unless configured otherwise")
            .open()
            .streams(200, "text/plain", "Text exposition format 0.0.4.")
            .done()
    }

    pub(crate) fn document() -> Operation {
        describe("openapi", "This document").any_json(200, "OpenAPI.").fails(&[])
    }

    pub(crate) fn cluster() -> Operation {
        describe("cluster", "Nodes, groups and leaders")
            .answers(200, "The cluster as seen here.", "Cluster")
            .fails(&[])
    }

    pub(crate) fn drain() -> Operation {
        describe(
            "drain",
            "Move a node's replicas to the others; it turns unready and serves on by forwarding",
        )
        .query("name", Kind::Text, "The name of the node; the one that is asked by default.")
        .takes("NodeName", false)
        .answers(200, "Draining. A node that is alone has stopped taking writes.", "Cluster")
        .fails(&[400, 404, 409, 413, 415])
    }

    pub(crate) fn undrain() -> Operation {
        describe("undrain", "Let a node hold replicas, and a node that is alone take writes, again")
            .query("name", Kind::Text, "The name of the node; the one that is asked by default.")
            .takes("NodeName", false)
            .answers(200, "Not draining.", "Cluster")
            .fails(&[400, 404, 409, 413, 415])
    }

    pub(crate) fn remove_node() -> Operation {
        describe("remove_node", "Remove a node from the cluster for good: one that was drained, or is gone")
            .name()
            .empty(204, "Removed.")
            .fails(&[400, 404, 409])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn json() -> Value {
        serde_json::from_slice(&document_json()).expect("JSON")
    }

    /// Every `$ref` names a component that exists, and every component is referred to.
    #[test]
    fn references_hold_together() {
        fn collect(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(members) => {
                    members.iter().for_each(|(key, value)| match (key.as_str(), value) {
                        ("$ref", Value::String(target)) => {
                            let name = target.strip_prefix("#/components/schemas/").expect("a schema");
                            found.insert(name.to_owned());
                        }
                        _ => collect(value, found),
                    })
                }
                Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
                _ => {}
            }
        }
        let json = json();
        let mut referred = BTreeSet::new();
        collect(&json, &mut referred);
        let defined: BTreeSet<String> =
            json["components"]["schemas"].as_object().expect("schemas").keys().cloned().collect();
        assert_eq!(referred, defined);
    }

    #[test]
    fn every_route_is_in_the_document_and_operation_ids_are_unique() {
        let json = json();
        let mut documented = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (path, item) in json["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                documented.insert(format!("{} {path}", method.to_uppercase()));
                assert!(
                    ids.insert(operation["operationId"].as_str().expect("an id").to_owned()),
                    "{operation}"
                );
            }
        }
        let registered: BTreeSet<String> = crate::api::routes()
            .map(|(_, route)| format!("{:?} {}", route.method, route.path).to_uppercase().to_owned())
            .map(|line| line.to_lowercase())
            .collect();
        let documented: BTreeSet<String> = documented.iter().map(|line| line.to_lowercase()).collect();
        assert_eq!(documented, registered);
        assert_eq!(registered.len(), 8 + 2 * 11);
    }

    /// A dialect's entries use its own words alone.
    #[test]
    fn dialects_do_not_mix() {
        let json = json();
        for (path, item) in json["paths"].as_object().expect("paths") {
            let of_protocols = ["text/event-stream", "last-event-id", "server-sent event"];
            let text = item.to_string().to_lowercase();
            let text = of_protocols.iter().fold(text, |text, of_protocol| text.replace(of_protocol, ""));
            let foreign: &[&str] = match path {
                path if path.starts_with("/v1/contexts") => &["conversations/", "event", "a window"],
                path if path.starts_with("/v1/conversations") => &["contexts/", "_messages", "_context"],
                _ => &[],
            };
            for word in foreign {
                assert!(!text.contains(word), "{path} says {word:?}: {text}");
            }
        }
    }
}
