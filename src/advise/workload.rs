//! The workload that a plan is for: how many users do what, and how often. Read from options and files, and checked.
//!
//! A value is the option's, else the file's, else the preset's. What is wrong is refused with one line that names the
//! option, whether it came from the command line or a file, where the key is the option without dashes in front.

use serde::Serialize;

use super::rule::Rule;

/// What a plan is for. Shares are of 1, not of 100.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Workload {
    pub preset: String,
    pub users: u64,
    pub peak_share: f64,
    pub messages_per_user_minute: f64,
    pub peak_factor: f64,
    pub busy_hours_per_day: f64,
    pub message_bytes: u64,
    pub tokens_per_message: u64,
    pub messages_per_conversation: u64,
    pub windows_per_message: f64,
    pub window_messages: u64,
    pub streams_share: f64,
    /// What the disks are sized for. Nothing is deleted when they are over.
    pub retention_days: u64,
    /// All stay, if `None`.
    pub tail_keep: Option<u64>,
    pub nodes: Nodes,
    pub postgres: bool,
    /// A provider of the catalogue; all of them when none is named.
    pub provider: Option<String>,
    pub growth_per_month: f64,
}

/// How many nodes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Nodes {
    One,
    Three,
    Auto,
}

/// What cannot be planned for. One line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInput {
    #[error("--{option} {value}: expected {expected}")]
    Value { option: &'static str, value: String, expected: String },
    #[error("{file}: {key}: no such option of a workload{hint}")]
    UnknownKey { file: String, key: String, hint: String },
    #[error("{file}: {why}")]
    File { file: String, why: String },
    #[error("--{option}: {why}")]
    Impossible { option: &'static str, why: String },
}

impl BadInput {
    pub fn value(option: &'static str, value: &str, expected: impl Into<String>) -> BadInput {
        /// Longest part of a bad value that is repeated.
        const SHOWN_CHARS_MAX: usize = 40;
        let shown: String = value.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
        BadInput::Value { option, value: shown, expected: expected.into() }
    }
}

/// The names of the presets.
pub const PRESETS: [&str; 5] = ["development", "small-team", "medium", "large", "1k-users"];

pub const SIZES: Rule = Rule {
    id: "workload.presets",
    title: "what a preset stands for",
    formula: "users: development 5, all of them active and none added; small-team 50, 1k-users 1,000, medium 5,000 and large 50,000, of whom 30 % are active at once, and \
              5 % more every month; disks are sized for 90 days, of development and large for 30; machines and nodes follow from that (tier.*, topology.nodes)",
    inputs: "--preset, --from, and every other option, which wins over the preset",
    source: "Flow-Like: the names Development, Small team, Medium and Large; StudyGuru: 1,000 users, and what one of them does (load.*)",
    departs: "Flow-Like's table has no users, but machines: Development 1 API and 1 runtime of 2 CPU and 4 GB, Small team 1 and 2 of 4 CPU and 8 GB, Medium 2 and 4 of 4 CPU \
              and 8 GB, Large 3 and 6 or more of 8 CPU and 16 GB. Its runtimes are stateless and execute what users build. A node here stores and serves messages: \
              its replicas are three for safety, not one more for each step, and its machine is mostly a disk.",
};

/// What is planned for when nothing is said.
pub const DEFAULT_PRESET: &str = "small-team";

/// The options that say a number or a word about the workload, with what they mean.
pub const OPTIONS: [(&str, &str); 17] = [
    ("users", "Users in all"),
    ("peak-share", "Share of the users that is active at once in the busy hours"),
    ("messages-per-user-minute", "Messages appended for each active user in a minute, by both sides"),
    ("peak-factor", "How many times the mean of the busy hours the highest rate is"),
    ("busy-hours-per-day", "Hours of a day with that activity; the rest counts as quiet"),
    ("message-bytes", "Bytes of a message's JSON"),
    ("tokens-per-message", "Tokens of a message; 0 when clients send their own counts"),
    ("messages-per-conversation", "Messages of a conversation by the time it is over"),
    ("windows-per-message", "Reads of the window for every message appended"),
    ("window-messages", "Messages in a window"),
    ("streams-share", "Open streams for each active user"),
    (
        "retention-days",
        "Days of messages that the disks are sized for; nothing is deleted when they are over",
    ),
    (
        "tail-keep",
        "Newest messages of a conversation that stay on the nodes' disks (FASTPACA_TAIL_KEEP); needs --postgres true",
    ),
    ("nodes", "1, 3 or auto"),
    ("postgres", "Whether there is an archive in Postgres: true or false"),
    ("provider", "Cost of this provider of the catalogue only"),
    ("growth-per-month", "Growth of the number of users in a month: 0.05 is 5 %"),
];

impl Workload {
    /// The preset of this name.
    pub fn preset(name: &str) -> Option<Workload> {
        let base = Workload {
            preset: name.to_owned(),
            users: 1_000,
            peak_share: 0.3,
            messages_per_user_minute: 3.0,
            peak_factor: 10.0 / 3.0,
            busy_hours_per_day: 8.0,
            message_bytes: 600,
            tokens_per_message: 120,
            messages_per_conversation: 50,
            windows_per_message: 1.0,
            window_messages: 50,
            streams_share: 0.5,
            retention_days: 90,
            tail_keep: None,
            nodes: Nodes::Auto,
            postgres: false,
            provider: None,
            growth_per_month: 0.05,
        };
        Some(match name {
            "development" => {
                Workload { users: 5, peak_share: 1.0, retention_days: 30, growth_per_month: 0.0, ..base }
            }
            "small-team" => Workload { users: 50, ..base },
            "medium" => Workload { users: 5_000, ..base },
            "large" => Workload { users: 50_000, retention_days: 30, ..base },
            "1k-users" => base,
            _ => return None,
        })
    }

    /// Sets what an option says.
    pub fn set(&mut self, option: &str, value: &str) -> Result<(), BadInput> {
        let number = |option, range| parse_number(option, value, range);
        let count = |option, low, high| parse_count(option, value, low, high);
        match option {
            "users" => self.users = count("users", 1, 1_000_000_000)?,
            "peak-share" => self.peak_share = number("peak-share", (0.0, 1.0))?,
            "messages-per-user-minute" => {
                self.messages_per_user_minute = number("messages-per-user-minute", (0.0, 10_000.0))?;
            }
            "peak-factor" => self.peak_factor = parse_from("peak-factor", value, (1.0, 1_000.0))?,
            "busy-hours-per-day" => self.busy_hours_per_day = number("busy-hours-per-day", (0.0, 24.0))?,
            "message-bytes" => self.message_bytes = count("message-bytes", 1, 64 << 20)?,
            "tokens-per-message" => self.tokens_per_message = count("tokens-per-message", 0, 64 << 20)?,
            "messages-per-conversation" => {
                self.messages_per_conversation = count("messages-per-conversation", 1, 1_000_000_000)?;
            }
            "windows-per-message" => {
                self.windows_per_message = parse_from("windows-per-message", value, (0.0, 1_000.0))?;
            }
            "window-messages" => self.window_messages = count("window-messages", 1, 100_000)?,
            "streams-share" => self.streams_share = parse_from("streams-share", value, (0.0, 1.0))?,
            "retention-days" => self.retention_days = count("retention-days", 1, 36_500)?,
            "tail-keep" => self.tail_keep = Some(count("tail-keep", 0, 1_000_000_000)?),
            "nodes" => self.nodes = parse_nodes(value)?,
            "postgres" => self.postgres = parse_flag("postgres", value)?,
            "provider" => self.provider = Some(value.to_owned()),
            "growth-per-month" => self.growth_per_month = parse_from("growth-per-month", value, (0.0, 10.0))?,
            _ => unreachable!("asked for options of the table only"),
        }
        Ok(())
    }

    /// Rules that span several options; the option named is the one to change.
    pub fn check(&self) -> Result<(), BadInput> {
        if self.tokens_per_message > self.message_bytes {
            let expected = format!("at most one for each of the --message-bytes ({})", self.message_bytes);
            return Err(BadInput::value(
                "tokens-per-message",
                &self.tokens_per_message.to_string(),
                expected,
            ));
        }
        if let (Some(keep), false) = (self.tail_keep, self.postgres) {
            let expected = "--postgres true beside it: what is trimmed must be archived";
            return Err(BadInput::value("tail-keep", &keep.to_string(), expected));
        }
        Ok(())
    }
}

/// What was said about a workload.
#[derive(Debug, Clone, Default)]
pub struct Said {
    pub preset: Option<String>,
    /// The file's name and text.
    pub file: Option<(String, String)>,
    /// Options of the command line and their values.
    pub options: Vec<(&'static str, String)>,
}

impl Said {
    /// The workload that it amounts to.
    pub fn workload(&self) -> Result<Workload, BadInput> {
        let file = self.file.as_ref().map(|(name, text)| read_file(name, text)).transpose()?;
        let in_file = file.iter().flatten();
        let preset_in_file =
            in_file.clone().find(|(key, _)| *key == "preset").map(|(_, value)| value.as_str());
        let preset = self.preset.as_deref().or(preset_in_file).unwrap_or(DEFAULT_PRESET);
        let unknown = || BadInput::value("preset", preset, format!("one of {}", PRESETS.join(", ")));
        let mut workload = Workload::preset(preset).ok_or_else(unknown)?;
        for (key, value) in in_file.filter(|(key, _)| *key != "preset") {
            workload.set(key, value)?;
        }
        for (option, value) in &self.options {
            workload.set(option, value)?;
        }
        workload.check()?;
        Ok(workload)
    }
}

/// The file's options and their values.
fn read_file(name: &str, text: &str) -> Result<Vec<(&'static str, String)>, BadInput> {
    let file = name.to_owned();
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let why = error.message().lines().collect::<Vec<_>>().join(" ");
        BadInput::File { file: file.clone(), why: format!("{why}: expected TOML, `users = 1000`") }
    })?;
    let mut said = Vec::new();
    for (key, value) in &table {
        let names = OPTIONS.iter().map(|(name, _)| *name).chain(["preset"]);
        let Some(option) = names.into_iter().find(|name| *name == key.replace('_', "-")) else {
            let hint = format!("; there are preset, {}", OPTIONS.map(|(name, _)| name).join(", "));
            return Err(BadInput::UnknownKey { file, key: key.clone(), hint });
        };
        let value = match value {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        said.push((option, value));
    }
    Ok(said)
}

/// Above `low`, up to `high`.
fn parse_number(option: &'static str, value: &str, (low, high): (f64, f64)) -> Result<f64, BadInput> {
    let number = value.trim().parse::<f64>().ok().filter(|number| *number > low && *number <= high);
    number.ok_or_else(|| BadInput::value(option, value, format!("a number above {low} and up to {high}")))
}

/// From `low` to `high`.
fn parse_from(option: &'static str, value: &str, (low, high): (f64, f64)) -> Result<f64, BadInput> {
    let number = value.trim().parse::<f64>().ok().filter(|number| (low..=high).contains(number));
    number.ok_or_else(|| BadInput::value(option, value, format!("a number from {low} to {high}")))
}

fn parse_count(option: &'static str, value: &str, low: u64, high: u64) -> Result<u64, BadInput> {
    let count =
        value.trim().replace('_', "").parse::<u64>().ok().filter(|count| (low..=high).contains(count));
    count.ok_or_else(|| BadInput::value(option, value, format!("a whole number from {low} to {high}")))
}

fn parse_nodes(value: &str) -> Result<Nodes, BadInput> {
    match value {
        "1" => Ok(Nodes::One),
        "3" => Ok(Nodes::Three),
        "auto" => Ok(Nodes::Auto),
        "2" => Err(BadInput::value(
            "nodes",
            value,
            "1, 3 or auto (two nodes are both needed for a write: they survive less than one)",
        )),
        _ => Err(BadInput::value("nodes", value, "1, 3 or auto")),
    }
}

fn parse_flag(option: &'static str, value: &str) -> Result<bool, BadInput> {
    value.parse().map_err(|_| BadInput::value(option, value, "true or false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(options: &[(&'static str, &str)]) -> Result<Workload, BadInput> {
        let options = options.iter().map(|(option, value)| (*option, (*value).to_owned())).collect();
        Said { options, ..Said::default() }.workload()
    }

    #[test]
    fn presets_are_there_and_pass_their_own_checks() {
        for name in PRESETS {
            Workload::preset(name).unwrap().check().unwrap();
        }
        assert_eq!(said(&[]).unwrap(), Workload::preset(DEFAULT_PRESET).unwrap());
    }

    #[test]
    fn options_win_over_the_file_and_the_file_over_the_preset() {
        let file = "preset = \"1k-users\"\nusers = 2_000\nmessage_bytes = 900\nnodes = 3\npostgres = false\n";
        let said = Said {
            preset: None,
            file: Some(("w.toml".into(), file.into())),
            options: vec![("message-bytes", "1000".into())],
        };
        let workload = said.workload().unwrap();
        assert_eq!((workload.users, workload.message_bytes, workload.nodes), (2_000, 1_000, Nodes::Three));
        assert_eq!(workload.preset, "1k-users");
    }

    #[test]
    fn what_is_absurd_is_refused_by_name() {
        let cases = [
            ("users", "0"),
            ("users", "-1"),
            ("users", "1.5"),
            ("users", "99999999999999999999"),
            ("users", ""),
            ("peak-share", "1.1"),
            ("peak-share", "0"),
            ("peak-share", "NaN"),
            ("peak-share", "-0.1"),
            ("messages-per-user-minute", "inf"),
            ("messages-per-user-minute", "0"),
            ("peak-factor", "0.5"),
            ("busy-hours-per-day", "25"),
            ("message-bytes", "0"),
            ("tokens-per-message", "601"),
            ("windows-per-message", "-1"),
            ("window-messages", "0"),
            ("streams-share", "2"),
            ("retention-days", "0"),
            ("tail-keep", "100"),
            ("nodes", "2"),
            ("nodes", "4"),
            ("postgres", "maybe"),
            ("growth-per-month", "-0.1"),
            ("growth-per-month", "1e9"),
            ("messages-per-conversation", "0"),
        ];
        for (option, value) in cases {
            let line = said(&[(option, value)]).unwrap_err().to_string();
            assert!(
                line.starts_with(&format!("--{option} {value}: expected")) && line.lines().count() == 1,
                "{line}"
            );
        }
    }

    #[test]
    fn files_are_held_to_the_same() {
        let file = |text: &str| {
            Said { file: Some(("w.toml".into(), text.into())), ..Said::default() }
                .workload()
                .unwrap_err()
                .to_string()
        };
        assert!(file("users = 0").starts_with("--users 0: expected"), "{}", file("users = 0"));
        assert!(file("user = 1").starts_with("w.toml: user: no such option"), "{}", file("user = 1"));
        assert!(file("users = ").starts_with("w.toml: "), "{}", file("users = "));
        assert!(file("preset = \"huge\"").starts_with("--preset huge: expected one of"));
        assert!(file("peak-share = nan").starts_with("--peak-share nan"));
    }
}
