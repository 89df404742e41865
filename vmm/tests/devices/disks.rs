//! Disks, and memory that goes back to the host.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use serde_json::json;

use crate::common::Vm;
use crate::guest::{MIB, TIMEOUT, add_disk, file_of, linux, metrics, pattern, run, sum, up};

#[test]
fn disks_hold_what_is_written_and_come_and_go() {
    let Some(mut guest) = linux() else { return };
    let fixed = pattern(8 * MIB, 1);
    let scratch = file_of(&vec![0; 16 << 20]);
    add_disk(&mut guest, "layer", &file_of(&fixed), true);
    add_disk(&mut guest, "scratch", &scratch, false);
    let vm = up(guest);
    assert_eq!(run(&vm, "disks"), "layer scratch");
    assert_eq!(run(&vm, "sum layer"), sum(&fixed));
    assert_eq!(run(&vm, "fill scratch 7"), "filled");
    let mut written = vec![0; 16 << 20];
    scratch.read_exact_at(&mut written, 0).unwrap();
    assert!(written == pattern(16 * MIB, 7));
    let refused = run(&vm, "write layer");
    assert_ne!(refused, "written");
    let disks = &metrics(&vm)["devices"];
    assert!(disks["scratch"]["flushes"].as_u64() >= Some(1), "{disks}");
    assert_eq!(disks["scratch"]["failed"], 0);

    for round in 0..3u64 {
        let late = pattern(MIB, 100 + round);
        let file = file_of(&late);
        let request = json!({"attach": {"disk": {"id": "late", "read_only": true, "queues": 1}}});
        vm.must(&request, &[file.as_raw_fd()]);
        assert_eq!(run(&vm, "rescan"), "done");
        assert_eq!(run(&vm, "disks"), "late layer scratch");
        assert_eq!(run(&vm, "sum late"), sum(&late));
        assert_eq!(run(&vm, "remove late"), "done");
        assert_eq!(run(&vm, "disks"), "layer scratch");
        vm.must(&json!({"detach": {"id": "late"}}), &[]);
    }
    // As many files as a disk can have, all but the last of odd lengths.
    let files: Vec<_> = (0..240u64)
        .map(|n| {
            let length = if n == 239 { 8192 } else { 1 + n * 37 };
            let mut bytes = pattern(length.next_multiple_of(8), n);
            bytes.truncate(usize::try_from(length).unwrap());
            bytes
        })
        .collect();
    let mut whole = Vec::new();
    let mut parts = Vec::new();
    for bytes in &files {
        whole.extend_from_slice(bytes);
        parts.push(bytes.len().next_multiple_of(4096));
        whole.resize(parts.iter().sum(), 0);
    }
    let files: Vec<_> = files.iter().map(|bytes| file_of(bytes)).collect();
    let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let disk = json!({"id": "joined", "read_only": true, "queues": 1, "parts": parts});
    vm.must(&json!({"attach": {"disk": disk}}), &fds);
    assert_eq!(run(&vm, "rescan"), "done");
    assert_eq!(run(&vm, "sum joined"), sum(&whole));
    assert_ne!(run(&vm, "write joined"), "written");
    assert_eq!(run(&vm, "remove joined"), "done");
    vm.must(&json!({"detach": {"id": "joined"}}), &[]);
}

/// The pain in Kata's issue 8401: memory freed in the guest never returned.
#[test]
fn kc8401_memory_freed_in_the_guest_goes_back_to_the_host() {
    let Some(guest) = linux() else { return };
    let vm = up(guest);
    let resident = |vm: &Vm| metrics(vm)["guest_resident_bytes"].as_u64().unwrap() / MIB;
    let before = resident(&vm);
    assert_eq!(run(&vm, "eat 120"), "eaten");
    // The guest's kernel reports free pages some seconds after they were freed.
    let deadline = Instant::now() + TIMEOUT;
    while resident(&vm) > before + 40 {
        assert!(
            Instant::now() < deadline,
            "{before} MiB before, {} after: {}",
            resident(&vm),
            metrics(&vm)["devices"]["balloon"]
        );
        // SAFETY: waits for nothing but time.
        unsafe { libc::poll(std::ptr::null_mut(), 0, 200) };
    }
    let reported = metrics(&vm)["devices"]["balloon"]["reported_bytes"].as_u64();
    assert!(reported >= Some(80 * MIB), "{reported:?}");
    assert!(metrics(&vm)["vmm_rss_bytes"].as_u64() < Some(5 * MIB));
}
