//! Conversation ids: chosen by clients, so checked once where they enter and trusted everywhere else.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Longest id in bytes, after percent-decoding.
pub const MAX_ID_BYTES: usize = 256;

/// The name a client gave a conversation: 1 to [`MAX_ID_BYTES`] bytes of `[A-Za-z0-9._:~@-]` and of
/// characters outside ASCII (control characters excepted). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationId(Arc<str>);

/// Why a text is not a conversation id; the text is meant for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("a conversation id must not be empty")]
    Empty,
    #[error("a conversation id is at most {MAX_ID_BYTES} bytes long, this one has {0}")]
    TooLong(usize),
    #[error(
        "a conversation id must not contain {0:?}: allowed are letters, digits, any of `._:~@-` and percent-encoded UTF-8"
    )]
    Character(char),
}

impl ConversationId {
    /// Checks an id that has been percent-decoded already.
    pub fn parse(text: &str) -> Result<ConversationId, InvalidId> {
        if text.is_empty() {
            return Err(InvalidId::Empty);
        }
        if text.len() > MAX_ID_BYTES {
            return Err(InvalidId::TooLong(text.len()));
        }
        match text.chars().find(|&c| !allowed(c)) {
            None => Ok(ConversationId(Arc::from(text))),
            Some(c) => Err(InvalidId::Character(c)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn allowed(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() || "._:~@-".contains(c) } else { !c.is_control() }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Borrow<str> for ConversationId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_contract_allows() {
        for id in ["a", "user:42", "A-z_0.~@-", "привет", "会话-1", &"x".repeat(256)] {
            assert_eq!(ConversationId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn names_what_is_wrong() {
        assert_eq!(ConversationId::parse(""), Err(InvalidId::Empty));
        assert_eq!(ConversationId::parse(&"é".repeat(129)), Err(InvalidId::TooLong(258)));
        for c in ['/', ' ', '%', '\n', '\u{7f}', '\u{85}', '"', '\0', '+'] {
            assert_eq!(ConversationId::parse(&format!("a{c}b")), Err(InvalidId::Character(c)));
        }
    }
}
