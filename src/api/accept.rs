//! Which representation a client takes: the `Accept` header, as far as this API needs it.

use http::{HeaderMap, header};

use super::error::ApiError;

/// Refuses a client that takes no JSON, before anything is done for it.
pub(crate) fn json(headers: &HeaderMap) -> Result<(), ApiError> {
    if takes(headers, "application/json") {
        Ok(())
    } else {
        Err(ApiError::NotAcceptable("This answers application/json only"))
    }
}

/// Whether a client takes a media type; without an `Accept` header it takes any.
pub(crate) fn takes(headers: &HeaderMap, media: &str) -> bool {
    let mut quality = None;
    for (range, q) in ranges(headers) {
        let specificity = match range {
            _ if range.eq_ignore_ascii_case(media) => 2,
            "*/*" => 0,
            _ => match (range.strip_suffix("/*"), media.split_once('/')) {
                (Some(wanted), Some((kind, _))) if wanted.eq_ignore_ascii_case(kind) => 1,
                _ => continue,
            },
        };
        if quality.is_none_or(|(best, _)| specificity >= best) {
            quality = Some((specificity, q));
        }
    }
    match quality {
        Some((_, q)) => q > 0.0,
        None => !headers.contains_key(header::ACCEPT),
    }
}

/// Whether a client names a media type itself, not by a wildcard: asks for it instead of the usual one.
pub(crate) fn asks_for(headers: &HeaderMap, media: &str) -> bool {
    ranges(headers).any(|(range, q)| q > 0.0 && range.eq_ignore_ascii_case(media))
}

/// The media ranges of all `Accept` headers with their quality.
fn ranges(headers: &HeaderMap) -> impl Iterator<Item = (&str, f32)> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|range| {
        let mut pieces = range.split(';').map(str::trim);
        let media = pieces.next().unwrap_or_default();
        let quality = pieces.find_map(|piece| piece.strip_prefix("q=")?.parse().ok());
        (media, quality.unwrap_or(1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, accept.parse().expect("a header value"))])
    }

    #[test]
    fn json_is_taken_unless_ruled_out() {
        assert!(json(&HeaderMap::new()).is_ok());
        for good in
            ["*/*", "application/json", "text/html, */*;q=0.1", "application/*", "Application/JSON;q=0.5"]
        {
            assert!(json(&headers(good)).is_ok(), "{good}");
        }
        for bad in ["text/html", "text/event-stream", "application/json;q=0, */*", "text/*"] {
            assert!(json(&headers(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_takes_but_does_not_ask() {
        assert!(asks_for(&headers("text/event-stream"), "text/event-stream"));
        assert!(!asks_for(&headers("*/*"), "text/event-stream"));
        assert!(!asks_for(&headers("text/event-stream;q=0"), "text/event-stream"));
    }
}
