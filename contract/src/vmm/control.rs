//! Control requests and answers, and what is said at the start.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::MacAddress;

/// The most files one disk may consist of: what one message carries (`SCM_MAX_FD` is 253), and fewer
/// than Linux has partitions for.
pub const MAX_PARTS: usize = 240;
/// Bytes that the length of a part is a multiple of: file systems' blocks.
pub const PART_ALIGNMENT: u64 = 4096;

/// What the daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Let a held VM run.
    Boot {},
    /// Stop the vCPUs and quiesce the devices.
    Pause {},
    /// Go on.
    Resume {},
    /// Write state and memory to the two descriptors.
    Snapshot {},
    /// Add a disk; its descriptor comes along, or one for each of its parts.
    Attach {
        /// The disk.
        disk: AttachDisk,
    },
    /// Add a network device; its tap comes along, and after it /dev/vhost-net if the kernel is to
    /// move its frames.
    AttachNet {
        /// The device.
        net: AttachNet,
    },
    /// Take a disk away that the guest has let go of.
    Detach {
        /// Which.
        id: String,
    },
    /// Counters.
    Metrics {},
    /// Change how many vCPUs there are and how much memory the guest should have.
    Resize(Resize),
    /// Say which of the host's processors the vCPUs run on.
    Pin(Pin),
    /// End.
    Stop {},
}

/// A new size. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// At least so many vCPUs are there for the guest to bring online; they never become fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// How much memory the guest should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// How long the answer may wait for the guest to have it, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u32>,
}

/// Where vCPUs run, of what the VMM's cgroup leaves. Whatever was said before is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// A vCPU that none of them names runs anywhere.
    pub groups: Vec<PinGroup>,
}

/// vCPUs that run on the same processors of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinGroup {
    /// Their numbers, each in one group at most.
    pub vcpus: Vec<u8>,
    /// Numbers of the host's processors; at least one.
    pub cpus: Vec<u16>,
}

/// A disk to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// Its serial.
    pub id: String,
    /// Refuse writes.
    pub read_only: bool,
    /// How many queues.
    pub queues: u16,
    /// Where files one after the other are the disk: how many bytes of it each is, which is the
    /// file's length rounded up to [`PART_ALIGNMENT`]. Zeroes fill the rest. Such a disk is
    /// read-only. Empty: one file is the disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<u64>,
}

/// A network device to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachNet {
    /// Its name, for messages and snapshots.
    pub id: String,
    /// The address.
    pub mac: MacAddress,
    /// The greatest packet, bytes.
    pub mtu: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

/// What the VMM answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Ok(Done),
    /// It was not.
    Error(Failure),
}

/// The parts an answer may have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Where a device was put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Counters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<serde_json::Value>,
    /// How much memory the guest has after a resize.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request or the configuration is invalid.
    BadRequest,
    /// There is no such device.
    NotFound,
    /// There is one already.
    Exists,
    /// Not in this state of the VM or device.
    WrongState,
    /// The bus is full.
    NoSlot,
    /// Not built yet.
    Unsupported,
    /// The system refused something.
    Io,
    /// Everything else.
    Internal,
    /// One that this release does not know.
    #[serde(other)]
    Unknown,
}

/// The word that stands for it in JSON.
impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest => "bad_request",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::WrongState => "wrong_state",
            Self::NoSlot => "no_slot",
            Self::Unsupported => "unsupported",
            Self::Io => "io",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        })
    }
}

/// The one line on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Started {
    /// It runs.
    Pid {
        /// As the caller's PID namespace sees it.
        pid: i32,
    },
    /// It does not.
    Error {
        /// Why.
        error: Failure,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_shown_as_they_are_written() {
        for kind in [
            ErrorKind::BadRequest,
            ErrorKind::NotFound,
            ErrorKind::Exists,
            ErrorKind::WrongState,
            ErrorKind::NoSlot,
            ErrorKind::Unsupported,
            ErrorKind::Io,
            ErrorKind::Internal,
            ErrorKind::Unknown,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
        let newer: ErrorKind = serde_json::from_str(r#""overloaded""#).unwrap();
        assert_eq!(newer, ErrorKind::Unknown);
    }

    #[test]
    fn answers_are_what_the_contract_says() {
        let text = |answer: &Answer| serde_json::to_string(answer).unwrap();
        assert_eq!(text(&Answer::Ok(Done::default())), r#"{"ok":{}}"#);
        let slot = Done {
            slot: Some("00:05.2".into()),
            ..Done::default()
        };
        assert_eq!(text(&Answer::Ok(slot)), r#"{"ok":{"slot":"00:05.2"}}"#);
        let failure = Failure {
            kind: ErrorKind::NoSlot,
            message: "m".into(),
        };
        assert_eq!(
            text(&Answer::Error(failure)),
            r#"{"error":{"kind":"no_slot","message":"m"}}"#
        );
    }
}
