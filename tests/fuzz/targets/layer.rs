//! A layer's tar stream: whatever it is, either a typed error or an image that reads back sound,
//! and the same image every time.
#![no_main]

use std::io::Cursor;

use bulkhead_images::erofs::read::read_tree;
use bulkhead_images::layer::{Limits, convert_into};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut tar = input.to_vec();
    for block in tar.chunks_exact_mut(512) {
        repair(block);
    }
    let limits = Limits {
        max_layer_bytes: 1 << 20,
        max_entries: 200,
        max_depth: 16,
        max_header_bytes: 8192,
        max_memory_bytes: 64 << 10,
        ..Limits::default()
    };
    let make = || {
        let out = Cursor::new(Vec::new());
        convert_into(&tar[..], out, &limits, &mut |_| {})
            .map(|(out, info)| (out.into_inner(), info))
    };
    if let Ok((image, info)) = make() {
        assert_eq!(info.erofs_size, image.len() as u64);
        let tree = read_tree(&image).expect("a sound image");
        assert!(tree.len() <= 2 * 200 + 1);
        assert_eq!(make().expect("the same result"), (image, info));
    }
});

/// Gives what looks like a header the right sum: the fuzzer should not have to find it.
fn repair(block: &mut [u8]) {
    if &block[257..262] == b"ustar" {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
}
