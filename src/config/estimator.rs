//! The name of a token estimator: `tiktoken:MODEL`, `tiktoken:ENCODING` or `chars:N`.
//!
//! Only the name is understood here, so that a bad one is found while the configuration is read;
//! loading the vocabulary and counting is the business of `tokens`.

use std::fmt;
use std::str::FromStr;

use tiktoken_rs::tokenizer::{Tokenizer, get_tokenizer};

/// What `chars:N` may say.
const CHARS_PER_TOKEN: std::ops::RangeInclusive<u32> = 1..=100;

/// Every encoding by its published name.
const ENCODINGS: [(&str, Tokenizer); 7] = [
    ("o200k_harmony", Tokenizer::O200kHarmony),
    ("o200k_base", Tokenizer::O200kBase),
    ("cl100k_base", Tokenizer::Cl100kBase),
    ("p50k_base", Tokenizer::P50kBase),
    ("p50k_edit", Tokenizer::P50kEdit),
    ("r50k_base", Tokenizer::R50kBase),
    ("gpt2", Tokenizer::Gpt2),
];

/// A token estimator that exists, as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EstimatorSpec {
    name: String,
    method: Method,
}

/// How tokens are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// With the byte-pair vocabulary of this encoding.
    Tiktoken(Tokenizer),
    /// One token for every N characters, rounded up.
    Chars(u32),
}

/// Not a known estimator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown token estimator {name:?}: expected {}", EstimatorSpec::accepted())]
pub struct EstimatorError {
    pub name: String,
}

impl EstimatorSpec {
    /// One token for every `per_token` characters.
    pub fn chars(per_token: u32) -> EstimatorSpec {
        let per_token = per_token.clamp(*CHARS_PER_TOKEN.start(), *CHARS_PER_TOKEN.end());
        EstimatorSpec { name: format!("chars:{per_token}"), method: Method::Chars(per_token) }
    }

    pub(crate) fn method(&self) -> Method {
        self.method
    }

    /// The names that parse, in words.
    pub(crate) fn accepted() -> String {
        let encodings: Vec<&str> = ENCODINGS.iter().map(|(name, _)| *name).collect();
        format!(
            "tiktoken:MODEL (an OpenAI model such as gpt-4o), tiktoken:ENCODING ({}) or chars:N ({} to {} characters per token)",
            encodings.join(", "),
            CHARS_PER_TOKEN.start(),
            CHARS_PER_TOKEN.end(),
        )
    }
}

impl FromStr for EstimatorSpec {
    type Err = EstimatorError;

    fn from_str(name: &str) -> Result<EstimatorSpec, EstimatorError> {
        let method = match name.split_once(':') {
            Some(("tiktoken", which)) => {
                encoding(which).or_else(|| get_tokenizer(which)).map(Method::Tiktoken)
            }
            Some(("chars", n)) => n.parse().ok().filter(|n| CHARS_PER_TOKEN.contains(n)).map(Method::Chars),
            _ => None,
        };
        match method {
            Some(method) => Ok(EstimatorSpec { name: name.to_owned(), method }),
            None => Err(EstimatorError { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for EstimatorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn encoding(name: &str) -> Option<Tokenizer> {
    ENCODINGS.iter().find(|(known, _)| *known == name).map(|(_, tokenizer)| *tokenizer)
}
