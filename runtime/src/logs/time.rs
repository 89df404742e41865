//! Times in the log: RFC 3339 with nanoseconds, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const SECOND: i64 = 1_000_000_000;

/// Now, in nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Writes `2026-11-23T12:00:00.000000000Z`. Times before 1970 count as 1970: the guest's clock is
/// not to be trusted with the line's shape.
pub(super) fn append(nanoseconds: i64, to: &mut Vec<u8>) {
    let nanoseconds = nanoseconds.max(0);
    let (seconds, fraction) = (nanoseconds / SECOND, nanoseconds % SECOND);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let text =
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z");
    to.extend_from_slice(text.as_bytes());
}

/// The Gregorian date of a day counted from 1970-01-01. The year is counted from March, so that
/// the leap day is its last: then the months' lengths follow one line, and eras of 400 years
/// (146,097 days) repeat.
fn civil(days: i64) -> (i64, i64, i64) {
    let since = days + 719_468; // days from 0000-03-01
    let (era, of_era) = (since.div_euclid(146_097), since.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanoseconds: i64) -> String {
        let mut out = Vec::new();
        append(nanoseconds, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(-5), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400 * SECOND), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(
            text(1_709_251_199 * SECOND + 1),
            "2024-02-29T23:59:59.000000001Z"
        );
        assert_eq!(
            text(1_795_435_200 * SECOND),
            "2026-11-23T12:00:00.000000000Z"
        );
        assert_eq!(text(i64::MAX), "2262-04-11T23:47:16.854775807Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(-1);
        for day in 0..150_000 {
            let now = civil(day);
            let next_day = (before.0, before.1, before.2 + 1);
            let next_month = (before.0, before.1 + 1, 1);
            let next_year = (before.0 + 1, 1, 1);
            assert!(
                [next_day, next_month, next_year].contains(&now),
                "{before:?} then {now:?}"
            );
            before = now;
        }
    }
}
