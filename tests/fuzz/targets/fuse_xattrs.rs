//! Names and values of extended attributes, the guest's and what others left on the host: names are
//! mapped back and forth without loss, ACLs and devices are read in one form or refused.
#![no_main]

use std::ffi::CString;

use bulkhead_vmm::devices::fs::acl::Acl;
use bulkhead_vmm::devices::fs::escape::{DEVICE, HAS_DEVICES, to_guest, to_host};
use bulkhead_vmm::devices::fs::special::Device;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The host's kernel has no longer names (XATTR_NAME_MAX).
    if input.len() <= 255
        && let Some(name) = to_guest(input)
        && let Ok(name) = CString::new(name)
    {
        let back = to_host(&name).unwrap();
        assert_eq!(back.to_bytes(), input);
    }
    if let Ok(name) = CString::new(input)
        && let Ok(host) = to_host(&name)
    {
        let host = host.to_bytes();
        assert!(host.starts_with(b"user.") && host.len() <= input.len().max(255));
        assert!(host != DEVICE.to_bytes() && host != HAS_DEVICES.to_bytes());
        assert_eq!(to_guest(host), Some(input));
    }
    if let Ok(mut acl) = Acl::parse(input) {
        assert_eq!(acl.to_bytes(), input);
        let mode = u32::from(input.last().copied().unwrap_or(0));
        let made = acl.inherit(mode);
        assert_eq!(made.mode & !mode, 0);
        acl.change_mode(mode);
        assert_eq!(acl.mode(), mode & 0o777);
    }
    if let Some(device) = Device::parse(input) {
        assert_eq!(device.to_value().as_bytes(), input);
    }
});
