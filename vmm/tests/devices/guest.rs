//! The guest with its program, and what the tests say to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Guest, LIMIT, Vm, is_root};

/// As the other tests; what takes it is broken.
pub(crate) const TIMEOUT: Duration = LIMIT;
pub(crate) const MIB: u64 = 1 << 20;

/// One file of a "newc" archive.
pub(crate) fn entry(out: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
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

pub(crate) fn initramfs(init: &Path) -> File {
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
pub(crate) fn linux() -> Option<Guest> {
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

pub(crate) fn add_disk(guest: &mut Guest, id: &str, file: &File, read_only: bool) {
    let fd = guest.give(file.try_clone().unwrap());
    let disk = json!({"id": id, "fd": fd, "read_only": read_only, "queues": 1});
    guest.config["disks"].as_array_mut().unwrap().push(disk);
}

/// A tap named `name` with 10.9.`octet`.1/24.
pub(crate) fn tap(name: &str, octet: u8) -> File {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&0x5002u16.to_le_bytes());
    // SAFETY: TUNSETIFF takes a struct ifreq (40 bytes), which `request` is.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, &raw mut request) };
    assert_eq!(made, 0);
    for arguments in [
        format!("addr add 10.9.{octet}.1/24 dev {name}"),
        format!("link set {name} up"),
    ] {
        let done = std::process::Command::new("ip")
            .args(arguments.split(' '))
            .status();
        assert!(done.unwrap().success(), "ip {arguments}");
    }
    tap
}

/// A tap named `name` with 10.9.`octet`.1/24, and a network device on it.
pub(crate) fn add_net(guest: &mut Guest, name: &str, octet: u8, vhost: bool) {
    let tap = tap(name, octet);
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
pub(crate) fn up(guest: Guest) -> Vm {
    let path = guest.dir.path().join("v.sock_1025");
    let listener = UnixListener::bind(&path).unwrap();
    // A jailed VMM dials it as its own user.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let vm = guest.start();
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => assert!(Instant::now() < deadline, "console: {}", vm.console()),
        }
        // SAFETY: waits for nothing but time.
        unsafe { libc::poll(std::ptr::null_mut(), 0, 20) };
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut word = [0u8; 6];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ready\n");
    vm
}

pub(crate) fn connect(vm: &Vm, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(vm.path("v.sock")).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .unwrap();
    let mut line = Vec::new();
    let mut byte = [0u8];
    while byte[0] != b'\n' {
        // It ends early when the guest refuses.
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "));
    stream
}

pub(crate) fn run(vm: &Vm, command: &str) -> String {
    let mut stream = connect(vm, 1024);
    stream.write_all(format!("{command}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn metrics(vm: &Vm) -> Value {
    vm.must(&json!({"metrics": {}}), &[])["metrics"].clone()
}

pub(crate) fn pattern(len: u64, seed: u64) -> Vec<u8> {
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

pub(crate) fn file_of(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

/// FNV-1a.
pub(crate) fn sum(data: &[u8]) -> String {
    let hash = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Sends `data` through an echo and checks what comes back.
pub(crate) fn echo<S: Read + Write + Send>(
    stream: S,
    clone: S,
    data: &[u8],
    done: impl FnOnce(&S) + Send,
) {
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

/// State and memory of a snapshot, which leaves the VM paused.
pub(crate) fn snapshot(vm: &Vm) -> (File, File) {
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    vm.must(&json!({"snapshot": {}}), &fds);
    (state, memory)
}
