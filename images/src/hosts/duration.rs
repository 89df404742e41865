//! Durations as Go writes them (`time.ParseDuration`): `300ms`, `1.5h`, `2h45m`.

use std::time::Duration;

/// Reads one; `None` if it is none, is negative or does not fit.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, tail) = rest.split_at(number);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        sum = sum.checked_add(piece(digits, unit)?)?;
        // Go's are signed nanoseconds.
        i64::try_from(sum.as_nanos()).ok()?;
        rest = tail;
    }
    Some(sum)
}

fn piece(digits: &str, unit: &str) -> Option<Duration> {
    let nanos: u64 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let number = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<u64>().ok()
        }
    };
    let mut total = number(whole)?.checked_mul(nanos)?;
    // Digits behind a nanosecond's share are too small to count.
    let fraction: String = fraction.chars().take(18).collect();
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(number(&fraction)?) * u128::from(nanos) / scale;
    total = total.checked_add(u64::try_from(part).ok()?)?;
    Some(Duration::from_nanos(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("300ms", 300),
            ("1s", 1_000),
            ("+1s", 1_000),
            ("1.5h", 5_400_000),
            ("2h45m", 9_900_000),
            ("1m30s", 90_000),
            (".5s", 500),
            ("1.s", 1_000),
            ("3000us", 3),
            ("3000µs", 3),
            ("5000000ns", 5),
            ("0.30000000000000000000000s", 300),
        ] {
            assert_eq!(
                parse(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "1",
            "s",
            "1x",
            "-1s",
            ".s",
            "1..5s",
            "1 s",
            "99999999999999999999s",
            "3000000h3000000h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_is_total(text in "\\PC{0,30}|([0-9.]{0,5}(ns|us|ms|s|m|h)){0,4}") {
            let _ = parse(&text);
        }
    }
}
