//! A short way to write an operation of the API document.

use serde_json::{Value, json};
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Ref, RefOr, Required};

use super::SECURITY;

const JSON: &str = "application/json";

/// The type of a parameter.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// The id of a conversation, decoded.
    Id,
    /// A whole number, not negative.
    Number,
    /// A whole number from the first to the second.
    Within(u64, u64),
    Integer,
    Flag,
}

/// An operation in the making.
pub(super) struct Entry {
    builder: OperationBuilder,
    responses: Vec<(u16, Response)>,
    needs_key: bool,
}

pub(super) fn describe(id: &str, summary: &str) -> Entry {
    let builder = OperationBuilder::new().operation_id(Some(id)).summary(Some(summary));
    Entry { builder, responses: Vec::new(), needs_key: true }
}

impl Entry {
    /// Needs no key.
    pub(super) fn open(mut self) -> Entry {
        self.needs_key = false;
        self
    }

    pub(super) fn id(self) -> Entry {
        let text = "1 to 256 bytes of letters, digits, `.` `_` `:` `~` `@` `-` and percent-encoded UTF-8.";
        self.parameter("id", ParameterIn::Path, Kind::Id, text)
    }

    pub(super) fn name(self) -> Entry {
        self.parameter("name", ParameterIn::Path, Kind::Text, "The name of the node.")
    }

    pub(super) fn query(self, name: &str, kind: Kind, text: &str) -> Entry {
        self.parameter(name, ParameterIn::Query, kind, text)
    }

    pub(super) fn header(self, name: &str, text: &str) -> Entry {
        self.parameter(name, ParameterIn::Header, Kind::Text, text)
    }

    fn parameter(mut self, name: &str, place: ParameterIn, kind: Kind, text: &str) -> Entry {
        let required = if place == ParameterIn::Path { Required::True } else { Required::False };
        let parameter: Parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(place)
            .required(required)
            .description(Some(text))
            .schema(Some(scalar(kind)))
            .build();
        self.builder = self.builder.parameter(parameter);
        self
    }

    pub(super) fn consistency(self) -> Entry {
        let kind = Kind::OneOf(&["linearizable", "local"]);
        self.query("consistency", kind, "`linearizable` by default.")
    }

    /// `consistency` and `min_version`.
    pub(super) fn freshness(self) -> Entry {
        self.consistency().query(
            "min_version",
            Kind::Number,
            "Wait (bounded) until this node has applied this version.",
        )
    }

    /// `If-None-Match` and what it is answered with.
    pub(super) fn conditional(self) -> Entry {
        self.header("If-None-Match", "An `ETag` of an earlier answer.")
            .empty(304, "The client has this answer.")
    }

    pub(super) fn takes(mut self, schema: &str, required: bool) -> Entry {
        let required = if required { Required::True } else { Required::False };
        let body =
            RequestBodyBuilder::new().content(JSON, reference(schema)).required(Some(required)).build();
        self.builder = self.builder.request_body(Some(body));
        self
    }

    pub(super) fn takes_any_object(mut self) -> Entry {
        let body = RequestBodyBuilder::new().content(JSON, Content::new(Some(any_object())));
        self.builder = self.builder.request_body(Some(body.required(Some(Required::True)).build()));
        self
    }

    pub(super) fn answers(self, status: u16, text: &str, schema: &str) -> Entry {
        self.response(status, text, Some((JSON, reference(schema))))
    }

    pub(super) fn answers_one_of(self, status: u16, text: &str, schemas: [&str; 2]) -> Entry {
        let one_of = schemas
            .iter()
            .fold(OneOfBuilder::new(), |one_of, name| one_of.item(Ref::from_schema_name(*name)));
        self.response(status, text, Some((JSON, Content::new(Some(Schema::OneOf(one_of.build()))))))
    }

    pub(super) fn any_json(self, status: u16, text: &str) -> Entry {
        self.response(status, text, Some((JSON, Content::new(Some(any_object())))))
    }

    pub(super) fn empty(self, status: u16, text: &str) -> Entry {
        self.response(status, text, None)
    }

    pub(super) fn streams(self, status: u16, media: &str, text: &str) -> Entry {
        self.response(status, text, Some((media, Content::new(Some(scalar(Kind::Text))))))
    }

    /// A further form of a status that was described before joins it.
    fn response(mut self, status: u16, text: &str, content: Option<(&str, Content)>) -> Entry {
        let known = self.responses.iter().position(|(known, _)| *known == status);
        let at = known.unwrap_or_else(|| {
            self.responses.push((status, ResponseBuilder::new().description(text).build()));
            self.responses.len() - 1
        });
        if let Some((media, content)) = content {
            self.responses[at].1.content.insert(media.to_owned(), RefOr::T(content));
        }
        self
    }

    /// The refusals particular to it, and those of every operation that needs a key; finishes the entry.
    pub(super) fn fails(mut self, statuses: &[u16]) -> Operation {
        let common = [401, 429, 500, 503];
        for status in statuses.iter().chain(&common) {
            let text = http::StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
            self = self.answers(*status, text.unwrap_or_default(), "Error");
        }
        self.done()
    }

    pub(super) fn done(self) -> Operation {
        let mut builder = self.builder;
        if self.needs_key {
            builder = builder.security(SecurityRequirement::new::<_, [&str; 0], &str>(SECURITY, []));
        }
        for (status, response) in self.responses {
            builder = builder.response(status.to_string(), response);
        }
        builder.build()
    }
}

fn reference(schema: &str) -> Content {
    Content::new(Some(Ref::from_schema_name(schema)))
}

fn any_object() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::Object)).build().into()
}

fn scalar(kind: Kind) -> Schema {
    let schema: Value = match kind {
        Kind::Text => json!({"type": "string"}),
        Kind::OneOf(words) => json!({"type": "string", "enum": words}),
        Kind::Id => json!({"type": "string", "minLength": 1, "maxLength": 256,
                           "pattern": r"^([A-Za-z0-9._:~@-]|[^\x00-\x9f])+$"}),
        Kind::Number => json!({"type": "integer", "minimum": 0, "maximum": u64::MAX}),
        Kind::Within(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Integer => json!({"type": "integer", "format": "int64"}),
        Kind::Flag => json!({"type": "boolean"}),
    };
    serde_json::from_value(schema).unwrap_or_default()
}
