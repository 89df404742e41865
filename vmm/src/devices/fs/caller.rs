//! On whose behalf a file is made: the guest's user and group, for one thread and one call.
//!
//! The file-system ids (setfsuid(2)) are the thread's own. The host's kernel then does all that
//! depends on the owner itself: quotas, directories that pass their group on, default ACLs.

use rustix::io::Errno;

/// Asks for the present id; it cannot be set.
const ASK: u32 = u32::MAX;

fn set_uid(uid: u32) -> u32 {
    // SAFETY: no pointers; concerns this thread alone.
    unsafe { libc::setfsuid(uid) }.cast_unsigned()
}

fn set_gid(gid: u32) -> u32 {
    // SAFETY: no pointers; concerns this thread alone.
    unsafe { libc::setfsgid(gid) }.cast_unsigned()
}

/// Until it is dropped this thread makes files as somebody else.
#[derive(Debug)]
pub struct Caller {
    uid: u32,
    gid: u32,
}

impl Caller {
    /// Becomes `uid` and `gid`.
    ///
    /// # Errors
    /// INVAL when the guest named no user (it does so on id-mapped mounts, where nothing is made),
    /// PERM when this process may not.
    pub fn become_one(uid: u32, gid: u32) -> Result<Self, Errno> {
        if uid == ASK || gid == ASK {
            return Err(Errno::INVAL);
        }
        // The group first: it is the user that may change it.
        let before = Caller {
            gid: set_gid(gid),
            uid: set_uid(uid),
        };
        if set_gid(ASK) == gid && set_uid(ASK) == uid {
            Ok(before)
        } else {
            Err(Errno::PERM)
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        set_uid(self.uid);
        set_gid(self.gid);
    }
}
