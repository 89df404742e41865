//! Block devices and their serials in sysfs, and PCI's rescan and remove.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::DiskError;
use crate::names::is_name;

const BLOCK: &str = "/sys/block";
const RESCAN: &str = "/sys/bus/pci/rescan";

/// A disk that is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    serial: String,
    name: String,
}

impl BlockDevice {
    #[cfg(test)]
    pub(super) fn test(serial: &str, name: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Its serial.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Its device node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Removes its PCI function, so that the VMM can unplug the disk.
    ///
    /// # Errors
    /// If there is no PCI function behind it, or the kernel refuses.
    pub fn unplug(&self, serial: &str) -> Result<(), DiskError> {
        let failed = |error: io::Error| DiskError::Release {
            serial: serial.to_owned(),
            what: "unplugging its PCI device",
            error,
        };
        // .../0000:00:05.2/virtio3 is the virtio device; the function is above it.
        let device = match fs::canonicalize(Path::new(BLOCK).join(&self.name).join("device")) {
            Ok(device) => device,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let function = device
            .parent()
            .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        fs::write(function.join("remove"), "1").map_err(failed)
    }
}

/// Refuses a malformed serial; it becomes part of paths.
///
/// # Errors
/// [`DiskError::BadSerial`].
pub fn check_serial(serial: &str) -> Result<(), DiskError> {
    if is_name(serial, 20) {
        Ok(())
    } else {
        Err(DiskError::BadSerial(serial.to_owned()))
    }
}

/// The devices that have one of these serials.
///
/// # Errors
/// If /sys/block cannot be read.
pub fn find(serials: &[String]) -> Result<HashMap<String, BlockDevice>, DiskError> {
    let scan = |error| DiskError::Scan { what: BLOCK, error };
    let mut found = HashMap::new();
    for entry in fs::read_dir(BLOCK).map_err(scan)? {
        let entry = entry.map_err(scan)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Only virtio disks have the attribute; one that vanishes while we look has none either.
        let Ok(serial) = fs::read_to_string(entry.path().join("serial")) else {
            continue;
        };
        let serial = serial.trim_end_matches(['\0', '\n']);
        if serials.iter().any(|wanted| wanted == serial) {
            let device = BlockDevice {
                serial: serial.to_owned(),
                name,
            };
            found.insert(serial.to_owned(), device);
        }
    }
    Ok(found)
}

/// Has the kernel look for new PCI functions. New disks are probed before this returns.
///
/// # Errors
/// If the guest has no PCI.
pub fn rescan() -> Result<(), DiskError> {
    fs::write(RESCAN, "1").map_err(|error| DiskError::Scan {
        what: RESCAN,
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "äöü", "123456789012345678901"] {
            assert!(check_serial(bad).is_err(), "{bad:?}");
        }
        for good in ["scratch", "l0123456789abcdef012", "a.b-c_d"] {
            assert!(check_serial(good).is_ok(), "{good:?}");
        }
    }
}
