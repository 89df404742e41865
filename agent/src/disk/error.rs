//! What can go wrong with disks.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::blocking::EndedEarly;

/// What can go wrong with disks.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A malformed serial.
    #[error(
        "disk serial {0:?} is not 1 to 20 characters of A-Z a-z 0-9 . _ - (virtio 1.2 §5.2.6.1)"
    )]
    BadSerial(String),
    /// It did not appear in time.
    #[error("disks {} did not appear within {} ms; did the VMM attach them?", missing.join(", "), waited.as_millis())]
    Missing {
        /// Their serials.
        missing: Vec<String>,
        /// The deadline.
        waited: Duration,
    },
    /// Looking for disks failed.
    #[error("looking for disks in {what}")]
    Scan {
        /// Where.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Mounting failed.
    #[error("mounting disk {serial} ({device}, {filesystem}) at {}", target.display())]
    Mount {
        /// The disk.
        serial: String,
        /// Its device.
        device: String,
        /// As what.
        filesystem: &'static str,
        /// Where.
        target: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// A place that is no part of a disk.
    #[error(
        "layer {layer} is said to be {length} bytes of disk {disk} from byte {offset} on, which are not \
         whole sectors"
    )]
    BadPlace {
        /// The layer.
        layer: String,
        /// The disk.
        disk: String,
        /// Where it begins.
        offset: u64,
        /// Its length.
        length: u64,
    },
    /// More parts than the kernel has partitions for.
    #[error("disk {disk} has more than 255 parts")]
    TooManyParts {
        /// The disk.
        disk: String,
    },
    /// A part of a disk could not be made a block device.
    #[error("making partitions of disk {disk} ({device})")]
    Partition {
        /// The disk.
        disk: String,
        /// Its device.
        device: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Unmounting or unplugging failed.
    #[error("releasing disk {serial}: {what}")]
    Release {
        /// The disk.
        serial: String,
        /// The step.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Devices are waited for in a guest only.
    #[error(
        "disks {} are named without a file: a pod on the host cannot have disks", serials.join(", ")
    )]
    NoDevices {
        /// Which.
        serials: Vec<String>,
    },
    /// Files are mounted on the host only.
    #[error("disk {serial} is named with a file: a guest has no files of the host")]
    NotOnHost {
        /// Which.
        serial: String,
    },
    /// Blocking work did not return.
    #[error(transparent)]
    EndedEarly(#[from] EndedEarly),
}
