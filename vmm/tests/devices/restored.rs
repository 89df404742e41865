//! All devices of a guest that was restored.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use serde_json::json;

use crate::common::Guest;
use crate::guest::{MIB, add_disk, connect, file_of, linux, pattern, run, sum, up};

#[test]
fn restored_devices_go_on_where_they_were() {
    let Some(mut guest) = linux() else { return };
    let fixed = pattern(4 * MIB, 3);
    let layer = file_of(&fixed);
    let scratch = file_of(&vec![0; 4 << 20]);
    add_disk(&mut guest, "layer", &layer, true);
    add_disk(&mut guest, "scratch", &scratch, false);
    let vm = up(guest);
    assert_eq!(run(&vm, "fill scratch 9"), "filled");
    let mut open = connect(&vm, 7);
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    vm.must(
        &json!({"snapshot": {}}),
        &[state.as_raw_fd(), memory.as_raw_fd()],
    );
    vm.must(&json!({"resume": {}}), &[]);
    // The original keeps running, and keeps its connection.
    open.write_all(b"still here").unwrap();
    let mut got = [0; 10];
    open.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
    assert_eq!(run(&vm, "sum layer"), sum(&fixed));

    for round in 0..2u64 {
        let reopen = |f: &File| {
            File::options()
                .read(true)
                .write(true)
                .open(format!("/proc/self/fd/{}", f.as_raw_fd()))
                .unwrap()
        };
        let Some(mut copy) = Guest::from_snapshot(reopen(&state), reopen(&memory)) else {
            return;
        };
        let mut bytes = vec![0; 4 << 20];
        scratch.read_exact_at(&mut bytes, 0).unwrap();
        let own = file_of(&bytes);
        copy.config["memory_mib"] = 256.into();
        copy.config["disks"] = json!([]);
        add_disk(&mut copy, "layer", &layer, true);
        add_disk(&mut copy, "scratch", &own, false);
        copy.config["vsock"] = json!({"cid": 10 + round, "path": copy.dir.path().join("v.sock")});
        let copy = copy.start();
        assert_eq!(run(&copy, "disks"), "layer scratch");
        assert_eq!(run(&copy, "sum layer"), sum(&fixed));
        assert_eq!(run(&copy, &format!("fill scratch {round}")), "filled");
        own.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == pattern(4 * MIB, round));
        assert!(own.metadata().unwrap().blocks() > 0);
    }
    let mut bytes = vec![0; 4 << 20];
    scratch.read_exact_at(&mut bytes, 0).unwrap();
    assert!(
        bytes == pattern(4 * MIB, 9),
        "a copy wrote to the original's disk"
    );
}
