//! Frames over a tap, moved by the VMM and by the kernel.

use std::fs::File;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::guest::{MIB, TIMEOUT, add_net, echo, linux, metrics, pattern, run, tap, up};
use serde_json::json;

fn talk_over_tcp(octet: u8) {
    let stream = TcpStream::connect(format!("10.9.{octet}.2:7")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let clone = stream.try_clone().unwrap();
    let data = pattern(2 * MIB, 5);
    echo(stream, clone, &data, |s| {
        s.shutdown(Shutdown::Write).unwrap()
    });
}

#[test]
fn frames_go_through_the_vmm() {
    let Some(mut guest) = linux() else { return };
    add_net(&mut guest, "bhtest0", 20, false);
    let vm = up(guest);
    assert_eq!(run(&vm, "net 20"), "up");
    talk_over_tcp(20);
    let eth0 = &metrics(&vm)["devices"]["eth0"];
    assert_eq!(eth0["backend"], "own");
    assert_eq!(eth0["tx_bad"], 0);
    // Both directions moved large frames, so the offloads work.
    let mean =
        |frames: &str, bytes: &str| eth0[bytes].as_u64().unwrap() / eth0[frames].as_u64().unwrap();
    assert!(mean("rx_frames", "rx_bytes") > 1514 / 2, "{eth0}");
    vm.must(&json!({"pause": {}}), &[]);
    vm.must(&json!({"resume": {}}), &[]);
    talk_over_tcp(20);
}

#[test]
fn frames_go_through_vhost_net() {
    let Some(mut guest) = linux() else { return };
    if !Path::new("/dev/vhost-net").exists() {
        eprintln!("skipped: no /dev/vhost-net");
        return;
    }
    add_net(&mut guest, "bhtest1", 21, true);
    let vm = up(guest);
    assert_eq!(run(&vm, "net 21"), "up");
    talk_over_tcp(21);
    assert_eq!(metrics(&vm)["devices"]["eth0"]["backend"], "vhost");
    vm.must(&json!({"pause": {}}), &[]);
    vm.must(&json!({"resume": {}}), &[]);
    talk_over_tcp(21);
}

#[test]
fn a_device_that_is_plugged_moves_frames() {
    let Some(guest) = linux() else { return };
    let vm = up(guest);
    let tap = tap("bhtest2", 22);
    let request = json!({"attach_net": {"net": {"id": "late", "mac": "02:01:00:00:00:02",
        "mtu": 1500, "queue_size": 256}}});
    let vhost = File::options()
        .read(true)
        .write(true)
        .open("/dev/vhost-net");
    let mut files = vec![tap.as_raw_fd()];
    files.extend(vhost.as_ref().map(AsRawFd::as_raw_fd));
    vm.must(&request, &files);
    assert_eq!(run(&vm, "rescan"), "done");
    assert_eq!(run(&vm, "net 22"), "up");
    talk_over_tcp(22);
    let backend = if vhost.is_ok() { "vhost" } else { "own" };
    assert_eq!(metrics(&vm)["devices"]["late"]["backend"], backend);
    vm.must(&json!({"pause": {}}), &[]);
    vm.must(&json!({"resume": {}}), &[]);
    talk_over_tcp(22);
}
