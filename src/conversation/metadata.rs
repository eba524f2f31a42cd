//! A conversation's metadata: a JSON object kept as the bytes received. Merging keeps the bytes of every value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use bytes::Bytes;
use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::reply::Refusal;
use super::state::MAX_METADATA_BYTES;

/// The bytes to keep, of their own, if they are an object of bearable size.
pub(super) fn checked(metadata: &Bytes) -> Result<Bytes, Refusal> {
    members(metadata)?;
    sized(metadata.to_vec())
}

/// Whether two JSON values are the same whatever their spelling and order of members.
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    // A number beyond f64 has no `Value`: such texts are equal only byte for byte.
    let value = |json| serde_json::from_slice::<Value>(json).ok();
    a == b || value(a).is_some_and(|a| Some(a) == value(b))
}

/// `metadata` with the members of `patch` put in place and those that are `null` removed; `None` if that is no change.
pub(super) fn merged(metadata: &[u8], patch: &[u8]) -> Result<Option<Bytes>, Refusal> {
    let mut result = members(metadata)?;
    let (end, mut changed) = (result.len(), false);
    for (key, (place, new)) in members(patch)? {
        match result.entry(key) {
            Entry::Occupied(known) if new == "null" => {
                known.remove();
                changed = true;
            }
            Entry::Occupied(mut known) if !equal(known.get().1.as_bytes(), new.as_bytes()) => {
                known.get_mut().1 = new;
                changed = true;
            }
            Entry::Vacant(unknown) if new != "null" => {
                unknown.insert((end + place, new));
                changed = true;
            }
            _ => {}
        }
    }
    if changed { sized(written(&result)).map(Some) } else { Ok(None) }
}

/// By key: where a member stands among the others, and its value as written.
type Members<'a> = BTreeMap<Cow<'a, str>, (usize, &'a str)>;

fn written(members: &Members<'_>) -> Vec<u8> {
    let mut in_order: Vec<_> = members.iter().map(|(key, (place, value))| (place, key, value)).collect();
    in_order.sort_unstable();
    let mut out = String::from("{");
    for (index, (_, key, value)) in in_order.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&Value::from(&**key).to_string());
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out.into_bytes()
}

fn sized(metadata: Vec<u8>) -> Result<Bytes, Refusal> {
    if metadata.len() > MAX_METADATA_BYTES {
        let message = format!("metadata must not be longer than {MAX_METADATA_BYTES} bytes");
        return Err(Refusal::InvalidMetadata { message });
    }
    Ok(Bytes::from(metadata))
}

/// The top-level members; of duplicate keys the first gives the place and the last the value.
fn members(object: &[u8]) -> Result<Members<'_>, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(object);
    let members = deserializer.deserialize_map(MembersVisitor);
    members
        .and_then(|members| deserializer.end().map(|()| members))
        .map_err(|_| Refusal::InvalidMetadata { message: "metadata must be a JSON object".to_owned() })
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(serde::Deserialize)]
        struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

        let mut members = Members::new();
        while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            let end = members.len();
            members.entry(key).or_insert((end, "")).1 = value.get();
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(metadata: &str, patch: &str) -> Option<String> {
        let merged = merged(metadata.as_bytes(), patch.as_bytes()).unwrap();
        merged.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn values_keep_their_bytes_and_keys_their_place() {
        let before = r#"{ "a" : 1e2 , "\u0062": {"x": [1 , 2]}, "n": 12345678901234567890123 }"#;
        let after = r#"{"a":1e2,"b":{"x": [1 , 2]},"n":2,"\n":"\u00e9"}"#;
        assert_eq!(patched(before, r#"{"n":2,"\n":"\u00e9"}"#).as_deref(), Some(after));
        assert_eq!(patched(before, r#"{"b":null,"n":null,"a":null,"zz":null}"#).as_deref(), Some("{}"));
    }

    #[test]
    fn new_keys_come_last_and_duplicates_stay_where_the_first_was() {
        let before = r#"{"z":1,"a":1,"m":1,"a":2}"#;
        assert_eq!(
            patched(before, r#"{"y":3,"m":null,"b":4,"y":5}"#).as_deref(),
            Some(r#"{"z":1,"a":2,"y":5,"b":4}"#)
        );
        assert_eq!(patched(before, r#"{"z":null,"z":2}"#).as_deref(), Some(r#"{"z":2,"a":2,"m":1}"#));
    }

    #[test]
    fn what_means_the_same_is_no_change() {
        assert_eq!(patched(r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"y":2, "x":1}}"#), None);
        assert_eq!(patched(r#"{"a":1}"#, "{}"), None);
        // Beyond what a double holds only the text can be compared.
        assert_eq!(patched(r#"{"a":1e999}"#, r#"{"a":1e999}"#), None);
        assert!(patched(r#"{"a":1e999}"#, r#"{"a":1e998}"#).is_some());
    }

    #[test]
    fn only_objects_of_bearable_size() {
        for patch in ["[]", "1", "", "{", "{} {}", "\u{1}"] {
            assert!(
                matches!(merged(b"{}", patch.as_bytes()), Err(Refusal::InvalidMetadata { .. })),
                "{patch:?}"
            );
        }
        let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(MAX_METADATA_BYTES));
        assert!(matches!(merged(b"{}", long.as_bytes()), Err(Refusal::InvalidMetadata { .. })));
        assert!(matches!(checked(&Bytes::from(long)), Err(Refusal::InvalidMetadata { .. })));
    }
}
