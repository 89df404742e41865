//! Requests of a memory device's driver, and changes of what is wanted between them.
#![no_main]

use bulkhead_vmm::devices::mem::region::{BLOCK, Region};
use bulkhead_vmm::devices::mem::request::{REQUEST, Request};
use libfuzzer_sys::fuzz_target;

const ADDR: u64 = 4 << 30;
const SIZE: u64 = 300 << 20;

fuzz_target!(|input: &[u8]| {
    let mut region = Region::new(ADDR, SIZE);
    let mut most = 0;
    for raw in input.as_chunks::<REQUEST>().0 {
        let Some(request) = Request::parse(raw) else {
            region.request(u64::from(raw[8]) * BLOCK);
            most = most.max(region.requested());
            continue;
        };
        let outcome = region.handle(request);
        for range in outcome.freed {
            assert!(ADDR <= range.start && range.end <= ADDR + SIZE);
        }
        let counted: u64 = region.runs().iter().map(|run| run.end - run.start).sum();
        assert_eq!(counted, region.plugged());
        assert!(region.plugged() <= most && most <= SIZE);
    }
});
