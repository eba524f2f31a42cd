//! What the kernel says of this machine, where a node that is looked at runs on it: others may use up what the node
//! needs. A busy CPU shows in the node's own latencies, and is not looked at.

use std::fs;

use crate::advise::check::{Lasting, Seen};
use crate::advise::thresholds::Signal;
use crate::metrics::{MEMINFO, meminfo_bytes};

/// Memory in use, as a share of what the machine has. None where there is no such kernel.
pub(super) fn memory() -> Option<Seen> {
    let used = memory_used(&fs::read_to_string(MEMINFO).ok()?)?;
    Some(Seen {
        signal: Signal::Memory,
        of: "this machine".to_owned(),
        value: Ok(used),
        lasting: Lasting::Momentary,
    })
}

/// What can be given back at once, such as cached files, is not in use.
fn memory_used(meminfo: &str) -> Option<f64> {
    Some(1.0 - meminfo_bytes(meminfo, "MemAvailable")? / meminfo_bytes(meminfo, "MemTotal")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_given_back_is_not_in_use() {
        let meminfo = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n";
        assert_eq!(memory_used(meminfo), Some(0.4));
        assert_eq!(memory_used("MemTotal: 1000 kB\n"), None);
        assert!(memory().unwrap().value.is_ok_and(|share| (0.0..=1.0).contains(&share)));
    }
}
