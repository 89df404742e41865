//! What all virtio devices have in common: the device trait and the PCI transport.
//!
//! The devices themselves live in [`crate::devices`].

pub mod device;
pub mod pci;
