//! The end of a guest.

use rustix::io::Errno;
use rustix::system::RebootCommand;

/// Writes everything out and switches the machine off. Returns only if the kernel refuses.
///
/// # Errors
/// EPERM when the agent is not PID 1 of a guest.
pub fn off() -> Result<(), Errno> {
    rustix::fs::sync();
    rustix::system::reboot(RebootCommand::PowerOff)
}
