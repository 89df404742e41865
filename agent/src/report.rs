//! An error in one line, with its causes.

use std::error::Error;
use std::fmt;

/// Displays an error and its causes, `outer: inner: innermost`. Each error's own text leaves its
/// cause to `source()`, so every cause is there once.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// An error's text with its causes.
pub fn report(error: &(dyn Error + 'static)) -> String {
    Report(error).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::ContainerError;
    use crate::disk::DiskError;

    #[test]
    fn each_cause_is_printed_once_however_errors_are_wrapped() {
        let error = ContainerError::Disk(DiskError::Scan {
            what: "/sys/block",
            error: std::io::Error::other("gone"),
        });
        assert_eq!(report(&error), "looking for disks in /sys/block: gone");
    }
}
