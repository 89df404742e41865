//! Names of extended attributes: what the guest calls them, and what they are called on the host. Pure.
//!
//! Most of what is in `security.`, `trusted.` and `system.` means something to the kernel that finds
//! it. The guest's must mean it to the guest's kernel alone, so on the host they are kept below
//! [`PREFIX`], which is data to every kernel:
//!
//! | guest | host |
//! | --- | --- |
//! | `user.x` | `user.x` |
//! | `security.x`, `trusted.x` | `user.bulkhead.security.x`, `user.bulkhead.trusted.x` |
//! | `system.posix_acl_access`, `_default` | `user.bulkhead.system.posix_acl_access`, `_default` |
//! | `user.bulkhead.x` | `user.bulkhead.user.bulkhead.x` |
//!
//! No two names of the guest are one on the host, and no name of the guest is one of the file
//! server's own ([`DEVICE`] and the like), which begin with the prefix and are no escaped name.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use rustix::io::Errno;

/// What the guest's names are escaped by.
pub const PREFIX: &[u8] = b"user.bulkhead.";
/// The access ACL, as the guest calls it.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The default ACL of a directory, as the guest calls it.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// The access ACL on the host.
pub const HOST_ACL_ACCESS: &CStr = c"user.bulkhead.system.posix_acl_access";
/// The default ACL on the host.
pub const HOST_ACL_DEFAULT: &CStr = c"user.bulkhead.system.posix_acl_default";
/// File capabilities on the host.
pub const HOST_CAPABILITY: &CStr = c"user.bulkhead.security.capability";
/// The file server's own: the device that a regular file stands for.
pub const DEVICE: &CStr = c"user.bulkhead.device";
/// The file server's own: a directory in which there have been devices.
pub const HAS_DEVICES: &CStr = c"user.bulkhead.has-devices";

/// Linux's own limit (`XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;

/// Whether the host has this name of the guest's below the prefix.
fn is_escaped(name: &[u8]) -> bool {
    let more_than = |start: &[u8]| name.len() > start.len() && name.starts_with(start);
    name == ACL_ACCESS
        || name == ACL_DEFAULT
        || more_than(b"security.")
        || more_than(b"trusted.")
        || name.starts_with(PREFIX)
}

/// The host's name for a name of the guest's; one that is borrowed is the same on both.
///
/// # Errors
/// OPNOTSUPP for a name space there is not, INVAL for one without a name in it, RANGE for a name that
/// is too long on the host.
pub fn to_host(name: &CStr) -> Result<Cow<'_, CStr>, Errno> {
    let bytes = name.to_bytes();
    if is_escaped(bytes) {
        if PREFIX.len() + bytes.len() > MAX_NAME {
            return Err(Errno::RANGE);
        }
        let whole = [PREFIX, bytes].concat();
        return CString::new(whole)
            .map(Cow::Owned)
            .map_err(|_| Errno::INVAL);
    }
    match bytes {
        b"user." | b"security." | b"trusted." => Err(Errno::INVAL),
        _ if bytes.starts_with(b"user.") => Ok(Cow::Borrowed(name)),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// The guest's name for a name on the host; none for what is the host's or the file server's own.
#[must_use]
pub fn to_guest(name: &[u8]) -> Option<&[u8]> {
    match name.strip_prefix(PREFIX) {
        Some(inner) => is_escaped(inner).then_some(inner),
        None => (name.len() > 5 && name.starts_with(b"user.")).then_some(name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(name: &str) -> Result<String, Errno> {
        let name = CString::new(name).unwrap();
        to_host(&name).map(|found| found.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_name_space_has_its_place() {
        for (guest, on_host) in [
            ("user.x", "user.x"),
            ("user.bulkhead", "user.bulkhead"),
            ("user.bulkhead.device", "user.bulkhead.user.bulkhead.device"),
            ("user.bulkhead.", "user.bulkhead.user.bulkhead."),
            ("security.capability", "user.bulkhead.security.capability"),
            (
                "trusted.overlay.opaque",
                "user.bulkhead.trusted.overlay.opaque",
            ),
            (
                "system.posix_acl_default",
                "user.bulkhead.system.posix_acl_default",
            ),
        ] {
            assert_eq!(host(guest).as_deref(), Ok(on_host));
            assert_eq!(to_guest(on_host.as_bytes()), Some(guest.as_bytes()));
        }
        for (name, error) in [
            ("user.", Errno::INVAL),
            ("security.", Errno::INVAL),
            ("trusted.", Errno::INVAL),
            ("system.nfs4_acl", Errno::OPNOTSUPP),
            ("system.posix_acl_access2", Errno::OPNOTSUPP),
            ("USER.x", Errno::OPNOTSUPP),
            ("x", Errno::OPNOTSUPP),
        ] {
            assert_eq!(host(name), Err(error), "{name}");
        }
        for constant in [HOST_ACL_ACCESS, HOST_ACL_DEFAULT, HOST_CAPABILITY] {
            assert!(to_guest(constant.to_bytes()).is_some(), "{constant:?}");
        }
        // What is the host's own, and what is the server's.
        for hidden in [
            "security.selinux",
            "system.posix_acl_access",
            "trusted.x",
            "user.",
            "user.bulkhead.",
            "user.bulkhead.user.x",
            "user.bulkhead.security.",
            DEVICE.to_str().unwrap(),
            HAS_DEVICES.to_str().unwrap(),
        ] {
            assert_eq!(to_guest(hidden.as_bytes()), None, "{hidden}");
        }
    }

    #[test]
    fn names_are_as_long_as_the_host_lets_them_be() {
        let long = |start: &str, len: usize| format!("{start}{}", "x".repeat(len - start.len()));
        assert_eq!(host(&long("user.", 255)).unwrap().len(), 255);
        assert_eq!(host(&long("trusted.", 241)).unwrap().len(), 255);
        assert_eq!(host(&long("trusted.", 242)), Err(Errno::RANGE));
        assert_eq!(host(&long("user.bulkhead.", 242)), Err(Errno::RANGE));
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(&b"user."[..]),
            Just(&b"bulkhead."[..]),
            Just(&b"security."[..]),
            Just(&b"trusted."[..]),
            Just(ACL_ACCESS),
            Just(&b"device"[..]),
            Just(&b"x"[..]),
        ];
        proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(name in name()) {
            let name = CString::new(name).unwrap();
            if let Ok(on_host) = to_host(&name) {
                prop_assert_eq!(to_guest(on_host.to_bytes()), Some(name.to_bytes()));
                prop_assert!(on_host.to_bytes().starts_with(b"user."));
                prop_assert!(on_host.to_bytes() != DEVICE.to_bytes());
                prop_assert!(on_host.to_bytes() != HAS_DEVICES.to_bytes());
                prop_assert!(on_host.to_bytes().len() <= MAX_NAME);
            }
        }

        #[test]
        fn what_is_shown_leads_back(on_host in name()) {
            if let Some(name) = to_guest(&on_host) {
                let name = CString::new(name).unwrap();
                let back = to_host(&name).unwrap();
                prop_assert_eq!(back.to_bytes(), &on_host[..]);
            }
        }
    }
}
