//! JSON values of an expected shape, read in one pass without a tree, and without losing the field's name when the
//! shape is wrong: serde would report "invalid type at column 17", a client is told "event.parts must be an array".
//!
//! Scalars and what is kept verbatim are borrowed as [`RawValue`]; only the containers the server looks into need a
//! type here.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::api::error::ApiError;

/// An array of `T`, or something else. No more than `MAX` of its items are kept.
pub(crate) struct List<T, const MAX: usize>(Option<Items<T>>);

/// The items of an array.
pub(crate) struct Items<T> {
    /// The first ones.
    pub kept: Vec<T>,
    /// How many there were in all.
    pub count: usize,
}

/// An object with the members of `T`, or something else.
pub(crate) struct Object<T>(Option<T>);

impl<T, const MAX: usize> List<T, MAX> {
    pub(crate) fn expect(self, field: &str) -> Result<Items<T>, ApiError> {
        self.0.ok_or_else(|| must_be(field, "an array"))
    }
}

impl<T> Object<T> {
    pub(crate) fn expect(self, field: &str) -> Result<T, ApiError> {
        self.0.ok_or_else(|| must_be(field, "an object"))
    }
}

/// `field must be expected`, as a refusal.
pub(crate) fn must_be(field: &str, expected: &str) -> ApiError {
    ApiError::InvalidRequest(format!("{field} must be {expected}"))
}

/// The text of a JSON string, borrowed where it has no escapes; `None` for any other value.
pub(crate) fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

/// A whole number written without sign, fraction or exponent; `None` for any other value.
pub(crate) fn whole_number(raw: &RawValue) -> Option<u64> {
    raw.get().parse().ok()
}

/// Whether a value is an object; the text was checked when it was read.
pub(crate) fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor::<T, MAX>(PhantomData)).map(List)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData)).map(Object)
    }
}

/// The visits that mean "something else", for scalars.
macro_rules! anything_else {
    ($($visit:ident($of:ty)),*) => {
        $(fn $visit<E>(self, _: $of) -> Result<Self::Value, E> { Ok(None) })*
        fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok(None) }
    };
}

struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
    type Value = Option<Items<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MAX {
            match items.next_element()? {
                Some(item) => kept.push(item),
                None => return Ok(Some(Items { count: kept.len(), kept })),
            }
        }
        // An item takes many times what its text does: the others are only counted.
        let mut count = MAX;
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Some(Items { kept, count }))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    anything_else!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Some)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    anything_else!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Point<'a> {
        #[serde(borrow)]
        x: Option<&'a RawValue>,
    }

    #[test]
    fn the_right_shape_is_read_and_any_other_is_told_apart_from_bad_json() {
        let text = r#"[{"x": 1e400, "y": [[]]}, {}, 3]"#;
        let points: List<Object<Point<'_>>, 3> = serde_json::from_str(text).expect("JSON");
        let points = points.expect("points").expect("an array").kept;
        assert_eq!(points[0].0.as_ref().and_then(|point| point.x).map(RawValue::get), Some("1e400"));
        assert!(points[1].0.as_ref().is_some_and(|point| point.x.is_none()));
        assert!(points[2].0.is_none());
        for other in ["null", "true", "-1", "1", "1.5", "\"a\"", "\"\\u00e9\"", "{\"a\":{\"b\":[]}}"] {
            let list: List<&RawValue, 3> = serde_json::from_str(other).expect("JSON");
            assert_eq!(list.expect("events").err(), Some(must_be("events", "an array")), "{other}");
        }
        let object: Object<Point<'_>> = serde_json::from_str("[1,{},[2]]").expect("JSON");
        assert!(object.expect("event").is_err());
        assert!(serde_json::from_str::<List<&RawValue, 3>>("[1,").is_err());
        assert!(
            serde_json::from_str::<Object<Point<'_>>>("{\"x\":1,\"x\":2}").is_err(),
            "duplicates are refused"
        );
    }

    #[test]
    fn items_beyond_the_most_are_counted_and_not_kept() {
        for count in 0..6 {
            let text = serde_json::to_string(&vec![7; count]).expect("JSON");
            let list: List<u64, 3> = serde_json::from_str(&text).expect("JSON");
            let items = list.expect("events").expect("an array");
            assert_eq!((items.count, items.kept), (count, vec![7; count.min(3)]));
        }
        assert!(serde_json::from_str::<List<u64, 3>>("[1,2,3,4,").is_err());
    }

    #[test]
    fn scalars() {
        let raw = |text| serde_json::from_str::<&RawValue>(text).expect("JSON");
        assert_eq!(string(raw(r#""a\u00e9""#)).as_deref(), Some("aé"));
        assert_eq!(string(raw("1")), None);
        for (text, number) in [
            ("7", Some(7)),
            ("-7", None),
            ("7.0", None),
            ("7e0", None),
            ("\"7\"", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(whole_number(raw(text)), number, "{text}");
        }
    }
}
