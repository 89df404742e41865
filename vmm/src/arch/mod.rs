//! What depends on the processor's architecture, one directory for each. The rest of the VMM knows
//! KVM, PCI and virtio, which are the same on all of them.

pub mod x86_64;
