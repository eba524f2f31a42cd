//! Which representation a client takes: the `Accept` header, as far as this API needs it.

use http::{HeaderMap, header};

use super::error::ApiError;

const JSON: &str = "application/json";

/// Refuses a client that takes no JSON, before anything is done for it.
pub(crate) fn json(headers: &HeaderMap) -> Result<(), ApiError> {
    if takes(headers, JSON) {
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
    quality(headers, media) > 0.0
}

/// Whether a client asks for a media type, and no less than for JSON.
pub(crate) fn prefers(headers: &HeaderMap, media: &str) -> bool {
    asks_for(headers, media) && quality(headers, media) >= quality(headers, JSON)
}

/// How much a client wants a media type that it names itself; 0 for one that it does not name.
fn quality(headers: &HeaderMap, media: &str) -> f32 {
    let named = ranges(headers).filter(|(range, _)| range.eq_ignore_ascii_case(media));
    named.map(|(_, q)| q).fold(0.0, f32::max)
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

    #[test]
    fn json_is_given_up_only_for_what_is_wanted_as_much() {
        let ndjson = "application/x-ndjson";
        for wanted in [
            "application/x-ndjson",
            "application/x-ndjson, application/json",
            "application/json;q=0.5, application/x-ndjson;q=0.6",
            "application/x-ndjson;q=0.1, */*",
        ] {
            assert!(prefers(&headers(wanted), ndjson), "{wanted}");
        }
        for json in [
            "application/json, application/x-ndjson;q=0.1",
            "*/*",
            "application/x-ndjson;q=0",
            "application/json",
        ] {
            assert!(!prefers(&headers(json), ndjson), "{json}");
        }
    }
}
