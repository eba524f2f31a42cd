//! The presets' plans as they are printed, and the page of the documentation that the thresholds make.

use std::fs;
use std::path::PathBuf;

use fastpaca::advise::workload::PRESETS;
use fastpaca::advise::{SCHEMA_VERSION, thresholds};
use serde_json::Value;

use super::said;

#[test]
fn the_presets_give_these_plans() {
    for preset in PRESETS {
        let text = said(&["plan", "--preset", preset]);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(!text.contains('\x1b'), "no colours but on a terminal");
        check(&format!("tests/advise/golden/{preset}.txt"), |_| text);
    }
    check("tests/advise/golden/1k-users.md", |_| {
        said(&["plan", "--preset", "1k-users", "--format", "markdown"])
    });
    check("tests/advise/golden/1k-users.json", |_| {
        said(&["plan", "--preset", "1k-users", "--format", "json"])
    });
}

/// Every member that the JSON form has, at any depth but inside of lists, is in the documentation's table.
#[test]
fn the_json_form_is_documented() {
    let plan: Value = serde_json::from_str(&said(&["plan", "--format", "json"])).unwrap();
    assert_eq!(plan["schema_version"], SCHEMA_VERSION);
    let page = fs::read_to_string(root("docs/advise.md")).unwrap();
    for member in plan.as_object().unwrap().keys() {
        assert!(page.contains(&format!("| `{member}` |")), "docs/advise.md does not tell of {member}");
    }
}

#[test]
fn a_workload_may_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("workload.toml");
    fs::write(&file, "preset = \"1k-users\"\nusers = 2_000\n").unwrap();
    let from_file = said(&["plan", "--from", file.to_str().unwrap()]);
    assert_eq!(from_file, said(&["plan", "--preset", "1k-users", "--users", "2000"]));
}

/// However an archive is asked for, the plan says what to set for it.
#[test]
fn an_archive_is_part_of_the_settings() {
    let plan =
        |archive: &[&str]| said(&[&["plan"], archive, &["--tail-keep", "200", "--format", "json"]].concat());
    let text = plan(&["--postgres", "true"]);
    assert_eq!(text, plan(&["--postgres"]));
    assert_eq!(text, plan(&["--postgres=true"]));
    let plan: Value = serde_json::from_str(&text).unwrap();
    let settings = plan["settings"].as_array().unwrap();
    let value = |name: &str| &settings.iter().find(|setting| setting["name"] == name).unwrap()["value"];
    assert_eq!(value("FASTPACA_TAIL_KEEP"), "200");
    assert_eq!(value("FASTPACA_POSTGRES_URL"), "(your own)");
}

#[test]
fn every_rule_explains_itself() {
    let all: Value = serde_json::from_str(&said(&["explain", "--format", "json"])).unwrap();
    for rule in all.as_array().unwrap() {
        let id = rule["id"].as_str().unwrap();
        let text = said(&["explain", id]);
        assert!(text.contains(rule["title"].as_str().unwrap()) && text.contains("Formula:"), "{text}");
        assert!(said(&["explain"]).contains(id));
    }
    assert!(said(&["explain", "memory"]).matches("Formula:").count() >= 5);
}

#[test]
fn the_documentation_of_thresholds_is_made_from_the_table() {
    const BEGIN: &str = "<!-- thresholds: generated, see tests/advise/golden.rs -->\n";
    const END: &str = "\n<!-- end of thresholds -->";
    check("docs/advise.md", |text| {
        let (before, rest) = text.split_once(BEGIN).expect("the page marks where the table begins");
        let (_, after) = rest.split_once(END).expect("the page marks where the table ends");
        format!("{before}{BEGIN}\n{}{END}{after}", thresholds::markdown_table())
    });
}

pub(super) fn root(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// Holds a file to what `generate` makes of it, or writes it when blessed.
#[track_caller]
pub(super) fn check(file: &str, generate: impl FnOnce(&str) -> String) {
    let text = fs::read_to_string(root(file)).unwrap_or_default();
    let expected = generate(&text);
    if std::env::var_os("BLESS").is_some() {
        fs::write(root(file), &expected).expect("the file is written");
    } else {
        assert!(
            text == expected,
            "{file} is out of date: run `BLESS=1 cargo test --test advise`\n{expected}"
        );
    }
}
