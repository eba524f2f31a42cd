//! Who may call: one of the configured keys as a bearer token.
//!
//! Only SHA-256 digests of the keys are kept, and every digest is compared in constant time with that of the presented
//! token, so that neither the length, nor a prefix, nor which key matched can be timed. Keys never reach a log or a
//! URL. Without configured keys every caller is admitted.

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;

/// The accepted API keys, as digests.
pub(crate) struct Keys {
    digests: Vec<[u8; 32]>,
}

impl Keys {
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Keys {
        Keys { digests: keys.into_iter().map(digest).collect() }
    }

    /// Admits a request that carries one of the keys, or any request when no key is configured.
    pub(crate) fn authorize(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.digests.is_empty() {
            return Ok(());
        }
        let presented = bearer(headers).ok_or(ApiError::Unauthorized)?;
        let presented = digest(presented);
        let known =
            self.digests.iter().fold(Choice::from(0), |known, key| known | key[..].ct_eq(&presented[..]));
        if bool::from(known) { Ok(()) } else { Err(ApiError::Unauthorized) }
    }
}

fn digest(key: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(key.as_ref()).into()
}

/// The token of `Authorization: Bearer TOKEN`; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().expect("a header value"))])
    }

    #[test]
    fn any_configured_key_is_admitted() {
        let keys = Keys::new(["old", "new"]);
        for good in ["Bearer old", "Bearer new", "bearer new", "BEARER  new"] {
            assert!(keys.authorize(&headers(good)).is_ok(), "{good}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let keys = Keys::new(["secret"]);
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secret2",
            "Basic secret",
            "secret",
            "Bearer old, Bearer secret",
        ] {
            assert!(keys.authorize(&headers(bad)).is_err(), "{bad}");
        }
        assert!(keys.authorize(&HeaderMap::new()).is_err());
        let mut twice = headers("Bearer secret");
        twice.append(header::AUTHORIZATION, "Bearer secret".parse().expect("a header value"));
        assert!(keys.authorize(&twice).is_err());
    }

    #[test]
    fn without_keys_everybody_is_admitted() {
        assert!(Keys::new([]).authorize(&HeaderMap::new()).is_ok());
    }
}
