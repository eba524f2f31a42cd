//! Query parameters: typed, with errors that name the parameter. Unknown ones are ignored, a known one given twice or
//! with a value of a wrong type is refused, and so is a query string that is not UTF-8 once percent-decoded.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::api::error::ApiError;
use crate::shards::{Consistency, ReadOptions};

/// The parameters of one request.
pub(crate) struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The first parameter that is not UTF-8.
    not_utf8: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// Splits a raw query string; what is wrong with it is said when a parameter is read.
    pub(crate) fn new(raw: Option<&'a str>) -> Query<'a> {
        let raw = raw.unwrap_or_default();
        let mut pairs = raw.split('&');
        let not_utf8 = pairs.find(|pair| percent_decode_str(pair).decode_utf8().is_err());
        let name = |pair: &'a str| pair.split_once('=').map_or(pair, |(name, _)| name);
        Query {
            pairs: form_urlencoded::parse(raw.as_bytes()).collect(),
            not_utf8: not_utf8.map(|pair| percent_decode_str(name(pair)).decode_utf8_lossy()),
        }
    }

    /// The text of a parameter.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        if let Some(name) = &self.not_utf8 {
            return Err(ApiError::InvalidRequest(format!("{name} must be UTF-8 once percent-decoded")));
        }
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_ref());
        let first = values.next();
        match values.next() {
            Some(_) => Err(ApiError::InvalidRequest(format!("{name} is given twice"))),
            None => Ok(first),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number<T>(&self, name: &str, bounds: RangeInclusive<T>) -> Result<Option<T>, ApiError>
    where
        T: FromStr + PartialOrd + Display,
    {
        self.text(name)?.map(|text| whole_number(name, text, bounds)).transpose()
    }

    /// `true`/`1` or `false`/`0`.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.text(name)? {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(text) => {
                Err(ApiError::InvalidRequest(format!("{name} must be true or false, not {text:?}")))
            }
        }
    }

    /// One of a list of words.
    pub(crate) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                let message = format!("{name} must be one of {}, not {text:?}", words.join(", "));
                Err(ApiError::InvalidRequest(message))
            }
        }
    }

    /// Every `PREFIX.KEY=VALUE`, as (KEY, VALUE), in the order given.
    pub(crate) fn prefixed(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_ref())))
    }
}

/// Reads a whole number within bounds; an error calls it `name`.
pub(crate) fn whole_number<T>(name: &str, text: &str, bounds: RangeInclusive<T>) -> Result<T, ApiError>
where
    T: FromStr + PartialOrd + Display,
{
    match text.parse::<T>() {
        Ok(value) if bounds.contains(&value) => Ok(value),
        _ => {
            let (least, most) = bounds.into_inner();
            let message = format!("{name} must be a whole number from {least} to {most}, not {text:?}");
            Err(ApiError::InvalidRequest(message))
        }
    }
}

/// How fresh a read must be: `consistency` and `min_version`.
pub(crate) fn read_options(query: &Query<'_>) -> Result<ReadOptions, ApiError> {
    let choices = [("linearizable", Consistency::Linearizable), ("local", Consistency::Local)];
    Ok(ReadOptions {
        consistency: query.choice("consistency", &choices)?.unwrap_or_default(),
        min_version: query.number("min_version", 0..=u64::MAX)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wrong_values_name_the_parameter() {
        let query = Query::new(Some("limit=0&from_seq=-5&order=up&explain=yes&wait=1&wait=2"));
        let message = |error: ApiError| match error {
            ApiError::InvalidRequest(message) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(query.number("from_seq", i64::MIN..=i64::MAX), Ok(Some(-5)));
        assert_eq!(
            message(query.number::<usize>("limit", 1..=1_000).expect_err("0")),
            "limit must be a whole number from 1 to 1000, not \"0\""
        );
        assert!(message(query.flag("explain", false).expect_err("yes")).starts_with("explain must be"));
        assert!(
            message(query.choice("order", &[("asc", 1), ("desc", 2)]).expect_err("up")).contains("asc, desc")
        );
        assert_eq!(message(query.text("wait").expect_err("twice")), "wait is given twice");
        assert_eq!(query.text("absent"), Ok(None));
    }

    #[test]
    fn prefixed_parameters_are_collected() {
        let query = Query::new(Some("metadata.a=1&metadata.b%20c=x%26y&metadata=z"));
        let found: Vec<_> = query.prefixed("metadata.").collect();
        assert_eq!(found, [("a", "1"), ("b c", "x&y")]);
    }

    #[test]
    fn what_is_not_utf8_is_refused_by_name() {
        let refusal = |raw| match Query::new(Some(raw)).text("limit") {
            Err(ApiError::InvalidRequest(message)) => message,
            other => panic!("{raw}: {other:?}"),
        };
        for (raw, name) in [
            ("limit=1&prefix=a%ff", "prefix"),
            ("metadata.kind=%C3&limit=1", "metadata.kind"),
            ("%c3=%a9", "\u{fffd}"),
        ] {
            assert_eq!(refusal(raw), format!("{name} must be UTF-8 once percent-decoded"));
        }
        let query = Query::new(Some("prefix=%C3%A9+%EF%BF%BD%"));
        assert_eq!(query.text("prefix"), Ok(Some("é \u{fffd}%")));
    }

    proptest! {
        #[test]
        fn any_query_is_survived(raw in ".{0,80}") {
            let query = Query::new(Some(&raw));
            let _ = (query.number::<u64>("limit", 0..=9), query.flag("explain", true), query.prefixed("a").count());
        }
    }
}
