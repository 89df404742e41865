//! The daemon: a CRI v1 server whose every pod is a virtual machine.
//!
//! [`cri`] answers the RPCs, each through one function; [`sandbox`] runs pods with [`machine`] (a
//! VM, or the host), [`agent`] (the service inside the guest), [`cgroup`] and
//! [`network`]; `container` runs containers in them, from what the images crate pulled; [`records`] holds
//! what must survive the daemon; [`stats`] and [`events`] tell of them. [`config`] is read once at start, [`error`] maps every error to a
//! gRPC code. This crate knows no KVM and has no unsafe code.
#![forbid(unsafe_code)]

pub mod agent;
pub mod app;
pub mod archives;
pub mod cgroup;
pub mod checks;
pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
pub mod cri;
pub mod daemon;
pub mod durable;
pub mod error;
pub mod events;
pub mod id;
pub mod listing;
pub mod logs;
pub mod machine;
pub mod network;
pub mod number_set;
pub mod oci;
pub mod records;
pub mod sandbox;
pub mod stats;
pub mod status;
pub mod streaming;
pub mod task;
pub mod volumes;
