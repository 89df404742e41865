//! The virtual machine monitor: one process per pod.
//!
//! It knows KVM, guest memory, PCI and virtio. It knows no Kubernetes, no images and no
//! containers. `docs/vmm-api.md` is its contract with the daemon.

pub mod api;
pub mod arch;
pub mod control;
pub mod devices;
pub mod event_loop;
pub mod jail;
pub mod lifecycle;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod poll;
pub mod process;
pub mod sync;
pub mod timing;
pub mod vcpu;
pub mod virtio;
pub mod vm;
