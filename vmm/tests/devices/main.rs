//! Every device with a Linux guest: what the disks hold, a hundred vsock streams, frames over a
//! tap with and without vhost-net, memory that comes back, and all of it again after a restore.
//!
//! Needs KVM that runs Linux and root. `tests/in-host.sh` builds the guest's program, and
//! runs this in the test host; without `BULKHEAD_GUEST_KERNEL` and `BULKHEAD_DEVICE_GUEST` the
//! tests say that they are skipped.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::panic
)]

#[path = "../common/mod.rs"]
mod common;
mod disks;
mod guest;
mod net;
mod restored;
mod share;
mod vsock;
