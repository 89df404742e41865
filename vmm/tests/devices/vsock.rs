//! Streams between host and guest.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::common::Guest;
use crate::guest::{TIMEOUT, connect, echo, linux, metrics, pattern, snapshot, up};

#[test]
fn a_hundred_streams_echo_every_byte() {
    let Some(guest) = linux() else { return };
    let vm = up(guest);
    std::thread::scope(|scope| {
        for i in 0..100u64 {
            let vm = &vm;
            scope.spawn(move || {
                let size = [8, 104, 5000, 70_000, 300_000][(i % 5) as usize];
                let data = pattern(size, i);
                let stream = connect(vm, 7);
                let clone = stream.try_clone().unwrap();
                echo(stream, clone, &data, |s| {
                    s.shutdown(Shutdown::Write).unwrap()
                });
            });
        }
    });
    let vsock = &metrics(&vm)["devices"]["vsock"];
    assert_eq!(vsock["violations"], 0);
    assert_eq!(vsock["malformed"], 0);
    // A port nobody listens on.
    let mut stream = UnixStream::connect(vm.path("v.sock")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"CONNECT 4242\n").unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

/// Those made before the restore end with it; those made since must not, however early they are and
/// whichever the guest has not closed yet.
#[test]
fn a_restored_guest_keeps_every_connection_made_since() {
    let Some(guest) = linux() else { return };
    let mut vm = up(guest);
    for round in 0..3 {
        let before: Vec<_> = (0..20).map(|_| connect(&vm, 7)).collect();
        let (state, memory) = snapshot(&vm);
        let Some(mut copy) = Guest::from_snapshot(state, memory) else {
            return;
        };
        copy.config["memory_mib"] = 256.into();
        copy.config["disks"] = json!([]);
        copy.config["vsock"] = json!({"cid": 10 + round, "path": copy.dir.path().join("v.sock")});
        let copy = copy.start();
        std::thread::scope(|scope| {
            for seed in 0..20 {
                let copy = &copy;
                scope.spawn(move || {
                    let stream = connect(copy, 7);
                    let clone = stream.try_clone().unwrap();
                    echo(stream, clone, &pattern(5000, seed), |s| {
                        s.shutdown(Shutdown::Write).unwrap();
                    });
                });
            }
        });
        let vsock = &metrics(&copy)["devices"]["vsock"];
        assert_eq!(
            (&vsock["violations"], &vsock["timeouts"]),
            (&json!(0), &json!(0)),
            "{vsock}"
        );
        drop(before);
        // The next is a copy of the copy.
        vm = copy;
    }
}
