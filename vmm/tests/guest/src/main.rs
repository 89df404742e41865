//! The whole user space of a guest that tests the devices: PID 1 of an initramfs, static.
//!
//! It dials host port 1025 when it is up, echoes on vsock port 7, and takes one command per
//! connection on vsock port 1024: a line in, text out. `vmm/tests/devices/` drives it. It is no
//! part of what a node runs.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test program: whatever goes wrong ends the guest, and the test sees it"
)]

mod share;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

const CHUNK: usize = 64 << 10;
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

fn main() {
    for (what, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(what, at);
    }
    let commands = listen(1024);
    let echoes = listen(7);
    std::thread::spawn(move || serve(&echoes, echo));
    let mut host = vsock();
    assert_eq!(
        call(&host, 1025, HOST, libc::connect),
        0,
        "dialling the host"
    );
    host.write_all(b"ready\n").unwrap();
    serve(&commands, command);
}

fn mount(what: &str, at: &str) {
    fs::create_dir_all(at).unwrap();
    let (what, at) = (CString::new(what).unwrap(), CString::new(at).unwrap());
    // SAFETY: three strings that end in zero, no data.
    unsafe {
        libc::mount(
            what.as_ptr(),
            at.as_ptr(),
            what.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
}

fn vsock() -> File {
    // SAFETY: no pointers; the descriptor is nobody else's.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "vsock: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    }
}

type AddressCall =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

fn call(socket: &File, port: u32, cid: u32, function: AddressCall) -> libc::c_int {
    // SAFETY: plain data, for which zeroes are a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_port = port;
    address.svm_cid = cid;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is as long as said.
    unsafe { function(socket.as_raw_fd(), (&raw const address).cast(), len) }
}

fn listen(port: u32) -> File {
    let socket = vsock();
    assert_eq!(call(&socket, port, ANY, libc::bind), 0);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 128) }, 0);
    socket
}

fn serve(listener: &File, with: fn(File)) {
    loop {
        // SAFETY: no address is wanted; the descriptor is nobody else's.
        let fd = unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        if fd >= 0 {
            // SAFETY: as above.
            let stream = unsafe { File::from_raw_fd(fd) };
            std::thread::spawn(move || with(stream));
        }
    }
}

fn echo(mut stream: File) {
    let mut buffer = vec![0u8; CHUNK];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

fn command(mut stream: File) {
    let mut line = Vec::new();
    let mut byte = [0u8];
    while stream.read(&mut byte).is_ok_and(|n| n == 1) && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let words: Vec<_> = line.split(' ').collect();
    let answer = match words[..] {
        ["sum", serial] => sum(serial),
        ["fill", serial, seed] => fill(serial, seed.parse().unwrap()),
        ["write", serial] => write_sector(serial),
        ["disks"] => disks(),
        ["rescan"] => act("/sys/bus/pci/rescan"),
        ["remove", serial] => act(&format!("{}/device/../remove", disk(serial))),
        ["eat", mib] => eat(mib.parse().unwrap()),
        ["net", octet] => net(octet.parse().unwrap()),
        ["fs", ref words @ ..] => share::run(words),
        ["poweroff"] => {
            // SAFETY: no pointers.
            unsafe { libc::reboot(libc::RB_POWER_OFF) };
            String::new()
        }
        _ => format!("no such command: {line}"),
    };
    let _ = stream.write_all(answer.as_bytes());
}

/// The directory in /sys of the disk with this serial.
fn disk(serial: &str) -> String {
    fs::read_dir("/sys/block")
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| fs::read_to_string(p.join("serial")).is_ok_and(|s| s.trim() == serial))
        .map_or_else(String::new, |p| p.display().to_string())
}

fn node(serial: &str) -> String {
    let name = Path::new(&disk(serial)).file_name().unwrap().to_owned();
    format!("/dev/{}", name.to_str().unwrap())
}

fn disks() -> String {
    let mut all: Vec<_> = fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|e| fs::read_to_string(e.unwrap().path().join("serial")).ok())
        .collect();
    all.sort();
    all.join(" ")
}

/// FNV-1a over the whole disk.
fn sum(serial: &str) -> String {
    let mut file = File::open(node(serial)).unwrap();
    let mut buffer = vec![0u8; CHUNK];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    while let n @ 1.. = file.read(&mut buffer).unwrap() {
        for byte in &buffer[..n] {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// Writes a pattern over the whole disk, and waits until it is durable.
fn fill(serial: &str, seed: u64) -> String {
    let sectors: u64 = fs::read_to_string(format!("{}/size", disk(serial)))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut file = File::options().write(true).open(node(serial)).unwrap();
    let mut state = seed;
    for _ in 0..sectors * 512 / CHUNK as u64 {
        let chunk: Vec<u8> = (0..CHUNK / 8)
            .flat_map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state.to_le_bytes()
            })
            .collect();
        file.write_all(&chunk).unwrap();
    }
    file.sync_all().unwrap();
    "filled".into()
}

fn write_sector(serial: &str) -> String {
    match File::options().write(true).open(node(serial)) {
        Ok(mut file) => match file.write_all(&[0; 512]).and_then(|()| file.sync_all()) {
            Ok(()) => "written".into(),
            Err(e) => e.to_string(),
        },
        Err(e) => e.to_string(),
    }
}

fn act(path: &str) -> String {
    fs::write(path, "1").map_or_else(|e| format!("{path}: {e}"), |()| "done".into())
}

/// Touches memory and gives it back to the guest's kernel.
fn eat(mib: usize) -> String {
    let mut memory = vec![0u8; mib << 20];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    "eaten".into()
}

/// Brings eth0 up as 10.9.OCTET.2/24 with a TCP echo on port 7.
fn net(octet: u8) -> String {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        data: [u8; 24],
    }
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    let set = |code: libc::c_ulong, data: &[u8]| {
        let mut request = Request {
            name: [0; 16],
            data: [0; 24],
        };
        request.name[..4].copy_from_slice(b"eth0");
        request.data[..data.len()].copy_from_slice(data);
        // SAFETY: these requests take a struct ifreq (40 bytes).
        let done = unsafe { libc::ioctl(socket, code as libc::Ioctl, &raw mut request) };
        assert!(done >= 0, "{code:#x}: {}", std::io::Error::last_os_error());
    };
    let mut address = [0u8; 16];
    address[0] = libc::AF_INET as u8;
    address[4..8].copy_from_slice(&[10, 9, octet, 2]);
    set(0x8916, &address); // SIOCSIFADDR
    address[4..8].copy_from_slice(&[255, 255, 255, 0]);
    set(0x891c, &address); // SIOCSIFNETMASK
    set(0x8914, &0x1003u16.to_le_bytes()); // SIOCSIFFLAGS: up
    let listener = TcpListener::bind("0.0.0.0:7").unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0u8; CHUNK];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    "up".into()
}
