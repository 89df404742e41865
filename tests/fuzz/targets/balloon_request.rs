//! Page lists of a balloon's driver: each page is in one run, in the order of the list, and no run leaves
//! the 44 bits that a page number can name.
#![no_main]

use bulkhead_vmm::devices::balloon::request::{PAGE, runs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|list: &[u8]| {
    let numbers = list.as_chunks::<4>().0.iter();
    let mut numbers = numbers.map(|number| u64::from(u32::from_le_bytes(*number)));
    for run in runs(list) {
        assert!(run.len > 0 && run.len % PAGE == 0);
        assert!(run.start + run.len <= PAGE << 32);
        for page in 0..run.len / PAGE {
            assert_eq!(numbers.next(), Some(run.start / PAGE + page));
        }
    }
    assert_eq!(numbers.next(), None);
});
