//! `exit.json`: how a VMM, or the agent of a pod on the host, ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The report. Whoever reads it treats it as hostile: a guest may have taken over its writer. A key that
/// a later release adds is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why.
    pub reason: Reason,
    /// The circumstances.
    #[serde(default)]
    pub message: String,
    /// The last output of the serial console; empty for an agent.
    #[serde(default)]
    pub console_tail: String,
}

/// Why a pod's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset; a VM is not started again in place.
    Reboot,
    /// The guest's kernel panicked.
    Panic,
    /// The daemon asked for it.
    Stopped,
    /// The process could not go on.
    Error,
    /// It left no report; the daemon writes this in its place.
    Killed,
    /// One that this release does not know.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// Whether the end was asked for, by the guest or by the daemon.
    #[must_use]
    pub fn is_orderly(self) -> bool {
        matches!(self, Self::PowerOff | Self::Stopped)
    }
}

/// The word that stands for it in JSON.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power_off",
            Self::Reboot => "reboot",
            Self::Panic => "panic",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Killed => "killed",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_shown_as_they_are_written() {
        for reason in [
            Reason::PowerOff,
            Reason::Reboot,
            Reason::Panic,
            Reason::Stopped,
            Reason::Error,
            Reason::Killed,
            Reason::Unknown,
        ] {
            let text = serde_json::to_value(reason).unwrap();
            assert_eq!(text, reason.to_string());
            assert_eq!(serde_json::from_value::<Reason>(text).unwrap(), reason);
        }
        let newer: Reason = serde_json::from_str(r#""suspended""#).unwrap();
        assert_eq!(newer, Reason::Unknown);
    }
}
