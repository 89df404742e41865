//! What several commands print: errors, sizes.

use std::process::ExitCode;

use crate::error::chain;

/// Prints an error with its causes and returns the exit code for it.
#[allow(clippy::print_stderr)] // Where a command's errors go.
pub(super) fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("bulkhead: {}", chain(error));
    ExitCode::FAILURE
}

/// A size for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let mut value = count as f64 / 1000.0;
    let mut unit = "kB";
    for next in UNITS {
        unit = next;
        if value < 999.95 {
            break;
        }
        value /= 1000.0;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_234_567, "1.2 MB"),
            (5_000_000_000, "5.0 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
