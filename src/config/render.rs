//! The settings as text: what is in force, the commented sample file, and the tables of the documentation.

use std::fmt::Write;

use super::field::quote;
use super::settings::{SETTINGS, Setting};
use super::source::Origin;
use super::{Config, defaults};

/// Width the comments of the sample are wrapped to.
const COMMENT_COLUMNS: usize = 100;

/// Widest `key = value` that others are aligned to.
const ALIGNED_COLUMNS_MAX: usize = 60;

/// A TOML file that would give the same configuration, secrets apart.
pub(super) fn in_force(config: &Config, origins: &[Origin]) -> String {
    let mut config = config.clone();
    let lines: Vec<(String, String)> = SETTINGS
        .iter()
        .zip(origins)
        .map(|(setting, origin)| (assignment(setting, &mut config), explain(setting, *origin)))
        .collect();
    let widths = lines.iter().map(|(line, _)| line.len());
    let column = widths.filter(|width| *width <= ALIGNED_COLUMNS_MAX).max().unwrap_or(0);
    let mut text = String::new();
    for (line, origin) in lines {
        writeln!(text, "{line:column$}  # {origin}").expect("writing to a string cannot fail");
    }
    text
}

/// The sample configuration file: every setting, commented out, at its default.
pub fn sample() -> String {
    let mut text = String::from(
        "# Fastpaca: every setting, at its default. Uncomment what you want to change and start the server\n\
         # with `--config FILE`. The environment wins over this file: FASTPACA_ and the key in capitals.\n",
    );
    let mut section = "";
    for setting in SETTINGS {
        if setting.section != section {
            section = setting.section;
            text.push_str(&format!("\n# --- {section} ---\n"));
        }
        text.push('\n');
        text.push_str(&commented(setting.doc));
        text.push_str(&commented(&format!("Accepts {}.", setting.accepts())));
        text.push_str(&format!("#{} = {}\n", setting.key, default_or_example(setting)));
    }
    text
}

/// The tables of `docs/configuration.md`.
pub fn markdown_tables() -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in SETTINGS {
        if setting.section != section {
            section = setting.section;
            text.push_str(&format!(
                "\n### {section}\n\n| Variable | Key | Default | Accepts | Meaning |\n| --- | --- | --- | --- | --- |\n"
            ));
        }
        text.push_str(&format!(
            "| `{}` | `{}` | {} | {} | {} |\n",
            setting.env_name(),
            setting.key,
            setting.default.map_or_else(|| "unset".to_owned(), |default| format!("`{default}`")),
            setting.accepts(),
            setting.doc,
        ));
    }
    text
}

/// `key = value`, commented out where there is no value to assign.
fn assignment(setting: &Setting, config: &mut Config) -> String {
    let value = (setting.field)(config).show();
    let line = format!("{} = {value}", setting.key);
    if value == quote("") { format!("# {line}") } else { line }
}

fn explain(setting: &Setting, origin: Origin) -> String {
    match origin {
        Origin::Environment => format!("environment: {}", setting.env_name()),
        Origin::File => "file".to_owned(),
        Origin::DataDir => "data directory".to_owned(),
        Origin::Default if setting.default.is_none() => "unset".to_owned(),
        Origin::Default => "default".to_owned(),
    }
}

fn default_or_example(setting: &Setting) -> String {
    match setting.default {
        Some(_) => (setting.field)(&mut defaults()).show(),
        None => quote(setting.example),
    }
}

/// `text` as comment lines of at most [`COMMENT_COLUMNS`].
fn commented(text: &str) -> String {
    let mut lines = String::from("#");
    let mut width = 1;
    for word in text.split_whitespace() {
        if width + 1 + word.len() > COMMENT_COLUMNS {
            lines.push_str("\n#");
            width = 1;
        }
        lines.push(' ');
        lines.push_str(word);
        width += 1 + word.len();
    }
    lines.push('\n');
    lines
}
