//! Pods that start as copies: one snapshot of a Linux with the real agent, restored twice at
//! once, in jails. `tests/in-host.sh` brings kernel and initramfs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use common::{Guest, LIMIT, Vm, is_root};
use serde_json::json;

/// Devices of every kind; the console and the sockets are in the jail.
fn furnish(guest: &mut Guest, tap_name: &str, scratch: &File, layer: &File) {
    let mut disk = |file: &File| guest.give(file.try_clone().unwrap());
    let (scratch, layer) = (disk(scratch), disk(layer));
    guest.config["disks"] = json!([
        {"id": "scratch", "fd": scratch, "read_only": false, "queues": 1},
        {"id": "layer", "fd": layer, "read_only": true, "queues": 1},
    ]);
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40];
    request[..tap_name.len()].copy_from_slice(tap_name.as_bytes());
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    request[16..18].copy_from_slice(&0x5002u16.to_le_bytes());
    // SAFETY: TUNSETIFF takes a struct ifreq (40 bytes).
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, &raw mut request) };
    assert_eq!(made, 0, "tap {tap_name}");
    let tap = guest.give(tap);
    guest.config["nets"] = json!([{
        "id": "eth0", "tap_fd": tap, "vhost_fd": null, "mac": "02:00:00:00:00:02",
        "mtu": 1500, "queue_size": 256,
    }]);
    guest.config["vsock"] = json!({"cid": 3, "path": "v.sock"});
    guest.config["vcpus"] = 2.into();
    guest.config["memory_mib"] = 256.into();
}

/// The socket a guest dials; any user may, as the jailed process is nobody here.
fn listen(guest: &Guest) -> UnixListener {
    let path = guest.dir.path().join("v.sock_1025");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    listener
}

/// The agent's server answers at the first try: HTTP/2's preface and settings for its settings.
fn talk(vm: &Vm) {
    if let Err(error) = try_talk(vm) {
        panic!("{error}; console: {}", vm.console());
    }
}

fn try_talk(vm: &Vm) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(vm.path("v.sock"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"CONNECT 1024\n")?;
    let mut byte = [0u8];
    let mut line = Vec::new();
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "), "{line:?}");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut frame = [0u8; 9];
    stream.read_exact(&mut frame)?;
    assert_eq!(frame[3], 4, "the first frame is the server's settings");
    Ok(())
}

fn scratch() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    file
}

#[test]
fn two_copies_of_one_snapshot_run_at_once_and_both_agents_answer() {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(kernel), Some(initramfs)) = (
        path("BULKHEAD_GUEST_KERNEL"),
        path("BULKHEAD_AGENT_INITRAMFS"),
    ) else {
        eprintln!("skipped: needs a guest kernel and the agent (tests/in-host.sh)");
        return;
    };
    if !is_root() {
        return;
    }
    let Some(mut guest) = Guest::new(&[]) else {
        return;
    };
    guest.config["kernel_fd"] = guest.give(File::open(kernel).unwrap()).into();
    guest.config["initramfs_fd"] = guest.give(File::open(initramfs).unwrap()).into();
    let layer = scratch();
    furnish(&mut guest, "bhrestore0", &scratch(), &layer);
    let guest = guest.jailed();
    let listener = listen(&guest);
    let vm = guest.start();
    listener.set_nonblocking(true).unwrap();
    vm.wait_for("agent", |_| listener.accept().is_ok());
    talk(&vm);

    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    vm.must(&json!({"snapshot": {}}), &fds);
    vm.must(&json!({"resume": {}}), &[]);

    let copies: Vec<Vm> = (1..3)
        .map(|number| {
            let again = |file: &File| file.try_clone().unwrap();
            let mut copy = Guest::from_snapshot(again(&state), again(&memory)).unwrap();
            furnish(&mut copy, &format!("bhrestore{number}"), &scratch(), &layer);
            copy.jailed().start()
        })
        .collect();
    for vm in copies.iter().chain([&vm]) {
        talk(vm);
    }
    // Each is a VM of its own: one ends, the others answer.
    let mut copies = copies.into_iter();
    let mut first = copies.next().unwrap();
    first.must(&json!({"stop": {}}), &[]);
    assert_eq!(first.end().1["reason"], "stopped");
    let second = copies.next().unwrap();
    talk(&second);
    talk(&vm);
    let metrics = second.must(&json!({"metrics": {}}), &[])["metrics"].clone();
    let rss = metrics["vmm_rss_bytes"].as_u64().unwrap();
    assert!(
        rss < 5 << 20,
        "{rss} bytes of memory beyond the guest's RAM"
    );
    eprintln!("restored: vmm_rss_bytes {rss}, {}", metrics["boot_us"]);
}
