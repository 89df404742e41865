//! The VMM from the daemon's side: its process, its configuration, its control socket. The
//! messages are `bulkhead_contract::vmm` (docs/vmm-api.md); nothing of the VMM's code is linked here.

mod control;
mod device;
mod error;
pub mod jail;
mod spawn;
mod virtual_machine;

pub use control::Control;
pub use error::VmmError;
pub use jail::JailDir;
pub use spawn::{FS_TAG, Kernel, Plan, make_jail, spawn};
pub use virtual_machine::VirtualMachine;
