//! The last CPU reading of each container and pod, for its rate.

use std::{collections::HashMap, sync::Mutex};

use bulkhead_common::lock;

/// Two samples closer together than this give no rate.
const SHORTEST_SPAN: i64 = 100_000_000;

/// The last CPU reading of each container, for its rate.
#[derive(Debug, Default)]
pub(super) struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    used: u64,
    /// The rate up to `at`, given again to those who ask too soon after.
    rate: u64,
}

impl Samples {
    /// Takes a reading; gives the rate in billionths of a CPU since the one before, if there is.
    pub(super) fn rate(&self, id: &str, at: i64, used: u64) -> Option<u64> {
        let mut samples = lock(&self.0);
        let Some(last) = samples.get(id).copied() else {
            samples.insert(id.to_owned(), Sample { at, used, rate: 0 });
            return None;
        };
        let span = at.saturating_sub(last.at);
        if span < 0 {
            // The clock was set back: the new time counts, or there were no rate for as long as that.
            samples.insert(id.to_owned(), Sample { at, used, ..last });
            return Some(last.rate);
        }
        if span < SHORTEST_SPAN {
            return Some(last.rate);
        }
        // ns of CPU in ns of time, in billionths; in u128, because both can be large.
        let spent = u128::from(used.saturating_sub(last.used)) * 1_000_000_000;
        let rate = u64::try_from(spent / u128::from(span.unsigned_abs())).unwrap_or(u64::MAX);
        samples.insert(id.to_owned(), Sample { at, used, rate });
        Some(rate)
    }

    pub(super) fn forget(&self, id: &str) {
        lock(&self.0).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_clock_that_is_set_back_freezes_no_rate() {
        let samples = Samples::default();
        assert_eq!(samples.rate("a", 100 * SECOND, 0), None);
        assert_eq!(
            samples.rate("a", 101 * SECOND, 500_000_000),
            Some(500_000_000)
        );
        assert_eq!(
            samples.rate("a", 10 * SECOND, 600_000_000),
            Some(500_000_000)
        );
        assert_eq!(
            samples.rate("a", 11 * SECOND, 850_000_000),
            Some(250_000_000)
        );
    }

    #[test]
    fn a_rate_is_the_use_between_two_readings() {
        let samples = Samples::default();
        let second = 1_000_000_000;
        assert_eq!(samples.rate("c", second, 500), None);
        assert_eq!(
            samples.rate("c", 2 * second, 250_000_500),
            Some(250_000_000)
        );
        assert_eq!(
            samples.rate("c", 2 * second + 1, 250_000_501),
            Some(250_000_000)
        );
        // A counter that went back (a container of the same name made anew) is no huge rate.
        assert_eq!(samples.rate("c", 3 * second, 0), Some(0));
        samples.forget("c");
        assert_eq!(samples.rate("c", 4 * second, 0), None);
    }
}
