//! The edge: HTTP and websockets in, domain calls out. The only place that knows JSON members and status codes.
//!
//! Reading order: the routes below, a handler (`events`), `wire` for the bytes, `error` for the one table of errors,
//! `edge` for what happens around every handler, `serve` for connections. Both dialects are the same handlers.
//!
//! Lacks on purpose: per-client quotas, CORS and sessions, which are a proxy's; and any state of its own that
//! would have to survive.

mod accept;
mod admission;
mod archive;
mod auth;
mod body;
mod cluster;
mod compress;
mod console;
mod conversations;
mod dialect;
mod door;
mod edge;
mod error;
mod events;
mod export;
mod limits;
mod openapi;
mod ops;
mod path;
mod pieces;
mod serve;
mod stream;
mod watchdog;
mod weigh;
mod window;
mod window_cache;
mod wire;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, get, on, post};
use utoipa::openapi::path::Operation;

use self::dialect::Dialect;
pub use self::door::{PEER_PATH, PeerDoor, PeerIo, Unproven};
pub use self::edge::App;
use self::edge::{AppState, Scope, StreamPermit};
pub use self::serve::serve;

/// One method of one path, with its entry in the API document.
pub(crate) struct Route {
    method: Method,
    path: String,
    handler: MethodRouter<Scope>,
    document: Operation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Method {
    Get,
    Put,
    Post,
    Patch,
    Delete,
}

/// Every route of one dialect.
fn dialect_routes(dialect: Dialect) -> Vec<Route> {
    use Method::{Delete, Get, Patch, Post, Put};
    let doc = openapi::Describe(dialect);
    let all = format!("/v1/{}", dialect.resources());
    let one = format!("{all}/{{id}}");
    let log = format!("{one}/{}", dialect.events());
    vec![
        route(Get, &all, conversations::list, doc.list()),
        route(Put, &one, conversations::put, doc.put()),
        route(Get, &one, conversations::get, doc.get()),
        route(Delete, &one, conversations::delete, doc.delete()),
        route(Patch, &format!("{one}/metadata"), conversations::patch_metadata, doc.patch_metadata()),
        route(Post, &log, events::append, doc.append()),
        route(Get, &log, events::read, doc.events()),
        route(Get, &format!("{one}/tail"), events::tail, doc.tail()),
        route(Get, &format!("{one}/{}", dialect.window()), window::read, doc.window()),
        route(Post, &format!("{one}/compact"), window::compact, doc.compact()),
        route(Get, &format!("{one}/stream"), stream::open, doc.stream()),
    ]
}

/// The routes that belong to no dialect.
fn common_routes() -> Vec<Route> {
    use Method::{Delete, Get, Post};
    use openapi::node as doc;
    vec![
        route(Get, "/health/live", ops::live, doc::live()),
        route(Get, "/health/ready", ops::ready, doc::ready()),
        route(Get, "/metrics", ops::metrics, doc::metrics()),
        route(Get, "/openapi.json", ops::document, doc::document()),
        route(Get, "/v1/cluster", cluster::status, doc::cluster()),
        route(Post, "/v1/cluster/drain", cluster::drain, doc::drain()),
        route(Post, "/v1/cluster/undrain", cluster::undrain, doc::undrain()),
        route(Delete, "/v1/cluster/nodes/{name}", cluster::remove_node, doc::remove_node()),
    ]
}

/// Every route there is.
pub(crate) fn routes() -> impl Iterator<Item = (Dialect, Route)> {
    let common = common_routes().into_iter().map(|route| (Dialect::Conversations, route));
    let spoken = Dialect::ALL
        .into_iter()
        .flat_map(|dialect| dialect_routes(dialect).into_iter().map(move |route| (dialect, route)));
    common.chain(spoken)
}

fn router(app: &std::sync::Arc<AppState>) -> Router {
    let scope = Scope { app: app.clone(), dialect: Dialect::Conversations };
    let undocumented = Router::new()
        .route("/internal/digests", get(cluster::digests).with_state(scope.clone()))
        .route("/internal/versions", get(archive::digests).with_state(scope.clone()))
        .route("/internal/history", get(archive::history).with_state(scope.clone()))
        .route("/internal/restore", post(archive::restore).with_state(scope));
    let undocumented = match app.config.console {
        true => undocumented.merge(console::routes()),
        false => undocumented,
    };
    routes().fold(undocumented, |router, (dialect, Route { path, handler, .. })| {
        router.route(&path, handler.with_state(Scope { app: app.clone(), dialect }))
    })
}

fn route<H, T>(method: Method, path: &str, handler: H, document: Operation) -> Route
where
    H: Handler<T, Scope>,
    T: 'static,
{
    let filter = match method {
        Method::Get => MethodFilter::GET,
        Method::Put => MethodFilter::PUT,
        Method::Post => MethodFilter::POST,
        Method::Patch => MethodFilter::PATCH,
        Method::Delete => MethodFilter::DELETE,
    };
    Route { method, path: path.to_owned(), handler: on(filter, handler), document }
}
