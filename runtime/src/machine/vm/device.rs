//! What a VMM's devices are made of, whether it starts with them or they are plugged later: files
//! that need privilege to open, and values as the VMM's documents have them.

use std::{
    fs::{File, OpenOptions},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use bulkhead_contract::vmm::{BadMacAddress, MacAddress};

use super::VmmError;
use crate::config::VhostNet;

/// Entries of each of a network device's two queues.
pub(super) const NET_QUEUE_SIZE: u16 = 256;

/// A number as the document has it; one that does not fit is more than any VMM takes.
pub(super) fn fitting<T: TryFrom<u32>>(key: &'static str, value: u32) -> Result<T, VmmError> {
    T::try_from(value).map_err(|_| VmmError::Configuration {
        key,
        what: format!("{value} is more than a VM can have"),
    })
}

/// A network device's address.
pub(super) fn hardware_address(text: &str) -> Result<MacAddress, VmmError> {
    text.parse()
        .map_err(|error: BadMacAddress| VmmError::Configuration {
            key: "nets[].mac",
            what: error.to_string(),
        })
}

/// /dev/vhost-net, if it is to be used. Blocks.
pub(super) fn vhost_net(mode: VhostNet) -> Result<Option<OwnedFd>, VmmError> {
    if mode == VhostNet::Never {
        return Ok(None);
    }
    let hint = "load the module vhost_net, or set vmm.vhost_net to \"auto\"";
    match open_device("vhost-net", Path::new("/dev/vhost-net"), hint) {
        Ok(file) => Ok(Some(file.into())),
        Err(_) if mode == VhostNet::Auto => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn open_device(
    what: &'static str,
    path: &Path,
    hint: &'static str,
) -> Result<File, VmmError> {
    open(what, path, hint, OpenOptions::new().read(true).write(true))
}

pub(super) fn open_file(
    what: &'static str,
    path: &Path,
    hint: &'static str,
) -> Result<File, VmmError> {
    open(what, path, hint, OpenOptions::new().read(true))
}

fn open(
    what: &'static str,
    path: &Path,
    hint: &'static str,
    options: &OpenOptions,
) -> Result<File, VmmError> {
    let path: PathBuf = path.to_owned();
    options.open(&path).map_err(|source| VmmError::Open {
        what,
        path,
        hint,
        source,
    })
}
