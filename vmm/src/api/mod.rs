//! What the daemon says to the VMM, as it is written in JSON: the configuration and the control
//! requests. Types only, and their validation; live things are made in `machine`.
//!
//! The daemon has types of its own; `vmm/tests/fixtures` is parsed by both.

mod config;
mod control;

pub use config::{
    Config, ConfigError, Console, Control, Disk, Fs, Jail, MacAddress, Net, RestoreFds, Vsock,
};
pub use control::{
    Answer, AttachDisk, Done, ErrorKind, ExitReport, Failure, Request, Resize, Started,
};
