//! Token counts: what a message costs in a model's window, and how that spreads over its parts.
//!
//! Counted once, by the node that takes the message in, and carried by the command from then on. Replicas
//! never count. Text and JSON are counted as a model is shown them, binary parts by a formula; the rules are
//! in `docs/tokens.md`. Counting is bounded in memory and, in practice, linear in the text; a tokenizer that
//! panics costs exactness, not the request.
//!
//! Deliberately absent: exactness for any one vendor. Framing and images differ between models and change
//! over time, so a client that knows better sends its own `token_count`.

mod binary;
mod visible;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tiktoken_rs::{CoreBPE, bpe_for_tokenizer};

use crate::config::{EstimatorError, EstimatorSpec, Method};
use visible::Visible;

/// Texts longer than this are better counted where a thread may be kept busy. At 16 KiB that is about 0.4 ms
/// of English, and several times that of text made to be slow.
pub const LARGE_TEXT_BYTES: usize = 16 << 10;

/// What every message costs beside its role and parts: the marks around it that a chat model is shown.
pub const MESSAGE_OVERHEAD_TOKENS: u32 = 3;

/// The tokenizer is given at most this much at once. It bounds its memory and the backtracking of its
/// regular expression, which gives up (by a panic) after a million steps.
const CHUNK_BYTES_MAX: usize = 32 << 10;

/// For texts that the tokenizer could not take, and for weights where exactness does not matter.
const BYTES_PER_TOKEN: usize = 4;

/// Counts tokens. Clones share the vocabulary, which is loaded once for the process.
#[derive(Clone, Copy)]
pub struct Estimator {
    method: Loaded,
}

#[derive(Clone, Copy)]
enum Loaded {
    Tiktoken(&'static CoreBPE),
    Chars(u32),
}

/// What a message costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub total: u32,
    /// One for each part. They add up to the total less role and framing, or, where the client gave the
    /// count, to the total.
    pub parts: Vec<u32>,
}

/// The estimator exists by name, but cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Unknown(#[from] EstimatorError),
    #[error("the vocabulary of token estimator {0} cannot be loaded")]
    Vocabulary(EstimatorSpec),
}

impl Estimator {
    /// Loads the vocabulary, which takes about 150 ms (tiktoken, optimised) and 50 MB the first time.
    pub fn new(spec: &EstimatorSpec) -> Result<Estimator, LoadError> {
        let method = match spec.method() {
            Method::Chars(per_token) => Loaded::Chars(per_token),
            Method::Tiktoken(encoding) => {
                let bpe = catch_unwind(|| bpe_for_tokenizer(encoding).ok()).ok().flatten();
                Loaded::Tiktoken(bpe.ok_or_else(|| LoadError::Vocabulary(spec.clone()))?)
            }
        };
        Ok(Estimator { method })
    }

    /// The estimator with this name; see [`EstimatorSpec`].
    pub fn parse(name: &str) -> Result<Estimator, LoadError> {
        Estimator::new(&name.parse()?)
    }

    /// Tokens of a text.
    pub fn count(&self, text: &str) -> u32 {
        let tokens = match self.method {
            Loaded::Chars(per_token) => text.chars().count().div_ceil(per_token as usize),
            Loaded::Tiktoken(bpe) => chunks(text).map(|chunk| count_contained(bpe, chunk)).sum(),
        };
        saturated(tokens)
    }

    /// Tokens of a message with these parts, each the JSON of an object. A `given` total is taken as it is and
    /// spread over the parts by their rough size, without running the tokenizer.
    pub fn measure(&self, role: &str, parts: &[&str], given: Option<u32>) -> Measured {
        if let Some(total) = given {
            return Measured { total, parts: spread(total, parts) };
        }
        let parts: Vec<u32> = parts.iter().map(|part| self.count_part(part)).collect();
        let framing = MESSAGE_OVERHEAD_TOKENS.saturating_add(self.count(role));
        let total = parts.iter().fold(framing, |sum, part| sum.saturating_add(*part));
        Measured { total, parts }
    }

    fn count_part(&self, json: &str) -> u32 {
        let Visible { text, binary_tokens } = Visible::of(json);
        self.count(&text).saturating_add(binary_tokens)
    }
}

/// Shares of `total` that add up to it.
fn spread(total: u32, parts: &[&str]) -> Vec<u32> {
    if let [_] = parts {
        return vec![total];
    }
    let weights: Vec<u64> = parts.iter().map(|part| weight(part)).collect();
    let all: u64 = weights.iter().sum();
    let (mut before, mut given) = (0u64, 0u32);
    let share = |weight: u64| {
        before += weight;
        let until = (u128::from(total) * u128::from(before) / u128::from(all)) as u32;
        let share = until - given;
        given = until;
        share
    };
    weights.into_iter().map(share).collect()
}

/// What a part weighs among others; at least 1, so that no part is free and weights never add up to 0.
fn weight(json: &str) -> u64 {
    let Visible { text, binary_tokens } = Visible::of(json);
    1 + (text.len() / BYTES_PER_TOKEN) as u64 + u64::from(binary_tokens)
}

fn count_contained(bpe: &CoreBPE, text: &str) -> usize {
    // The tokenizer is only read, so that a panic leaves nothing half done.
    catch_unwind(AssertUnwindSafe(|| bpe.count_ordinary(text)))
        .unwrap_or_else(|_| text.len().div_ceil(BYTES_PER_TOKEN))
}

/// `text` in pieces of at most [`CHUNK_BYTES_MAX`], cut before a space where there is one: there words, and
/// mostly tokens, begin anyway.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (chunk, after) = rest.split_at(chunk_end(rest));
        rest = after;
        Some(chunk)
    })
}

/// Never 0 for a text that is not empty.
fn chunk_end(text: &str) -> usize {
    if text.len() <= CHUNK_BYTES_MAX {
        return text.len();
    }
    let end = text.floor_char_boundary(CHUNK_BYTES_MAX);
    text[..end].rfind(' ').filter(|space| *space > end / 2).unwrap_or(end)
}

fn saturated(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
