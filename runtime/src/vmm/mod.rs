//! The VMM from the daemon's side: its process, its configuration, its control socket. The
//! messages are `bulkhead_contract::vmm` (docs/vmm-api.md); nothing of the VMM's code is linked here.

mod control;
mod error;
mod exit;
pub mod jail;
mod process;
mod spawn;

pub use control::Control;
pub use error::VmmError;
pub use exit::{THE_VMM, read as read_exit};
pub use jail::JailDir;
pub use process::Process;
pub use spawn::{FS_TAG, Plan, make_jail, spawn};
