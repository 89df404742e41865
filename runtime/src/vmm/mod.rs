//! The VMM from the daemon's side: its process, its configuration, its control socket. The
//! contract is docs/vmm-api.md; nothing of the VMM's code is linked here.

mod config;
mod control;
mod error;

pub use config::{Console, ControlSocket, Disk, Jail, Net, VmmConfig, Vsock};
pub use control::{Control, DiskSpec};
pub use error::VmmError;
