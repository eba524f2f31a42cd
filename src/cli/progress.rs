//! How far long work has come, with rate and time left: on standard error, and only where that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for work whose amount is known.
const BAR: &str = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec}, {eta} left";
const BYTES_BAR: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
/// And for what nobody knows the end of.
const COUNTER: &str = "{msg} {human_pos} ({per_sec})";

/// Whether anybody would see it: counting the work beforehand is not free.
pub(super) fn is_seen() -> bool {
    std::io::stderr().is_terminal()
}

/// Counted in whatever `doing` says; `total` where it is known.
pub(super) fn counting(doing: &'static str, total: Option<u64>) -> ProgressBar {
    bar(doing, total, if total.is_some() { BAR } else { COUNTER })
}

pub(super) fn bytes(doing: &'static str, total: u64) -> ProgressBar {
    bar(doing, Some(total), BYTES_BAR)
}

fn bar(doing: &'static str, total: Option<u64>, template: &str) -> ProgressBar {
    if !is_seen() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length().with_message(doing);
    if let Some(total) = total {
        bar.set_length(total);
    }
    bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_such() {
        for template in [BAR, BYTES_BAR, COUNTER] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
