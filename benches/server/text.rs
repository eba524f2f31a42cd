//! Request bodies: messages of a given size in English-like text, so that the tokenizer has real work.
//!
//! Everything is a function of its arguments: two runs send the same bytes.

/// Ordinary words; tokenizers treat them as they treat prose.
const WORDS: &[&str] = &[
    "the",
    "order",
    "arrived",
    "late",
    "because",
    "warehouse",
    "moved",
    "and",
    "nobody",
    "updated",
    "our",
    "tracking",
    "page",
    "could",
    "you",
    "please",
    "check",
    "whether",
    "refund",
    "was",
    "already",
    "issued",
    "for",
    "invoice",
    "number",
    "seventeen",
    "customer",
    "mentioned",
    "that",
    "replacement",
    "parts",
    "should",
    "ship",
    "before",
    "Friday",
    "otherwise",
    "they",
    "would",
    "rather",
    "cancel",
    "subscription",
    "entirely",
    "thanks",
    "looking",
    "into",
    "this",
    "again",
];

/// xorshift64*: small, seedable and good enough to pick words.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// Prose of exactly `len` ASCII bytes that needs no JSON escaping.
fn prose(random: &mut Random, len: usize) -> String {
    let mut text = String::with_capacity(len + 16);
    while text.len() < len {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[random.below(WORDS.len() as u64) as usize]);
    }
    text.truncate(len);
    text
}

/// One event of `message_bytes` bytes of JSON (never less than an empty text takes), with its own token count or without.
fn event(random: &mut Random, message_bytes: usize, own_token_count: bool) -> String {
    const FRAME: &str = r#"{"role":"user","parts":[{"type":"text","text":""}]}"#;
    let text = prose(random, message_bytes.saturating_sub(FRAME.len()));
    let count =
        if own_token_count { format!(r#","token_count":{}"#, message_bytes / 5) } else { String::new() };
    format!(r#"{{"role":"user","parts":[{{"type":"text","text":"{text}"}}]{count}}}"#)
}

/// The body of an append of `events` messages: the single form for one, the batch form for more.
pub(crate) fn append_body(
    random: &mut Random,
    events: usize,
    message_bytes: usize,
    own_token_count: bool,
) -> Vec<u8> {
    if events == 1 {
        return format!(r#"{{"event":{}}}"#, event(random, message_bytes, own_token_count)).into_bytes();
    }
    let events: Vec<String> = (0..events).map(|_| event(random, message_bytes, own_token_count)).collect();
    format!(r#"{{"events":[{}]}}"#, events.join(",")).into_bytes()
}
