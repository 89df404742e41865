//! The header of a frame: what passes points into the frame and asks for nothing unknown.
#![no_main]

use bulkhead_vmm::devices::net::header::{HEADER, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], u32, u64)| {
    let (bytes, len, features) = input;
    let Some(raw) = bytes.first_chunk::<HEADER>() else {
        return;
    };
    let len = len as usize % 80_000;
    if let Ok(h) = check(*raw, len, features) {
        let word = |at: usize| usize::from(u16::from_le_bytes([h[at], h[at + 1]]));
        assert!(h[0] <= 1 && word(2) <= len && word(10) == 0);
        assert!(h[0] == 0 || word(6) + word(8) + 2 <= len);
        assert!(matches!(h[1] & 0x7f, 0 | 1 | 4));
    }
});
