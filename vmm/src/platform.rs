//! What the PCI side needs of KVM: interrupts by eventfd and doorbells by eventfd.
//!
//! A trait, so that the transport is tested without KVM; the real one is `vm::KvmPlatform`.

use std::fmt;

use vmm_sys_util::eventfd::EventFd;

/// A message-signalled interrupt as the driver wrote it into the MSI-X table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Low half of the address.
    pub address_lo: u32,
    /// High half of the address.
    pub address_hi: u32,
    /// The data word.
    pub data: u32,
}

/// Why KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// An ioctl failed.
    #[error("{attempted}: {source}")]
    Kvm {
        /// What was attempted.
        attempted: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// All interrupt routes are taken.
    #[error("no interrupt route is left of {0}")]
    NoRoute(usize),
}

/// Interrupt routes and doorbells.
pub trait Platform: Send + Sync + fmt::Debug {
    /// Makes a write to `fd` raise `message`, until [`Platform::disconnect`]. Events already in
    /// `fd` are raised at once.
    ///
    /// # Errors
    /// When no route is left, or KVM refuses. Nothing is connected then.
    fn connect(&self, fd: &EventFd, message: MsiMessage) -> Result<Gsi, PlatformError>;

    /// Undoes a `connect`; later writes stay in `fd`.
    ///
    /// # Errors
    /// When KVM refuses.
    fn disconnect(&self, fd: &EventFd, gsi: Gsi) -> Result<(), PlatformError>;

    /// Makes a guest write of any length to `address` signal `fd`, without an exit.
    ///
    /// # Errors
    /// When KVM refuses.
    fn add_doorbell(&self, fd: &EventFd, address: u64) -> Result<(), PlatformError>;

    /// Undoes `add_doorbell`.
    ///
    /// # Errors
    /// When KVM refuses.
    fn remove_doorbell(&self, fd: &EventFd, address: u64) -> Result<(), PlatformError>;
}

/// A connected interrupt route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gsi(pub u32);

/// A platform for tests: remembers what is connected.
#[cfg(test)]
pub mod fake {
    use std::collections::BTreeMap;
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use super::{EventFd, Gsi, MsiMessage, Platform, PlatformError};

    /// What is connected right now.
    #[derive(Debug, Default)]
    pub struct FakePlatform {
        /// eventfd to message.
        pub routes: Mutex<BTreeMap<i32, MsiMessage>>,
        /// address to eventfd.
        pub doorbells: Mutex<BTreeMap<u64, i32>>,
    }

    impl Platform for FakePlatform {
        fn connect(&self, fd: &EventFd, message: MsiMessage) -> Result<Gsi, PlatformError> {
            let old = self.routes.lock().unwrap().insert(fd.as_raw_fd(), message);
            assert!(old.is_none(), "connected twice");
            Ok(Gsi(24))
        }
        fn disconnect(&self, fd: &EventFd, _gsi: Gsi) -> Result<(), PlatformError> {
            let old = self.routes.lock().unwrap().remove(&fd.as_raw_fd());
            assert!(old.is_some(), "disconnected without being connected");
            Ok(())
        }
        fn add_doorbell(&self, fd: &EventFd, address: u64) -> Result<(), PlatformError> {
            let old = self
                .doorbells
                .lock()
                .unwrap()
                .insert(address, fd.as_raw_fd());
            assert!(old.is_none(), "a doorbell twice");
            Ok(())
        }
        fn remove_doorbell(&self, fd: &EventFd, address: u64) -> Result<(), PlatformError> {
            let old = self.doorbells.lock().unwrap().remove(&address);
            assert_eq!(old, Some(fd.as_raw_fd()));
            Ok(())
        }
    }
}
