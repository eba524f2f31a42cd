//! Bodies of messages that a policy edits: the only place that takes a stored body apart.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::codec::CodecError;
use super::part::marker_text;
use super::window::PartEdit;

const INVALID: CodecError = CodecError::Invalid("message body");

#[derive(serde::Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    parts: &'a RawValue,
}

/// The members of a message with `edits` applied to its parts, one for each. Everything kept stays byte for byte as it
/// was received; a call is replaced by `{"type":"text","text":"[tool call: NAME]"}`.
pub fn render_edited(body: &[u8], edits: &[PartEdit]) -> Result<Bytes, CodecError> {
    let object = [b"{".as_slice(), body, b"}"].concat();
    let object = std::str::from_utf8(&object).map_err(|_| INVALID)?;
    let parts = serde_json::from_str::<Body<'_>>(object).map_err(|_| INVALID)?.parts.get();
    let start = parts.as_ptr().addr() - object.as_ptr().addr();
    let before = &object[1..start];
    let after = &object[start + parts.len()..object.len() - 1];

    let parts: Vec<&RawValue> = serde_json::from_str(parts).map_err(|_| INVALID)?;
    if parts.len() != edits.len() {
        return Err(CodecError::Invalid("number of parts"));
    }
    let mut out = String::with_capacity(object.len());
    out.push_str(before);
    out.push('[');
    let mut separator = "";
    for (part, edit) in parts.iter().zip(edits) {
        let marker;
        let part = match edit {
            PartEdit::Drop => continue,
            PartEdit::Keep => part.get(),
            PartEdit::Marker => {
                let text = marker_text(part.get()).map_err(|_| INVALID)?;
                marker = serde_json::json!({"type": "text", "text": text}).to_string();
                &marker
            }
        };
        out.push_str(separator);
        out.push_str(part);
        separator = ",";
    }
    out.push(']');
    out.push_str(after);
    Ok(Bytes::from(out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_kept_stays_byte_for_byte() {
        let body = r#""metadata":{"parts": [1,2]}, "parts" : [ {"type":"text", "n":1.50} , {"type":"tool_use","name":"é\n"},{"type":"x"} ] ,"role":"user""#;
        let edits = [PartEdit::Keep, PartEdit::Marker, PartEdit::Drop];
        let rendered = render_edited(body.as_bytes(), &edits).unwrap();
        let expected = r#""metadata":{"parts": [1,2]}, "parts" : [{"type":"text", "n":1.50},{"type":"text","text":"[tool call: é\n]"}] ,"role":"user""#;
        assert_eq!(rendered, expected.as_bytes());
        let dropped = render_edited(body.as_bytes(), &[PartEdit::Drop; 3]).unwrap();
        assert_eq!(dropped, r#""metadata":{"parts": [1,2]}, "parts" : [] ,"role":"user""#.as_bytes());
    }

    #[test]
    fn edits_must_fit_the_parts() {
        let body = br#""role":"user","parts":[{"type":"text"}],"metadata":{}"#;
        assert_eq!(render_edited(body, &[]), Err(CodecError::Invalid("number of parts")));
        assert_eq!(render_edited(br#""role":"user""#, &[]), Err(INVALID));
        assert_eq!(render_edited(br#""parts":3"#, &[]), Err(INVALID));
        assert_eq!(render_edited(b"\xff", &[]), Err(INVALID));
    }

    proptest! {
        #[test]
        fn any_bytes_are_rendered_or_refused(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = render_edited(&body, &[PartEdit::Marker]);
        }
    }
}
