//! The operator's page at `/console`: its files, carried in the binary.
//!
//! The files are the same for everybody and hold nothing of the cluster, so they need no key; the page asks for one and
//! sends it with every request it makes. It loads nothing from elsewhere, and its policy has the browser hold it to
//! that: scripts and styles from this server alone, no inline code, no markup made from text (trusted types).
//! Paths inside the page are relative, so that it works behind a proxy's prefix too.

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use xxhash_rust::xxh3::xxh3_64;

/// Where the page is.
const PAGE_PATH: &str = "/console";
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// One file of the page.
struct Asset {
    path: &'static str,
    media: &'static str,
    text: &'static str,
}

macro_rules! assets {
    ($( $path:literal $media:ident $file:literal, )+) => {
        &[$( Asset { path: $path, media: $media, text: include_str!(concat!("console/", $file)) }, )+]
    };
}

static ASSETS: &[Asset] = assets![
    "/console" HTML "index.html",
    "/console/style.css" CSS "style.css",
    "/console/icon.svg" SVG "icon.svg",
    "/console/main.js" JS "main.js",
    "/console/access.js" JS "access.js",
    "/console/browser.js" JS "browser.js",
    "/console/client.js" JS "client.js",
    "/console/cluster.js" JS "cluster.js",
    "/console/conversation.js" JS "conversation.js",
    "/console/dom.js" JS "dom.js",
    "/console/format.js" JS "format.js",
    "/console/live.js" JS "live.js",
    "/console/log.js" JS "log.js",
    "/console/map.js" JS "map.js",
    "/console/message.js" JS "message.js",
    "/console/metrics.js" JS "metrics.js",
    "/console/rates.js" JS "rates.js",
    "/console/theme.js" JS "theme.js",
    "/console/window.js" JS "window.js",
];

/// Whether a path is a file of the page.
pub(super) fn is_asset(path: &str) -> bool {
    path.starts_with(PAGE_PATH) && ASSETS.iter().any(|asset| asset.path == path)
}

/// A route for every file.
pub(super) fn routes() -> Router {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        router.route(asset.path, get(move |headers: HeaderMap| async move { respond(asset, &headers) }))
    })
}

/// The file, or `304` for a browser that has it: a new release changes the tag, and so is seen at once.
fn respond(asset: &Asset, headers: &HeaderMap) -> Response {
    let tag = format!("W/\"{:016x}\"", xxh3_64(asset.text.as_bytes()));
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|given| given.as_bytes() == tag.as_bytes());
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => Response::new(Body::from(asset.text)),
    };
    let mut set = |name: HeaderName, value: &str| {
        let value = HeaderValue::from_str(value).expect("headers of assets are ASCII");
        response.headers_mut().insert(name, value);
    };
    set(header::CONTENT_TYPE, asset.media);
    set(header::ETAG, &tag);
    set(header::CACHE_CONTROL, "no-cache");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is in the directory is served, and every module that is imported is there.
    #[test]
    fn every_file_is_served_and_nothing_is_loaded_from_elsewhere() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/console");
        let files = std::fs::read_dir(dir).expect("the directory of the page");
        let files: BTreeSet<String> =
            files.map(|file| file.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        let served = |asset: &Asset| match asset.path.strip_prefix("/console/") {
            Some(file) => file.to_owned(),
            None => "index.html".to_owned(),
        };
        assert_eq!(ASSETS.iter().map(served).collect::<BTreeSet<_>>(), files);
        for asset in ASSETS {
            for line in asset.text.lines().filter(|line| line.starts_with("import ")) {
                let module = line.split('"').nth(1).and_then(|path| path.strip_prefix("./"));
                assert!(module.is_some_and(|module| files.contains(module)), "{}: {line}", asset.path);
            }
            for foreign in ["https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!asset.text.contains(foreign), "{} has {foreign}", asset.path);
            }
        }
    }

    #[test]
    fn only_files_of_the_page_are_assets() {
        assert!(is_asset("/console") && is_asset("/console/main.js"));
        for other in
            ["/console/", "/consoles", "/console/none.js", "/v1/conversations", "/console/../v1/cluster"]
        {
            assert!(!is_asset(other), "{other}");
        }
    }
}
