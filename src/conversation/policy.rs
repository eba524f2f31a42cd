//! Settings of a conversation and the policies that build its window.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::codec::{CodecError, Reader, Writer};

/// Tokens a window may hold unless the client says otherwise.
pub const DEFAULT_TOKEN_BUDGET: u64 = 8_000;
/// Share of the budget above which compaction is asked for.
pub const DEFAULT_TRIGGER_RATIO: f64 = 0.7;
/// Newest messages kept by policies that end in `last_n`.
pub const DEFAULT_LIMIT: u64 = 400;
/// Longest policy in bytes of JSON: every change of settings is kept, for time travel.
pub const MAX_POLICY_BYTES: usize = 4 * 1024;

const DEFAULT_SKIP_KINDS: [&str; 2] = ["tool", "reasoning"];
const DEFAULT_POLICY: &str = r#"{"strategy":"last_n","config":{"limit":400}}"#;

/// What a `PUT` settles.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    pub token_budget: u64,
    pub trigger_ratio: f64,
    pub policy: Policy,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            token_budget: DEFAULT_TOKEN_BUDGET,
            trigger_ratio: DEFAULT_TRIGGER_RATIO,
            policy: Policy::default(),
        }
    }
}

impl Settings {
    /// The defaults, shared by all conversations that never changed them.
    pub(super) fn shared_default() -> Arc<Settings> {
        static DEFAULT: LazyLock<Arc<Settings>> = LazyLock::new(Arc::default);
        DEFAULT.clone()
    }

    /// A window of more tokens needs compaction.
    pub(super) fn trigger_tokens(&self) -> u64 {
        (self.trigger_ratio * self.token_budget as f64).floor() as u64
    }

    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Settings>() + self.policy.json.len()
    }
}

/// Which messages a window keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// Summaries and the newest messages.
    LastN(Bounds),
    /// Without parts whose type starts with one of `kinds`, then as `LastN`.
    SkipParts { kinds: Vec<String>, bounds: Bounds },
    /// Without tool results and with calls as text markers, then as `LastN`.
    StripToolResults(Bounds),
    /// Everything since the last compaction; over the budget, the newest that fits.
    Manual,
}

/// How much `last_n` keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Live messages.
    pub limit: u64,
    /// Tokens of the whole window; the budget when absent.
    pub max_tokens: Option<u64>,
}

/// A window policy: the JSON object a client sent, for the answers, and what it means.
#[derive(Clone, Debug)]
pub struct Policy {
    json: Bytes,
    strategy: Strategy,
    pairing: bool,
    trigger_ratio: Option<f64>,
}

/// Why a JSON value is not a policy; the text is meant for the client and names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error("policy must be valid JSON")]
    NotJson,
    #[error("policy must not be longer than {MAX_POLICY_BYTES} bytes")]
    TooLong,
    #[error("{field} must be {expected}")]
    Field { field: &'static str, expected: &'static str },
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            json: Bytes::from_static(DEFAULT_POLICY.as_bytes()),
            strategy: Strategy::LastN(Bounds { limit: DEFAULT_LIMIT, max_tokens: None }),
            pairing: true,
            trigger_ratio: None,
        }
    }
}

impl PartialEq for Policy {
    /// Whether two policies mean the same and carry the same extra members, however they are written.
    fn eq(&self, other: &Policy) -> bool {
        self.json == other.json
            || (self.strategy == other.strategy && self.spelled_out() == other.spelled_out())
    }
}

impl Policy {
    /// Reads the JSON object of a policy. A later version must accept whatever this one does: policies are stored as received.
    pub fn parse(json: Bytes) -> Result<Policy, InvalidPolicy> {
        if json.len() > MAX_POLICY_BYTES {
            return Err(InvalidPolicy::TooLong);
        }
        let value: Value = serde_json::from_slice(&json).map_err(|_| InvalidPolicy::NotJson)?;
        let policy = value.as_object().ok_or(invalid("policy", "an object"))?;
        let empty = Map::new();
        let config = match policy.get("config") {
            None | Some(Value::Null) => &empty,
            Some(config) => config.as_object().ok_or(invalid("policy.config", "an object"))?,
        };
        let strategy = strategy(policy, config)?;
        let pairing = match config.get("pairing") {
            None | Some(Value::Null) => true,
            Some(Value::String(pairing)) if pairing == "on" => true,
            Some(Value::String(pairing)) if pairing == "off" => false,
            Some(_) => return Err(invalid("policy.config.pairing", "\"on\" or \"off\"")),
        };
        let within_config = trigger_ratio(config, "policy.config.trigger_ratio")?;
        let beside_config = trigger_ratio(policy, "policy.trigger_ratio")?;
        Ok(Policy { json, strategy, pairing, trigger_ratio: within_config.or(beside_config) })
    }

    /// Reads a policy that a client sends now, and checks what its strategy does not use too, so that a client learns of
    /// a mistake before it switches. Policies that are stored may have such mistakes.
    pub fn parse_new(json: Bytes) -> Result<Policy, InvalidPolicy> {
        let policy = Policy::parse(json)?;
        let value: Value = serde_json::from_slice(&policy.json).map_err(|_| InvalidPolicy::NotJson)?;
        value.get("config").and_then(Value::as_object).map_or(Ok(Vec::new()), skip_kinds)?;
        Ok(policy)
    }

    /// The JSON object, as received.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    pub fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// Whether tool calls and their results are kept together.
    pub fn pairing(&self) -> bool {
        self.pairing
    }

    /// The trigger ratio some clients write into the policy (`config.trigger_ratio`, else `trigger_ratio`); one given
    /// beside the policy comes first.
    pub fn trigger_ratio(&self) -> Option<f64> {
        self.trigger_ratio
    }

    /// The policy with its defaults written out. `None` never occurs for a parsed policy.
    fn spelled_out(&self) -> Option<Value> {
        let mut value: Value = serde_json::from_slice(&self.json).ok()?;
        let policy = value.as_object_mut()?;
        policy.insert("strategy".into(), json!(self.strategy.name()));
        let config = policy.entry("config").or_insert(Value::Null);
        if config.is_null() {
            *config = json!({});
        }
        let config = config.as_object_mut()?;
        config.insert("pairing".into(), json!(self.pairing));
        let bounds = match &self.strategy {
            Strategy::LastN(bounds) | Strategy::StripToolResults(bounds) => bounds,
            Strategy::SkipParts { kinds, bounds } => {
                config.insert("skip_kinds".into(), json!(kinds));
                bounds
            }
            Strategy::Manual => return Some(value),
        };
        config.insert("limit".into(), json!(bounds.limit));
        config.insert("max_tokens".into(), json!(bounds.max_tokens));
        Some(value)
    }
}

impl Strategy {
    pub fn name(&self) -> &'static str {
        match self {
            Strategy::LastN(_) => "last_n",
            Strategy::SkipParts { .. } => "skip_parts",
            Strategy::StripToolResults(_) => "strip_tool_results",
            Strategy::Manual => "manual",
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        match self {
            Strategy::LastN(bounds)
            | Strategy::SkipParts { bounds, .. }
            | Strategy::StripToolResults(bounds) => *bounds,
            Strategy::Manual => Bounds { limit: u64::MAX, max_tokens: None },
        }
    }
}

/// Checks a trigger ratio wherever it was given: above 0, at most 1.
pub fn valid_trigger_ratio(ratio: f64) -> bool {
    ratio > 0.0 && ratio <= 1.0
}

const fn invalid(field: &'static str, expected: &'static str) -> InvalidPolicy {
    InvalidPolicy::Field { field, expected }
}

fn strategy(policy: &Map<String, Value>, config: &Map<String, Value>) -> Result<Strategy, InvalidPolicy> {
    const EXPECTED: InvalidPolicy =
        invalid("policy.strategy", "one of \"last_n\", \"skip_parts\", \"strip_tool_results\", \"manual\"");
    let name = match policy.get("strategy") {
        None | Some(Value::Null) => "last_n",
        Some(name) => name.as_str().ok_or(EXPECTED)?,
    };
    // Checked for every strategy; see `parse_new`.
    let bounds = Bounds {
        limit: at_least_one(config, "limit", "policy.config.limit")?.unwrap_or(DEFAULT_LIMIT),
        max_tokens: at_least_one(config, "max_tokens", "policy.config.max_tokens")?,
    };
    match name {
        "last_n" => Ok(Strategy::LastN(bounds)),
        "skip_parts" => Ok(Strategy::SkipParts { kinds: skip_kinds(config)?, bounds }),
        "strip_tool_results" => Ok(Strategy::StripToolResults(bounds)),
        "manual" | "budget" => Ok(Strategy::Manual),
        _ => Err(EXPECTED),
    }
}

fn at_least_one(
    config: &Map<String, Value>,
    key: &str,
    field: &'static str,
) -> Result<Option<u64>, InvalidPolicy> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => Err(invalid(field, "a whole number of at least 1")),
        },
    }
}

fn skip_kinds(config: &Map<String, Value>) -> Result<Vec<String>, InvalidPolicy> {
    const EXPECTED: InvalidPolicy = invalid("policy.config.skip_kinds", "an array of non-empty strings");
    let kinds = match config.get("skip_kinds") {
        None | Some(Value::Null) => return Ok(DEFAULT_SKIP_KINDS.map(String::from).to_vec()),
        Some(kinds) => kinds.as_array().ok_or(EXPECTED)?,
    };
    let kind = |kind: &Value| kind.as_str().filter(|kind| !kind.is_empty()).map(String::from);
    kinds.iter().map(|value| kind(value).ok_or(EXPECTED)).collect()
}

fn trigger_ratio(object: &Map<String, Value>, field: &'static str) -> Result<Option<f64>, InvalidPolicy> {
    match object.get("trigger_ratio") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(ratio) if valid_trigger_ratio(ratio) => Ok(Some(ratio)),
            _ => Err(invalid(field, "a number above 0 and at most 1")),
        },
    }
}

const SETTINGS_DEFAULT: u8 = 0;
const SETTINGS_INLINE: u8 = 1;

pub(super) fn write_settings(out: &mut Writer, settings: &Settings) {
    // Byte for byte: a policy that only means the same as the default is kept as it was written.
    let plain = settings.policy.json == DEFAULT_POLICY.as_bytes()
        && settings.token_budget == DEFAULT_TOKEN_BUDGET
        && settings.trigger_ratio == DEFAULT_TRIGGER_RATIO;
    if plain {
        return out.u8(SETTINGS_DEFAULT);
    }
    out.u8(SETTINGS_INLINE);
    out.varint(settings.token_budget);
    out.fixed_u64(settings.trigger_ratio.to_bits());
    write_policy(out, &settings.policy);
}

pub(super) fn read_settings(input: &mut Reader) -> Result<Arc<Settings>, CodecError> {
    match input.u8()? {
        SETTINGS_DEFAULT => Ok(Settings::shared_default()),
        SETTINGS_INLINE => Ok(Arc::new(Settings {
            token_budget: input.varint()?,
            trigger_ratio: read_ratio(input)?,
            policy: read_policy(input)?,
        })),
        other => Err(CodecError::UnknownOrdinal { what: "settings", value: other.into() }),
    }
}

pub(super) fn write_policy(out: &mut Writer, policy: &Policy) {
    out.bytes(&policy.json);
}

pub(super) fn read_policy(input: &mut Reader) -> Result<Policy, CodecError> {
    let json = input.bytes()?;
    if json == DEFAULT_POLICY.as_bytes() {
        return Ok(Policy::default());
    }
    // A copy: a slice would keep the whole encoded command or record alive.
    Policy::parse(Bytes::copy_from_slice(&json)).map_err(|_| CodecError::Invalid("policy"))
}

pub(super) fn read_ratio(input: &mut Reader) -> Result<f64, CodecError> {
    let ratio = f64::from_bits(input.fixed_u64()?);
    if valid_trigger_ratio(ratio) { Ok(ratio) } else { Err(CodecError::Invalid("trigger ratio")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Policy, InvalidPolicy> {
        Policy::parse(Bytes::copy_from_slice(json.as_bytes()))
    }

    #[test]
    fn the_default_is_what_its_json_says() {
        let parsed = parse(DEFAULT_POLICY).unwrap();
        assert_eq!(parsed, Policy::default());
        assert_eq!(parsed.strategy(), Policy::default().strategy());
        assert_eq!(parse("{}").unwrap(), Policy::default());
    }

    #[test]
    fn a_new_policy_is_checked_whole_and_a_stored_one_is_not() {
        let bad = br#"{"strategy":"last_n","config":{"skip_kinds":[3]}}"#;
        assert!(Policy::parse(Bytes::from_static(bad)).is_ok());
        let refused = Policy::parse_new(Bytes::from_static(bad)).unwrap_err();
        assert!(refused.to_string().starts_with("policy.config.skip_kinds"), "{refused}");
        for good in [DEFAULT_POLICY, "{}", r#"{"config":{"skip_kinds":["tool"]}}"#, r#"{"config":null}"#] {
            assert!(Policy::parse_new(Bytes::copy_from_slice(good.as_bytes())).is_ok(), "{good}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        for (json, field) in [
            ("3", "policy"),
            (r#"{"strategy":3}"#, "policy.strategy"),
            (r#"{"strategy":"newest"}"#, "policy.strategy"),
            (r#"{"config":[]}"#, "policy.config"),
            (r#"{"config":{"limit":"5"}}"#, "policy.config.limit"),
            (r#"{"config":{"limit":0}}"#, "policy.config.limit"),
            (r#"{"config":{"limit":1.5}}"#, "policy.config.limit"),
            (r#"{"strategy":"manual","config":{"max_tokens":-1}}"#, "policy.config.max_tokens"),
            (r#"{"strategy":"skip_parts","config":{"skip_kinds":"tool"}}"#, "policy.config.skip_kinds"),
            (r#"{"strategy":"skip_parts","config":{"skip_kinds":[1]}}"#, "policy.config.skip_kinds"),
            (r#"{"strategy":"skip_parts","config":{"skip_kinds":[""]}}"#, "policy.config.skip_kinds"),
            (r#"{"config":{"pairing":false}}"#, "policy.config.pairing"),
            (r#"{"config":{"trigger_ratio":1.1}}"#, "policy.config.trigger_ratio"),
            (r#"{"trigger_ratio":"0.5"}"#, "policy.trigger_ratio"),
        ] {
            match parse(json) {
                Err(InvalidPolicy::Field { field: found, .. }) => assert_eq!(found, field, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        assert_eq!(parse("{").unwrap_err(), InvalidPolicy::NotJson);
        let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(MAX_POLICY_BYTES));
        assert_eq!(parse(&long).unwrap_err(), InvalidPolicy::TooLong);
    }

    #[test]
    fn the_trigger_ratio_may_stand_in_two_places() {
        let ratio = |json| parse(json).unwrap().trigger_ratio();
        assert_eq!(ratio(r#"{"trigger_ratio":0.5}"#), Some(0.5));
        assert_eq!(ratio(r#"{"trigger_ratio":0.5,"config":{"trigger_ratio":1}}"#), Some(1.0));
        assert_eq!(ratio("{}"), None);
    }

    #[test]
    fn policies_are_equal_when_they_mean_the_same() {
        let equal = |a, b| parse(a).unwrap() == parse(b).unwrap();
        assert!(equal(r#"{"strategy":"skip_parts"}"#, r#"{"strategy":"skip_parts","config":{"limit":400}}"#));
        assert!(equal(r#"{"strategy":"manual"}"#, r#"{ "strategy" : "budget" }"#));
        assert!(!equal("{}", r#"{"config":{"limit":401}}"#));
        assert!(!equal("{}", r#"{"config":{"note":"kept for the client"}}"#));
        assert!(!equal("{}", r#"{"config":{"pairing":"off"}}"#));
    }

    #[test]
    fn the_trigger_is_exceeded_by_the_first_token_above() {
        let settings =
            |token_budget, trigger_ratio| Settings { token_budget, trigger_ratio, ..Settings::default() };
        assert_eq!(settings(8_000, 0.7).trigger_tokens(), 5_600);
        assert_eq!(settings(10, 0.75).trigger_tokens(), 7);
        assert_eq!(settings(u64::MAX, 1.0).trigger_tokens(), u64::MAX);
    }
}
