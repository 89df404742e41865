//! A FUSE message: any header, any body. No name is more than one entry of a directory, and nothing
//! reaches beyond the message.
#![no_main]

use bulkhead_vmm::devices::fs::request::{Header, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(header) = Header::parse(input, input.len()) else {
        return;
    };
    let end = usize::try_from(header.len).unwrap();
    // By either form of SETXATTR.
    let agreed = u64::from(header.unique & 1) << 29;
    let Ok(request) = Request::parse(&header, &input[40..end], agreed) else {
        return;
    };
    let entry = |name: &std::ffi::CStr| {
        let bytes = name.to_bytes();
        assert!((1..=255).contains(&bytes.len()) && !bytes.contains(&b'/'));
        assert!(bytes != b"." && bytes != b"..");
    };
    match request {
        Request::Lookup { name }
        | Request::Symlink { name, .. }
        | Request::Mknod { name, .. }
        | Request::Mkdir { name, .. }
        | Request::Unlink { name }
        | Request::Rmdir { name }
        | Request::Link { name, .. }
        | Request::Create { name, .. } => entry(name),
        Request::Rename { name, to_name, .. } => {
            entry(name);
            entry(to_name);
        }
        Request::BatchForget(forgets) => assert!(forgets.count() * 16 <= input.len()),
        Request::SetXattr { value, .. } => assert!(value.len() <= input.len()),
        _ => {}
    }
});
