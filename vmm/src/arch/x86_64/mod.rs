//! An x86-64 guest: where things are in its address space (`layout`), how a kernel gets there
//! (`boot`) and is entered (`entry`), how its machine (`acpi`) and its processors (`cpuid`)
//! are described to it, its I/O ports, and the registers that a snapshot keeps of a vCPU
//! (`vcpu_state`).
//!
//! The interrupt controllers and the timer are KVM's; `crate::vm` makes and saves them.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod entry;
pub mod layout;
pub mod ports;
pub mod vcpu_state;
