//! What is checked of a JSON text before anything interprets it.
//!
//! Message bodies are kept as they were received and handed to other programs later, so they must be text that every
//! JSON reader takes: UTF-8, not nested too deeply for readers that recurse, and without escapes that name half a
//! UTF-16 pair, which no Unicode string can hold. One pass, no recursion, no allocation. Grammar is not checked here:
//! whatever reads the text afterwards does that.

/// Deepest nesting of arrays and objects in what is kept: a message, or metadata. Answers wrap that in up to three levels
/// more, and common readers stop at 128.
pub(crate) const KEPT_DEPTH_MAX: usize = 125;

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextFault {
    #[error("The body is not UTF-8 (byte {0})")]
    NotUtf8(usize),
    #[error("The body is nested deeper than {depth_max} levels (byte {at})")]
    TooDeep { depth_max: usize, at: usize },
    #[error("The escape {escape} at byte {at} is half of a surrogate pair")]
    LoneSurrogate { escape: String, at: usize },
}

/// Checks a text, see the module. What is kept of it may be wrapped in so many levels; answers also how deep the text is
/// nested.
pub(crate) fn check(bytes: &[u8], wraps: usize) -> Result<(&str, usize), TextFault> {
    let depth_max = KEPT_DEPTH_MAX + wraps;
    let text = std::str::from_utf8(bytes).map_err(|error| TextFault::NotUtf8(error.valid_up_to()))?;
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > deepest {
                    deepest = depth;
                    if deepest > depth_max {
                        return Err(TextFault::TooDeep { depth_max, at });
                    }
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = skip_string(text, at + 1)?,
            _ => {}
        }
        at += 1;
    }
    Ok((text, deepest))
}

/// From behind an opening quote to its closing one (or the end of the text).
fn skip_string(text: &str, mut at: usize) -> Result<usize, TextFault> {
    let bytes = text.as_bytes();
    while let Some(found) = memchr::memchr2(b'"', b'\\', &bytes[at..]) {
        at += found;
        if bytes[at] == b'"' {
            return Ok(at);
        }
        at = match bytes.get(at + 1) {
            Some(b'u') => skip_unicode_escape(text, at)?,
            _ => (at + 2).min(bytes.len()),
        };
    }
    Ok(bytes.len())
}

/// From the backslash of `\uXXXX` to behind it, or behind the pair when it is the first half of one.
fn skip_unicode_escape(text: &str, at: usize) -> Result<usize, TextFault> {
    let lone = || TextFault::LoneSurrogate { escape: text[at..at + 6].to_owned(), at };
    match unicode_escape(text, at) {
        Some(0xd800..=0xdbff) => match unicode_escape(text, at + 6) {
            Some(0xdc00..=0xdfff) => Ok(at + 12),
            _ => Err(lone()),
        },
        Some(0xdc00..=0xdfff) => Err(lone()),
        Some(_) => Ok(at + 6),
        // Not an escape at all, which is for the grammar to refuse.
        None => Ok(at + 2),
    }
}

fn unicode_escape(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(digits, 16).ok()
}

/// Appends JSON text on one line: line breaks in valid JSON are white space between tokens, never inside a string.
pub(crate) fn push_on_one_line(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = memchr::memchr2(b'\n', b'\r', text) {
        out.extend_from_slice(&text[..at]);
        out.push(b' ');
        text = &text[at + 1..];
    }
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        for wraps in 0..3 {
            let depth_max = KEPT_DEPTH_MAX + wraps;
            let deepest = nested(depth_max);
            assert_eq!(check(deepest.as_bytes(), wraps), Ok((deepest.as_str(), depth_max)));
            let refused = Err(TextFault::TooDeep { depth_max, at: depth_max });
            assert_eq!(check(nested(depth_max + 1).as_bytes(), wraps), refused);
            assert_eq!(check(nested(100_000).as_bytes(), wraps), refused);
        }
        let in_string = format!("{{\"a\":\"{}\"}}", "[".repeat(1_000));
        assert_eq!(check(in_string.as_bytes(), 0), Ok((in_string.as_str(), 1)));
        let wide = format!("[{}]", vec!["[]"; 1_000].join(","));
        assert_eq!(check(wide.as_bytes(), 0), Ok((wide.as_str(), 2)));
    }

    #[test]
    fn half_a_surrogate_pair_is_named() {
        for good in [r#""\ud83d\ude00""#, r#""\u00e9""#, r#""\\ud83d""#, r#""\\\\ud83d x""#, r#""a\nb""#] {
            assert_eq!(check(good.as_bytes(), 0), Ok((good, 0)));
        }
        for (bad, escape) in [
            (r#""\ud83d""#, r"\ud83d"),
            (r#""\uDE00""#, r"\uDE00"),
            (r#"{"a":"x\ud83d\u0041"}"#, r"\ud83d"),
            (r#"["\ud83d\ud83d\ude00"]"#, r"\ud83d"),
            (r#"{"\udc00":1}"#, r"\udc00"),
        ] {
            let Err(TextFault::LoneSurrogate { escape: found, .. }) = check(bad.as_bytes(), 0) else {
                panic!("{bad} passed");
            };
            assert_eq!(found, escape);
        }
    }

    #[test]
    fn lines_are_joined() {
        let mut out = Vec::new();
        push_on_one_line(&mut out, b"{\"a\":\r\n [1,\n2]}");
        assert_eq!(out, b"{\"a\":   [1, 2]}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes, 0);
        }

        #[test]
        fn any_quoting_is_survived(text in r#"[\[\]{}"\\uda0-9 ]{0,60}"#) {
            let _ = check(text.as_bytes(), 0);
        }

        /// The check refuses no text that a reader takes, and every lone surrogate that a reader would choke on.
        #[test]
        fn agrees_with_a_reader(text in r#""([ab"\\/]|\\\\|\\"|\\u[dD][89cCdD][0-9]{2}|\\u00[0-9]{2}){0,8}""#) {
            let read = serde_json::from_str::<String>(&text).is_ok();
            let grammar = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            let checked = check(text.as_bytes(), 0).is_ok();
            prop_assert!(!read || checked, "refused a good text");
            prop_assert!(!(grammar && !read && checked), "passed a text with half a pair");
        }
    }
}
