//! What a rule says of itself: every figure of a plan comes from one, and `fastpaca advise explain` prints them.

use super::document::{Document, Section};

/// Why a figure is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `area.name`.
    pub id: &'static str,
    pub title: &'static str,
    pub formula: &'static str,
    /// What goes in: options of the workload, figures, results of other rules.
    pub inputs: &'static str,
    /// Where it comes from: guides, measurements, the code.
    pub source: &'static str,
    /// Where guides contradict one another, or do not fit this server. Empty where they do not.
    pub departs: &'static str,
}

/// The guides that rules cite, with what they were written for and when.
pub const GUIDES: [(&str, &str); 5] = [
    (
        "Fastpaca",
        "\"Deployment\": hardware, three-node cluster, Postgres write-behind, of Fastpaca's first design; undated",
    ),
    (
        "StudyGuru",
        "\"Server Configuration Guide for 1K Concurrent Users\": FastAPI, MySQL, Redis, a vector database; undated",
    ),
    ("Orion", "\"Scaling Guide\" of Orion: FastAPI, Celery, Postgres on one Hetzner CAX11; 17 February 2026"),
    (
        "Flow-Like",
        "\"Scaling\" of the Flow-Like Docker Compose deployment: stateless runtimes, Postgres; undated",
    ),
    (
        "LoonFlow",
        "\"Server Hardware Requirements\" of LoonFlow: web application, database, Redis on one machine; undated",
    ),
];

/// One rule, or all of them in a table, and the guides they cite.
pub fn explain(rules: &[&Rule], id: Option<&str>) -> Option<Document> {
    let mut document = Document::new("");
    if let Some(id) = id {
        let found: Vec<&&Rule> = rules.iter().filter(|rule| rule.id == id || area(rule) == id).collect();
        found.iter().for_each(|rule| document.push(section(rule)));
        return (!found.is_empty()).then_some(document);
    }
    let rows = rules.iter().map(|rule| [rule.id.to_owned(), rule.title.to_owned()]).collect();
    let all = Section::new("Rules").paragraph(
        "`fastpaca advise explain RULE` has formula, inputs and source of one, or of all of an area.",
    );
    document.push(all.table(["rule", "answers"], rows));
    let rows = GUIDES.iter().map(|(name, what)| [(*name).to_owned(), (*what).to_owned()]).collect();
    document.push(Section::new("Guides they cite").table(["guide", "what it is"], rows));
    Some(document)
}

fn area(rule: &Rule) -> &str {
    rule.id.split_once('.').map_or(rule.id, |(area, _)| area)
}

fn section(rule: &Rule) -> Section {
    let mut items = vec![
        format!("Formula: {}", rule.formula),
        format!("Inputs: {}", rule.inputs),
        format!("Source: {}", rule.source),
    ];
    if !rule.departs.is_empty() {
        items.push(format!("Departs: {}", rule.departs));
    }
    Section::new(format!("{}: {}", rule.id, rule.title)).list(items)
}
