//! What the machine holds of the memory device: it changes how much is wanted, and hears when the
//! guest has plugged or unplugged something.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::region::Region;

use crate::sync::lock;

/// The machine's side. Clones share the device.
#[derive(Debug, Clone)]
pub struct MemHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    region: Mutex<Region>,
    /// Towards the device: configuration space has changed.
    poke: EventFd,
    /// From the device: the number of plugged blocks has changed.
    changed: EventFd,
}

impl MemHandle {
    /// For a region.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn new(region: Region) -> io::Result<Self> {
        let make = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(MemHandle(Arc::new(Shared {
            region: Mutex::new(region),
            poke: make()?,
            changed: make()?,
        })))
    }

    /// The region, locked: not to be held over anything that waits.
    pub fn region(&self) -> MutexGuard<'_, Region> {
        lock(&self.0.region)
    }

    /// Changes how much is requested, and notifies the driver.
    pub fn request(&self, bytes: u64) {
        self.region().request(bytes);
        // Fails only when the counter is full, and then the descriptor is readable anyway.
        let _ = self.0.poke.write(1);
    }

    /// Readable when configuration space has changed.
    pub(super) fn poke(&self) -> &EventFd {
        &self.0.poke
    }

    /// Readable when something was plugged or unplugged; reading it clears it.
    #[must_use]
    pub fn changed(&self) -> &EventFd {
        &self.0.changed
    }
}
