//! A seccomp profile and the options of mounts: a profile that compiles is a program the kernel takes,
//! and of options no attribute is both set and taken away.
#![no_main]

use bulkhead_agent::launcher::root::options;
use bulkhead_agent::launcher::seccomp;
use bulkhead_agent::mount_attr::ATIME;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (words, profile) = input;
    let parsed = options::parse(words.split(','));
    for change in [parsed.own, parsed.all] {
        assert_eq!(change.set & change.clear & !ATIME, 0);
        assert!(change.set & ATIME == 0 || change.clear & ATIME == ATIME);
    }
    let Ok(profile) = serde_json::from_slice(profile) else {
        return;
    };
    if let Ok(filter) = seccomp::compile(&profile) {
        assert!((1..=4096).contains(&filter.program.len()));
        // BPF_RET: a program that could run off its end is refused by the kernel.
        let last = filter.program.last().map(|word| word.to_ne_bytes());
        assert_eq!(last.map(|bytes| bytes[0] & 7), Some(6));
    }
});
