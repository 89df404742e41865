//! The VMM from the daemon's side: its process, its configuration, its control socket. The
//! contract is docs/vmm-api.md; nothing of the VMM's code is linked here.

mod config;
#[cfg(test)]
mod contract_tests;
mod control;
mod error;
mod exit;
pub mod jail;
mod process;
mod spawn;

pub use config::{Console, ControlSocket, Disk, Fs, Jail, Net, RestoreFds, VmmConfig, Vsock};
pub use control::{Control, DiskSpec, Resize};
pub use error::{Kind, VmmError};
pub use exit::{THE_VMM, read as read_exit};
pub use jail::JailDir;
pub use process::Process;
pub use spawn::{FS_TAG, Plan, make_jail, spawn};
