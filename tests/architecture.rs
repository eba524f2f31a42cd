//! Holds the layers: who may use whom, which library lives where, and which code is pure.
//!
//! The tables below are the documentation. The test reads the sources as text: it strips comments and
//! literals and looks at the paths that begin with `crate::` or with the name of a library, so that it needs
//! no compiler. Modules of the crate are always named from `crate::`, never by climbing out with `super`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Top to bottom: a module may use those of the lines below its own, and itself.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["server", "advise"],
    &["api", "archive", "cluster"],
    &["shards"],
    &["raft"],
    &["store", "peer"],
    &["journal"],
    &["tokens"],
    &["conversation"],
    &["logging"],
    &["config", "metrics", "trace"],
    // `testing` is for unit tests.
    &["files", "hold", "testing", "tls", "workers"],
];

/// Modules that must not know of some below them.
const BLIND: &[(&str, &[&str])] = &[
    // The edge speaks to `shards`; what lies behind is none of its business.
    ("api", &["raft", "store", "journal", "peer"]),
    // The journal keeps opaque bytes.
    ("journal", &["conversation", "tokens", "config"]),
    ("conversation", &["config", "metrics"]),
];

/// Where a library may be named; others come in anywhere.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("openraft", &["raft"]),
    ("sled", &["store"]),
    ("sqlx", &["archive"]),
    ("axum", &["api"]),
    ("utoipa", &["api"]),
    ("clap", &["cli", "main"]),
    ("toml", &["config", "advise"]),
    ("tiktoken_rs", &["tokens", "config"]),
    // The edge holds gauges that count its own things, such as open streams.
    ("prometheus", &["metrics", "api"]),
    ("tracing_subscriber", &["logging"]),
];

/// Code whose result depends on its arguments alone: these directories and file names ...
const PURE_DIRS: &[&str] = &["src/conversation", "src/advise"];
const PURE_FILES: &[&str] = &["placement.rs", "plan.rs", "route.rs", "state.rs", "change.rs", "founding.rs"];
/// ... name nothing that a clock, a generator, the system or the seed of a hash could change.
const IMPURE: &[&str] = &[
    "Instant",
    "SystemTime",
    "env",
    "fs",
    "net",
    "thread",
    "process",
    "io",
    "rand",
    "uuid",
    "tokio",
    "tracing",
    "HashMap",
    "HashSet",
    "RandomState",
    "println",
    "eprintln",
];

#[test]
fn dependencies_point_downwards() {
    let mut faults = Vec::new();
    for source in sources() {
        for used in source.paths_from("crate") {
            if !may_use(&source.module, &used) {
                faults.push(format!("{}: {} must not use {used}", source.path.display(), source.module));
            }
        }
    }
    assert!(faults.is_empty(), "against the layers:\n{}", faults.join("\n"));
}

#[test]
fn every_module_has_its_layer() {
    let known: BTreeSet<&str> = LAYERS.iter().flat_map(|layer| layer.iter().copied()).collect();
    let modules = sources().into_iter().map(|source| source.module);
    let unknown: BTreeSet<String> = modules.filter(|m| m != "lib" && !known.contains(m.as_str())).collect();
    assert!(unknown.is_empty(), "give these a layer: {unknown:?}");
}

#[test]
fn the_crate_documents_these_layers() {
    let text = fs::read_to_string("src/lib.rs").expect("tests run in the root of the package");
    let (_, rest) = text.split_once("//! ```text\n").expect("a block of layers");
    let (block, _) = rest.split_once("//! ```").expect("the block ends");
    let said: Vec<Vec<&str>> =
        block.lines().map(|line| line.trim_start_matches("//! ").split(", ").collect()).collect();
    assert_eq!(said, LAYERS);
}

#[test]
fn libraries_stay_where_they_belong() {
    let mut faults = Vec::new();
    for source in sources() {
        for (library, homes) in LIBRARIES {
            if source.names_library(library) && !homes.contains(&source.module.as_str()) {
                faults.push(format!("{} names {library}, which belongs to {homes:?}", source.path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_environment_is_read_in_the_configuration_only() {
    let reads = |source: &Source| {
        source.production().windows(3).any(|w| w[0] == "env" && w[1] == "::" && w[2].starts_with("var"))
    };
    let readers: BTreeSet<String> = sources().into_iter().filter(reads).map(|s| s.module).collect();
    assert_eq!(readers, BTreeSet::from(["config".to_owned()]));
}

#[test]
fn pure_code_names_nothing_impure() {
    let mut faults = Vec::new();
    let mut pure = 0;
    for source in sources().iter().filter(|source| source.is_pure()) {
        pure += 1;
        for word in source.production().iter().filter(|word| IMPURE.contains(&word.as_str())) {
            faults.push(format!("{} names {word}", source.path.display()));
        }
    }
    assert!(pure > 10, "the pure core was looked for in the wrong place");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent = |source: &Source| !source.text.starts_with("//! ") && !is_test_file(&source.path);
    let silent: Vec<PathBuf> = sources().into_iter().filter(silent).map(|source| source.path).collect();
    assert!(silent.is_empty(), "these do not open with `//!`: {silent:?}");
}

#[test]
fn the_reader_of_sources_finds_what_it_should() {
    let source = Source::new(
        PathBuf::from("src/store/a.rs"),
        r##"// use crate::api;
        use crate::{config::Config, journal::{Frame, crate_like}, self as x};
        use openraft::Raft; /* crate::shards */ const A: &str = "crate::raft"; const B: &str = r#"crate::cli"#;
        fn f<'a>(c: char) -> crate::metrics::M<'a> { if c == '"' { sled_like::x() } }
        #[cfg(test)]
        mod tests { use std::env; }"##
            .to_owned(),
    );
    assert_eq!(source.module, "store");
    assert_eq!(
        source.paths_from("crate"),
        BTreeSet::from(["config", "journal", "metrics"].map(str::to_owned))
    );
    assert!(source.names_library("openraft") && !source.names_library("sled"));
    assert!(!source.production().contains(&"env".to_owned()));
    assert!(!may_use("store", "shards") && may_use("store", "journal") && !may_use("journal", "tokens"));
}

fn may_use(module: &str, used: &str) -> bool {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let (Some(from), Some(to)) = (layer(module), layer(used)) else { return module == used };
    let blind = BLIND.iter().any(|(name, unseen)| *name == module && unseen.contains(&used));
    module == used || (from < to && !blind)
}

/// One file under `src`.
struct Source {
    path: PathBuf,
    /// The top-level module it belongs to.
    module: String,
    text: String,
    /// Identifiers and the punctuation of paths and attributes; without comments and literals.
    words: Vec<String>,
}

impl Source {
    fn new(path: PathBuf, text: String) -> Source {
        let top = path.components().nth(1).expect("src/...").as_os_str().to_string_lossy();
        let module = top.trim_end_matches(".rs").to_owned();
        let words = words(&text);
        Source { path, module, text, words }
    }

    /// The first segments of all paths that begin with `root::`, also in `root::{a, b::c}`.
    fn paths_from(&self, root: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let starts = self.words.windows(3).enumerate().filter(|(_, w)| w[0] == root && w[1] == "::");
        for (at, path) in starts {
            if path[2] == "{" {
                found.extend(group_heads(&self.words[at + 3..]));
            } else {
                found.insert(path[2].clone());
            }
        }
        found.remove("self");
        found
    }

    fn names_library(&self, library: &str) -> bool {
        let begins = |at: usize| at == 0 || self.words[at - 1] != "::";
        let path = |at: usize| self.words.get(at + 1).is_some_and(|word| word == "::");
        (0..self.words.len()).any(|at| self.words[at] == library && begins(at) && path(at))
    }

    /// The words before the unit tests.
    fn production(&self) -> &[String] {
        const TESTS: [&str; 8] = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
        let tests = self.words.windows(TESTS.len()).position(|words| words == TESTS);
        match tests {
            _ if is_test_file(&self.path) => &[],
            Some(end) => &self.words[..end],
            None => &self.words,
        }
    }

    fn is_pure(&self) -> bool {
        let in_dir = PURE_DIRS.iter().any(|dir| self.path.starts_with(dir));
        in_dir || self.path.file_name().is_some_and(|name| PURE_FILES.iter().any(|file| name == *file))
    }
}

/// The names that begin the items of a group, from behind its `{` to the matching `}`.
fn group_heads(words: &[String]) -> Vec<String> {
    let (mut depth, mut heads, mut expect) = (1, Vec::new(), true);
    for word in words {
        match word.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," if depth == 1 => expect = true,
            name if expect && depth == 1 => {
                heads.push(name.to_owned());
                expect = false;
            }
            _ => {}
        }
    }
    heads
}

fn is_test_file(path: &Path) -> bool {
    let test = |part: &str| {
        part == "tests" || part == "testing" || part == "tests.rs" || part.ends_with("_tests.rs")
    };
    path.components().any(|part| test(&part.as_os_str().to_string_lossy()))
}

/// Identifiers, and the punctuation that paths, groups and attributes are made of.
fn words(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut words) = (0, Vec::new());
    while at < chars.len() {
        let rest = &chars[at..];
        at += match rest {
            ['/', '/', ..] => until(rest, |r| r[0] == '\n'),
            ['/', '*', ..] => until(rest, |r| r.starts_with(&['*', '/'])) + 2,
            ['"', ..] => string_len(rest),
            ['\'', ..] => char_or_lifetime_len(rest),
            ['r', '"' | '#', ..] => raw_string_len(rest).unwrap_or(2),
            ['b', 'r', '"' | '#', ..] => 1,
            [':', ':', ..] => {
                words.push("::".to_owned());
                2
            }
            [first, ..] if is_word(*first) => {
                let len = until(rest, |r| !is_word(r[0]));
                words.push(rest[..len].iter().collect());
                len
            }
            [mark, ..] => {
                if "{},#[]()".contains(*mark) {
                    words.push(mark.to_string());
                }
                1
            }
            [] => break,
        };
    }
    words
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn until(rest: &[char], stop: impl Fn(&[char]) -> bool) -> usize {
    (0..rest.len()).find(|at| stop(&rest[*at..])).unwrap_or(rest.len())
}

fn string_len(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// `'a'`, `'\n'` and `'\u{1f}'` are literals; `'a` is a lifetime.
fn char_or_lifetime_len(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, tail @ ..] => 3 + until(tail, |r| r[0] == '\'') + 1,
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

/// `r"..."` and `r#"..."#`; `None` for raw identifiers.
fn raw_string_len(rest: &[char]) -> Option<usize> {
    let hashes = until(&rest[1..], |r| r[0] != '#');
    let open = 1 + hashes;
    (rest.get(open) == Some(&'"')).then(|| {
        let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        open + 1 + until(&rest[open + 1..], |r| r.starts_with(&end)) + end.len()
    })
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    let mut dirs = vec![root.join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("the sources can be listed") {
            let path = entry.expect("the sources can be listed").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source is UTF-8 text");
                let path = path.strip_prefix(root).expect("below the root").to_owned();
                sources.push(Source::new(path, text));
            }
        }
    }
    assert!(sources.len() > 20, "the sources were looked for in the wrong place");
    sources
}
