//! A vsock packet header, and the line a host client sends.
#![no_main]

use bulkhead_vmm::devices::vsock::handshake::parse_connect;
use bulkhead_vmm::devices::vsock::packet::{HEADER, HOST_CID, Header, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = parse_connect(input);
    let Some((raw, payload)) = input.split_first_chunk::<HEADER>() else {
        return;
    };
    let header = Header::parse(raw);
    assert_eq!(&header.to_bytes(), raw);
    if check(&header, payload.len(), 3).is_ok() {
        assert_eq!((header.src_cid, header.dst_cid), (3, HOST_CID));
        assert!(header.len as usize <= payload.len());
    }
});
