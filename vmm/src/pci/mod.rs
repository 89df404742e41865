//! PCI: one flat bus, its configuration space by ECAM, and MSI-X.
//!
//! What a function does behind its registers is the function's own (`virtio::pci`).

pub mod bus;
pub mod config;
pub mod msix;

pub use bus::{Address, PciBus, PciError, PciFunction};
