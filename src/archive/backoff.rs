//! How long to leave Postgres alone after failures: capped exponential, with jitter. Pure.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const MAX: Duration = Duration::from_secs(30);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one more failure: between half and all of what doubles with each, by `random`.
    pub(super) fn failed(&mut self, random: u32) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        full / 2 + full.mul_f64(0.5 * f64::from(random) / f64::from(u32::MAX))
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_begin_again() {
        let mut backoff = Backoff::default();
        let least: Vec<u128> = (0..9).map(|_| backoff.failed(0).as_millis()).collect();
        assert_eq!(least, [125, 250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
        assert_eq!(backoff.failed(u32::MAX), MAX);
        backoff.succeeded();
        assert_eq!(backoff.failed(u32::MAX), FIRST);
    }
}
