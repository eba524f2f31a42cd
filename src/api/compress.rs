//! Compression of whole answers over 1 KB for clients that accept it. Streams are left alone: a compressor would hold
//! their frames back. A client that does not ask pays nothing but one look at its headers. An answer that none of the
//! accepted codings suits goes out as it is: the request has been served by then.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Request, header};
use http_body::Body as _;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

/// Smaller answers are not worth it.
const SIZE_MIN: u64 = 1 << 10;

/// Compresses an answer by the best of gzip and zstd that `accepted` allows.
pub(crate) async fn compress(response: Response, accepted: &HeaderValue) -> Response {
    if response.body().size_hint().exact().is_none_or(|size| size < SIZE_MIN) {
        return response;
    }
    let status = response.status();
    // The layer wants a request to answer; all it looks at is the header.
    let mut request = Request::new(());
    request.headers_mut().insert(header::ACCEPT_ENCODING, accepted.clone());
    let mut answer = Some(response);
    let service = service_fn(move |_| {
        let response = answer.take().unwrap_or_default();
        async { Ok::<_, Infallible>(response) }
    });
    let layer = CompressionLayer::new().quality(CompressionLevel::Fastest);
    match layer.layer(service).oneshot(request).await {
        Ok(mut response) => {
            // Where no coding suits, the layer has made it 406.
            *response.status_mut() = status;
            response.map(Body::new)
        }
        Err(never) => match never {},
    }
}
