//! What all virtio devices have in common: the device trait, queues, guest memory as lists of
//! pieces, and the PCI transport.
//!
//! The devices themselves live in [`crate::devices`].

pub mod buffers;
pub mod device;
pub mod iovec;
pub mod pci;
pub mod queue;
