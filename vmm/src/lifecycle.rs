//! How a VM ends: who may say so, and how the main thread learns of it.

use std::io;
use std::sync::Mutex;

use bulkhead_contract::exit::Reason;
use vmm_sys_util::eventfd::EventFd;

use crate::sync::lock;

/// The VMM's exit code for a reason (docs/vmm-api.md).
#[must_use]
pub fn exit_code(reason: Reason) -> u8 {
    match reason {
        Reason::PowerOff | Reason::Stopped => 0,
        Reason::Error | Reason::Killed | Reason::Unknown => 1,
        Reason::Reboot => 2,
        Reason::Panic => 3,
    }
}

/// An end and its circumstances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// What a reader of the log needs to know.
    pub message: String,
}

/// Where any thread reports the end. The first report counts: what follows from it (the reboot
/// after a panic) does not.
#[derive(Debug)]
pub struct Lifecycle {
    end: Mutex<Option<End>>,
    ended: EventFd,
}

impl Lifecycle {
    /// A VM that has not ended.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Lifecycle {
            end: Mutex::new(None),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Reports the end.
    pub fn end(&self, reason: Reason, message: impl Into<String>) {
        let mut end = lock(&self.end);
        if end.is_none() {
            *end = Some(End {
                reason,
                message: message.into(),
            });
            // Fails only when full, and then it is readable.
            let _ = self.ended.write(1);
        }
    }

    /// Readable once the VM has ended.
    #[must_use]
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// The end, if it has come.
    #[must_use]
    pub fn get(&self) -> Option<End> {
        lock(&self.end).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let lifecycle = Lifecycle::new().unwrap();
        assert_eq!(lifecycle.get(), None);
        lifecycle.end(Reason::Panic, "one");
        lifecycle.end(Reason::Reboot, "two");
        assert_eq!(lifecycle.get().unwrap().reason, Reason::Panic);
        assert_eq!(lifecycle.ended().read().unwrap(), 1);
        assert!(lifecycle.ended().read().is_err());
    }
}
