//! Every device with a Linux guest: what the disks hold, a hundred vsock streams, frames over a
//! tap with and without vhost-net, memory that comes back, and all of it again after a restore.
//!
//! Needs KVM that runs Linux and root. `tests/in-host.sh` builds the guest's program, and
//! runs this in the test host; without `BULKHEAD_GUEST_KERNEL` and `BULKHEAD_DEVICE_GUEST` the
//! tests say that they are skipped.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::panic
)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{FILE_SERVER, Guest, LIMIT, Share, Vm, capabilities, is_root, mount};
use serde_json::{Value, json};

/// As the other tests; what takes it is broken.
const PATIENCE: Duration = LIMIT;
const MIB: u64 = 1 << 20;

/// One file of a "newc" archive.
fn entry(out: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let (major, minor) = device;
    let fields = [
        out.len() as u32 + 1,
        mode,
        0,
        0,
        1,
        0,
        data.len() as u32,
        0,
        0,
        major,
        minor,
        name.len() as u32 + 1,
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn initramfs(init: &Path) -> File {
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o40755, (0, 0), &[]);
    entry(&mut archive, "dev/console", 0o20600, (5, 1), &[]);
    entry(
        &mut archive,
        "init",
        0o100_755,
        (0, 0),
        &std::fs::read(init).unwrap(),
    );
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive).unwrap();
    file
}

/// A guest with that kernel and program, or nothing with a word why.
fn linux() -> Option<Guest> {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(kernel), Some(init)) = (path("BULKHEAD_GUEST_KERNEL"), path("BULKHEAD_DEVICE_GUEST"))
    else {
        eprintln!("skipped: needs a guest kernel and program (tests/in-host.sh)");
        return None;
    };
    if !is_root() {
        return None;
    }
    let mut guest = Guest::new(&[])?;
    guest.config["kernel_fd"] = guest.give(File::open(kernel).unwrap()).into();
    guest.config["initramfs_fd"] = guest.give(initramfs(&init)).into();
    guest.config["memory_mib"] = 256.into();
    guest.config["disks"] = json!([]);
    guest.config["vsock"] = json!({"cid": 3, "path": guest.dir.path().join("v.sock")});
    Some(guest)
}

fn add_disk(guest: &mut Guest, id: &str, file: &File, read_only: bool) {
    let fd = guest.give(file.try_clone().unwrap());
    let disk = json!({"id": id, "fd": fd, "read_only": read_only, "queues": 1});
    guest.config["disks"].as_array_mut().unwrap().push(disk);
}

/// A tap named `name` with 10.9.`octet`.1/24, and a network device on it.
fn add_net(guest: &mut Guest, name: &str, octet: u8, vhost: bool) {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&0x5002u16.to_le_bytes());
    // SAFETY: TUNSETIFF takes a struct ifreq (40 bytes).
    assert_eq!(
        unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, &raw mut request) },
        0
    );
    for arguments in [
        format!("addr add 10.9.{octet}.1/24 dev {name}"),
        format!("link set {name} up"),
    ] {
        let done = std::process::Command::new("ip")
            .args(arguments.split(' '))
            .status();
        assert!(done.unwrap().success(), "ip {arguments}");
    }
    let vhost = vhost.then(|| {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-net");
        guest.give(file.unwrap())
    });
    let tap = guest.give(tap);
    guest.config["nets"] = json!([{
        "id": "eth0", "tap_fd": tap, "vhost_fd": vhost, "mac": "02:00:00:00:00:02",
        "mtu": 1500, "queue_size": 256,
    }]);
}

/// Starts it and waits for its word.
fn up(guest: Guest) -> Vm {
    let path = guest.dir.path().join("v.sock_1025");
    let listener = UnixListener::bind(&path).unwrap();
    // A jailed VMM dials it as its own user.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let vm = guest.start();
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => assert!(Instant::now() < deadline, "console: {}", vm.console()),
        }
        // SAFETY: waits for nothing but time.
        unsafe { libc::poll(std::ptr::null_mut(), 0, 20) };
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = [0u8; 6];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ready\n");
    vm
}

fn connect(vm: &Vm, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(vm.path("v.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .unwrap();
    let mut line = Vec::new();
    let mut byte = [0u8];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte).expect("refused");
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "));
    stream
}

fn run(vm: &Vm, command: &str) -> String {
    let mut stream = connect(vm, 1024);
    stream.write_all(format!("{command}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metrics(vm: &Vm) -> Value {
    vm.must(&json!({"metrics": {}}), &[])["metrics"].clone()
}

fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..len / 8)
        .flat_map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_le_bytes()
        })
        .collect()
}

fn file_of(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

/// FNV-1a.
fn sum(data: &[u8]) -> String {
    let hash = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Sends `data` through an echo and checks what comes back.
fn echo<S: Read + Write + Send>(stream: S, clone: S, data: &[u8], done: impl FnOnce(&S) + Send) {
    let (mut reader, mut writer) = (stream, clone);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(data).unwrap();
            done(&writer);
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), data.len());
        assert!(got == data, "echoed bytes differ");
    });
}

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
}

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
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"CONNECT 4242\n").unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

fn talk_over_tcp(octet: u8) {
    let stream = TcpStream::connect(format!("10.9.{octet}.2:7")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
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

/// The pain in Kata's issue 8401: memory freed in the guest never returned.
#[test]
fn kc8401_memory_freed_in_the_guest_goes_back_to_the_host() {
    let Some(guest) = linux() else { return };
    let vm = up(guest);
    let resident = |vm: &Vm| metrics(vm)["guest_resident_bytes"].as_u64().unwrap() / MIB;
    let before = resident(&vm);
    assert_eq!(run(&vm, "eat 120"), "eaten");
    // The guest's kernel reports free pages some seconds after they were freed.
    let deadline = Instant::now() + PATIENCE;
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
    // The original goes on, with its connection.
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

#[test]
fn a_share_is_served_with_its_owners_from_inside_the_jail() {
    let Some(mut guest) = linux() else { return };
    let volumes = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let dir = volumes.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    };
    let (rw, ro, late) = (dir("rw"), dir("ro"), dir("late"));
    // For users of the guest that are not root.
    std::fs::set_permissions(&rw, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(ro.join("config"), "fixed").unwrap();
    std::fs::write(volumes.path().join("single"), "one file").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", ro.join("link")).unwrap();
    let share = Share::new(&mut guest);
    share.volume("rw", &rw, "");
    share.volume("ro", &ro, "ro");
    share.volume("single", &volumes.path().join("single"), "");
    guest.config["vsock"]["path"] = "v.sock".into();
    let mut guest = guest.jailed();
    guest.config["jail"]["max_files"] = 4096.into();
    let uid = guest.config["jail"]["uid"].as_u64().unwrap();
    let vm = up(guest);

    // The threads that serve files have what that takes; all others have nothing.
    let threads = capabilities(&vm);
    let servers = threads.iter().filter(|(name, _)| name.starts_with("fs"));
    assert_eq!(servers.count(), 4, "{threads:?}");
    for (name, sets) in &threads {
        let expected = match name.starts_with("fs") {
            true => format!("0 {FILE_SERVER} {FILE_SERVER} 0 0"),
            false => "0 0 0 0 0".to_owned(),
        };
        assert_eq!(sets, &expected, "{name}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid)).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}")),
        "{status}"
    );

    assert_eq!(run(&vm, "fs mount t"), "done");
    assert_eq!(run(&vm, "fs ls ."), "ro rw single");
    assert_eq!(run(&vm, "fs check"), "done", "console: {}", vm.console());
    assert_eq!(run(&vm, "fs read single"), "one file");
    // Read-only stays read-only, and what lies between the volumes is nobody's to write.
    assert_eq!(run(&vm, "fs read ro/config"), "fixed");
    for write in [
        "fs write ro/config x",
        "fs write ro/new x",
        "fs mkdir between",
        "fs remove ro/config",
        "fs rename single other",
    ] {
        let answer = run(&vm, write);
        let busy = write.contains("single") && answer == format!("error {}", libc::EBUSY);
        assert!(
            busy || answer == format!("error {}", libc::EROFS),
            "{write}: {answer}"
        );
    }
    // A link's target is the guest's, where there is no /etc.
    assert_eq!(
        run(&vm, "fs read ro/link"),
        format!("error {}", libc::ENOENT)
    );
    for across in [
        "fs link ro/config rw/config",
        "fs rename ro/config rw/config",
    ] {
        let answer = run(&vm, across);
        assert!(answer.starts_with("error"), "{answer}");
    }

    // Owners, groups and the mask.
    assert_eq!(run(&vm, "fs make 1000 2000 rw/made"), "done");
    for (name, mode) in [("made", 0o750), ("made/file", 0o640)] {
        let meta = std::fs::metadata(rw.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1000, 2000));
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    let link = std::fs::symlink_metadata(rw.join("made/link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (1000, 2000));
    assert_eq!(run(&vm, "fs idmap rw"), "100007 100007", "{}", vm.console());
    let mapped = std::fs::metadata(rw.join("mapped")).unwrap();
    assert_eq!((mapped.uid(), mapped.gid()), (7, 7));

    // What the host does is seen at the next look.
    for round in 0..20 {
        let text = "x".repeat(round);
        std::fs::write(rw.join("live"), &text).unwrap();
        assert_eq!(run(&vm, "fs read rw/live"), text);
        std::fs::write(rw.join("new"), &text).unwrap();
        std::fs::rename(rw.join("new"), rw.join("live")).unwrap();
        assert_eq!(run(&vm, "fs read rw/live"), text);
        std::fs::remove_file(rw.join("live")).unwrap();
        let gone = run(&vm, "fs stat rw/live");
        assert_eq!(gone, format!("error {}", libc::ENOENT));
    }
    // Mounted on the host after the start, and gone again.
    std::fs::write(late.join("file"), "late").unwrap();
    share.volume("late", &late, "ro");
    assert_eq!(run(&vm, "fs read late/file"), "late");
    assert_eq!(
        run(&vm, "fs write late/file x"),
        format!("error {}", libc::EROFS)
    );
    let nested = share.0.join("rw/made");
    mount(&["-t", "tmpfs", "none", nested.to_str().unwrap()]);
    std::fs::write(nested.join("deep"), "x").unwrap();
    assert_eq!(run(&vm, "fs ls rw/made"), "deep");
    let path = share.0.join("late");
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a string that ends in zero.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
    assert_eq!(run(&vm, "fs ls late"), "");
    let path = std::ffi::CString::new(nested.to_str().unwrap()).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
    assert_eq!(run(&vm, "fs ls rw/made"), "file link");

    // Its kernel holds what is in use, and no more.
    let all = metrics(&vm);
    let fs = &all["devices"]["fs"];
    println!("{fs}");
    assert!(fs["nodes"].as_u64() < Some(20), "{fs}");
    assert_eq!(
        (&fs["handles"], &fs["malformed"], &fs["limited"]),
        (&json!(0), &json!(0), &json!(0))
    );
    println!(
        "VMM beyond the guest: {} KiB",
        all["vmm_rss_bytes"].as_u64().unwrap() >> 10
    );
    assert!(all["vmm_rss_bytes"].as_u64() < Some(12 * MIB));

    // A pause is possible whatever is open; a snapshot when nothing is.
    assert_eq!(run(&vm, "fs keep rw/mapped"), "done");
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    let refused = vm.ask(&json!({"snapshot": {}}), &fds);
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("the guest holds"), "{refused}");
    vm.must(&json!({"resume": {}}), &[]);
    assert_eq!(run(&vm, "fs read rw/mapped"), "");
}

#[test]
fn a_restored_guest_mounts_its_share() {
    let Some(mut guest) = linux() else { return };
    let share = Share::new(&mut guest);
    std::fs::write(share.0.join("file"), "first").unwrap();
    guest.config["fs"]["share"] = share.0.to_str().unwrap().into();
    let vm = up(guest);
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    vm.must(
        &json!({"snapshot": {}}),
        &[state.as_raw_fd(), memory.as_raw_fd()],
    );
    let Some(mut copy) = Guest::from_snapshot(state, memory) else {
        return;
    };
    let own = Share::new(&mut copy);
    std::fs::write(own.0.join("file"), "second").unwrap();
    copy.config["fs"]["share"] = own.0.to_str().unwrap().into();
    copy.config["memory_mib"] = 256.into();
    copy.config["disks"] = json!([]);
    copy.config["vsock"] = json!({"cid": 10, "path": copy.dir.path().join("v.sock")});
    let copy = copy.start();
    assert_eq!(run(&copy, "fs mount t"), "done");
    assert_eq!(run(&copy, "fs read file"), "second");
    vm.must(&json!({"resume": {}}), &[]);
    assert_eq!(run(&vm, "fs mount t"), "done");
    assert_eq!(run(&vm, "fs read file"), "first");
}

/// State and memory of a snapshot, which leaves the VM paused.
fn snapshot(vm: &Vm) -> (File, File) {
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    vm.must(&json!({"snapshot": {}}), &fds);
    (state, memory)
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

/// Sequential in MiB, random in 4 KiB, as the guest's `bench` command does it; in microseconds.
fn on_the_host(path: &Path, mode: &str, mib: u64) -> u128 {
    let mut buffer = vec![0x5a; 1 << 20];
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    let start = Instant::now();
    match mode {
        "write" => {
            for _ in 0..mib {
                file.write_all(&buffer).unwrap();
            }
            file.sync_all().unwrap();
        }
        "read" => while file.read(&mut buffer).unwrap() > 0 {},
        _ => {
            let mut state = 1u64;
            for _ in 0..2000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 16) % (mib * 256) * 4096;
                match mode {
                    "randread" => file.read_exact_at(&mut buffer[..4096], at).unwrap(),
                    _ => file.write_all_at(&buffer[..4096], at).unwrap(),
                }
            }
        }
    }
    start.elapsed().as_micros()
}

/// Prints what the share costs beside the host's own file system; how long is no matter of passing.
#[test]
fn a_share_moves_the_same_bytes_as_the_hosts_file_system() {
    let Some(mut guest) = linux() else { return };
    let share = Share::new(&mut guest);
    guest.config["fs"]["share"] = share.0.to_str().unwrap().into();
    let vm = up(guest);
    assert_eq!(run(&vm, "fs mount t"), "done");
    let mib = 32;
    for mode in ["write", "read", "randread", "randwrite"] {
        let host = on_the_host(&share.0.join("host"), mode, mib);
        let answer = run(&vm, &format!("fs bench guest {mode} {mib}"));
        let (count, guest) = answer.split_once(' ').unwrap();
        assert!(count.parse::<u64>().unwrap() >= mib, "{answer}");
        println!("{mode}: {host} us on the host, {guest} us in the guest");
    }
    let (host, guest) = (share.0.join("host"), share.0.join("guest"));
    assert!(std::fs::read(host).unwrap() == std::fs::read(guest).unwrap());
    println!("{}", metrics(&vm)["devices"]["fs"]);
}
