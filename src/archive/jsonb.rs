//! What `jsonb` can hold of a JSON text. Pure.
//!
//! Two things that JSON allows it does not: U+0000 in a string, and numbers beyond what `numeric` holds. In their place
//! come U+FFFD, and the number's spelling as a string. The exact bytes lie beside, in a column of text.

use std::borrow::Cow;

/// Digits of a number, written out, up to which it stays one. `numeric` holds more (131,072 before the point), but a
/// number of a few characters would then take that many to print.
const DIGITS_MAX: usize = 1_000;

/// The text as `jsonb` takes it; borrowed when it is the text itself, so that the caller sees whether anything was lost.
/// `json` must be valid.
pub(super) fn holdable(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut out = String::new();
    let (mut at, mut kept) = (0, 0);
    let mut replace = |from: usize, to: usize, with: &dyn Fn(&mut String)| {
        out.push_str(&json[kept..from]);
        with(&mut out);
        kept = to;
    };
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at = string(bytes, at, &mut |from| replace(from, from + 6, &|out| out.push_str("\\ufffd")))
            }
            b'-' | b'0'..=b'9' => {
                let len = bytes[at..].iter().take_while(|byte| is_of_number(**byte)).count();
                let number = &json[at..at + len];
                if !fits(number) {
                    replace(at, at + len, &|out| {
                        out.push('"');
                        out.push_str(number);
                        out.push('"');
                    });
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[kept..]);
    Cow::Owned(out)
}

/// A decoded text as a column of text takes it.
pub(super) fn holdable_text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Passes a string that begins at `at`; shows where `\u0000` is written.
fn string(bytes: &[u8], mut at: usize, nul: &mut dyn FnMut(usize)) -> usize {
    at += 1;
    while let Some(step) = memchr::memchr2(b'"', b'\\', &bytes[at..]) {
        at += step;
        if bytes[at] == b'"' {
            return at + 1;
        }
        if bytes[at..].starts_with(b"\\u0000") {
            nul(at);
            at += 6;
        } else {
            at += 2;
        }
    }
    bytes.len()
}

fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')
}

fn fits(number: &str) -> bool {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent = exponent.parse::<i64>().map_or(usize::MAX, |exponent| exponent.unsigned_abs() as usize);
    digits.len().saturating_add(exponent) <= DIGITS_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fits_is_the_text_itself() {
        for json in [
            "{}",
            r#"{"a":[1,-2.5e10,"\\u0000","\"",true,null],"ü":"\ud83d\ude00"}"#,
            "1e400",
            r#""\\\\u0000""#,
            "0.1",
        ] {
            assert!(matches!(holdable(json), Cow::Borrowed(same) if same == json), "{json}");
        }
    }

    #[test]
    fn what_does_not_fit_is_escaped() {
        let cases = [
            (r#"{"a\u0000":"\u0000\\\u0000"}"#, r#"{"a\ufffd":"\ufffd\\\ufffd"}"#),
            ("[1e1001,-1E-2000, 1e400]", r#"["1e1001","-1E-2000", 1e400]"#),
            ("1e99999999999999999999", r#""1e99999999999999999999""#),
        ];
        for (json, expected) in cases {
            assert_eq!(holdable(json), expected);
        }
        let long = "7".repeat(1_001);
        assert_eq!(holdable(&long), format!("\"{long}\""));
        assert_eq!(holdable_text("a\0b"), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn whatever_comes_out_is_json_without_nul(text in any::<String>(), exponent in -3_000i64..3_000) {
            let json = serde_json::json!({"t": text, "\0": [text]}).to_string().replacen("[", &format!("[1e{exponent},"), 1);
            let held = holdable(&json);
            prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&held).is_ok(), "{held}");
            let again = holdable(&held).into_owned();
            prop_assert_eq!(again, held.into_owned());
        }
    }
}
