//! The network device on a real tap, made in a network namespace of its own on a thread of its
//! own. That takes root; without it these tests say that they are skipped.

#![allow(
    clippy::cast_possible_truncation,
    reason = "patterns and lengths a test has chosen itself"
)]

use std::fs::{File, OpenOptions};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::testing::{DATA, DriverQueue, Machine};
use crate::virtio::device::VirtioDevice;

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const FLAGS: u16 = 0x5002; // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    data: [u8; 24],
}

impl IfReq {
    fn new(data: &[u8]) -> IfReq {
        let mut r = IfReq {
            name: [0; 16],
            data: [0; 24],
        };
        r.name[..4].copy_from_slice(b"tap0");
        r.data[..data.len()].copy_from_slice(data);
        r
    }
}

fn check(result: libc::c_int, what: &str) {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
}

/// Moves the calling thread into a fresh network namespace; false when that is not allowed.
fn own_network() -> bool {
    // SAFETY: no pointers.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if done < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::PermissionDenied {
        println!("skipped: needs root for a network namespace");
        return false;
    }
    check(done, "a network namespace");
    true
}

/// A tap with address 10.9.0.1/24, up, in the thread's namespace.
fn tap(flags: u16) -> OwnedFd {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .unwrap();
    let ioctl = |fd: i32, request: libc::Ioctl, r: &mut IfReq, what: &str| {
        // SAFETY: every request used here takes a struct ifreq (40 bytes).
        check(
            unsafe { libc::ioctl(fd, request, std::ptr::from_mut(r)) },
            what,
        );
    };
    ioctl(
        file.as_raw_fd(),
        TUNSETIFF,
        &mut IfReq::new(&flags.to_le_bytes()),
        "TUNSETIFF",
    );
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    check(socket, "socket");
    let mut address = [0u8; 16];
    address[0] = 2; // AF_INET
    address[4..8].copy_from_slice(&[10, 9, 0, 1]);
    let set = |request, data: &[u8], what| ioctl(socket, request, &mut IfReq::new(data), what);
    set(0x8916, &address, "SIOCSIFADDR");
    address[4..8].copy_from_slice(&[255, 255, 255, 0]);
    set(0x891c, &address, "SIOCSIFNETMASK");
    let mut mac = [0u8; 8];
    mac[0] = 1; // ARPHRD_ETHER
    mac[2..].copy_from_slice(&HOST_MAC);
    set(0x8924, &mac, "SIOCSIFHWADDR");
    set(0x8914, &0x1003u16.to_le_bytes(), "SIOCSIFFLAGS"); // up, broadcast, multicast
    // SAFETY: opened above, used no more.
    unsafe { libc::close(socket) };
    OwnedFd::from(file)
}

fn device(vhost: Option<OwnedFd>) -> NetDevice {
    NetDevice::new(NetConfig {
        id: "eth0".into(),
        tap: tap(FLAGS),
        vhost,
        mac: GUEST_MAC,
        mtu: 1500,
        queue_size: 256,
    })
    .unwrap()
}

/// In a thread, because a namespace is a thread's.
fn in_own_network(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        if own_network() {
            test();
        }
    })
    .join()
    .unwrap();
}

/// An Ethernet frame with a UDP datagram from 10.9.0.2:port to 10.9.0.1:port.
fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&HOST_MAC);
    frame.extend_from_slice(&GUEST_MAC);
    frame.extend_from_slice(&[8, 0]);
    let total = u16::try_from(28 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&total.to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    let mut sum: u32 = ip
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&(total - 20).to_be_bytes());
    frame.extend_from_slice(&[0, 0]); // no checksum
    frame.extend_from_slice(payload);
    frame
}

/// Sends a frame from the guest.
fn send(machine: &Machine<NetDevice>, tx: &mut DriverQueue, header: [u8; 12], frame: &[u8]) {
    let at = DATA + 0x40_0000;
    machine.mem.write_slice(&header, GuestAddress(at)).unwrap();
    machine
        .mem
        .write_slice(frame, GuestAddress(at + 0x100))
        .unwrap();
    let len = u32::try_from(frame.len()).unwrap();
    tx.offer(&[(at, 12, false), (at + 0x100, len, false)]);
    tx.kick();
    tx.wait();
}

/// Takes one frame for the guest, put together from `count` buffers, if it is UDP to `port`.
fn frame_for(
    machine: &Machine<NetDevice>,
    rx: &mut DriverQueue,
    heads: &mut std::collections::HashMap<u16, u64>,
    port: u16,
) -> (Vec<u8>, u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut frame = Vec::new();
        let mut count = 1;
        let mut got = 0;
        while got < count {
            let (head, len) = rx.wait_until(deadline).expect("a frame");
            let at = heads.remove(&head).unwrap();
            let mut bytes = vec![0u8; len as usize];
            machine
                .mem
                .read_slice(&mut bytes, GuestAddress(at))
                .unwrap();
            if got == 0 {
                count = u16::from_le_bytes([bytes[10], bytes[11]]);
                bytes.drain(..12);
            }
            frame.extend_from_slice(&bytes);
            got += 1;
        }
        // Others are the host's own doings (neighbour discovery).
        if frame.len() > 42 && frame[36..38] == port.to_be_bytes() {
            return (frame, count);
        }
    }
}

fn post(rx: &mut DriverQueue, heads: &mut std::collections::HashMap<u16, u64>, n: u64, len: u32) {
    for i in 0..n {
        let at = DATA + i * u64::from(len.next_power_of_two());
        let head = rx.offer(&[(at, len, true)]);
        heads.insert(head, at);
    }
    rx.kick();
}

/// Both directions over whatever moves the frames.
fn talk(vhost: Option<OwnedFd>, backend: &str) {
    let machine = Machine::new(device(vhost));
    let mut queues = machine.activate(true);
    assert_eq!(machine.device().metrics()["backend"], backend);
    let mut tx = queues.remove(1);
    let mut rx = queues.remove(0);
    let mut heads = std::collections::HashMap::new();
    post(&mut rx, &mut heads, 256, 1024);
    let host = UdpSocket::bind("10.9.0.1:700").unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    for i in 0..50u8 {
        send(&machine, &mut tx, [0; 12], &udp(700, &[i; 100]));
        let mut got = [0u8; 200];
        // The first answer needs the guest's address: from the frame's source, by hand.
        let n = host.recv(&mut got).unwrap();
        assert_eq!(&got[..n], &[i; 100]);
    }
    arp();
    // Larger than one buffer: merged ones.
    host.send_to(&[7; 1400], "10.9.0.2:701").unwrap();
    let (frame, count) = frame_for(&machine, &mut rx, &mut heads, 701);
    assert_eq!(count, 2);
    assert_eq!(&frame[42..], &[7; 1400]);

    // Paused, nothing moves; a frame that comes meanwhile is there afterwards.
    machine.device().quiesce().unwrap();
    let saved = machine.device().save().unwrap();
    assert_eq!(saved.queues.len(), 2);
    assert_eq!(saved.queues[1].next_used, 50);
    assert_eq!(saved.queues[1].next_avail, 50);
    assert_eq!(saved.queues[0].next_avail, saved.queues[0].next_used);
    host.send_to(&[9; 10], "10.9.0.2:702").unwrap();
    machine.device().resume().unwrap();
    let (frame, _) = frame_for(&machine, &mut rx, &mut heads, 702);
    assert_eq!(&frame[42..], &[9; 10]);
    send(&machine, &mut tx, [0; 12], &udp(700, b"again"));
    let mut got = [0u8; 200];
    assert_eq!(host.recv(&mut got).unwrap(), 5);
}

/// Tells the host the guest's hardware address.
fn arp() {
    // struct arpreq: protocol address, hardware address, flags, netmask, device
    let mut request = [0u8; 68];
    request[0] = 2;
    request[4..8].copy_from_slice(&[10, 9, 0, 2]);
    request[16] = 1;
    request[18..24].copy_from_slice(&GUEST_MAC);
    request[32] = 6; // ATF_PERM | ATF_COM
    request[52..56].copy_from_slice(b"tap0");
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    // SAFETY: SIOCSARP reads one struct arpreq (68 bytes).
    check(
        unsafe { libc::ioctl(socket.as_raw_fd(), 0x8955, request.as_ptr()) },
        "SIOCSARP",
    );
}

#[test]
fn frames_go_both_ways_through_the_vmm() {
    in_own_network(|| talk(None, "own"));
}

#[test]
fn frames_go_both_ways_through_vhost_net() {
    let vhost = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/vhost-net");
    let Ok(vhost) = vhost else {
        println!("skipped: this machine has no /dev/vhost-net");
        return;
    };
    in_own_network(|| talk(Some(vhost.into()), "vhost"));
}

#[test]
fn a_driver_without_merged_buffers_gets_whole_frames() {
    in_own_network(|| {
        let machine = Machine::new(device(None));
        let features = machine.device().device_features()
            & !(1 << VIRTIO_NET_F_MRG_RXBUF
                | 1 << VIRTIO_NET_F_GUEST_TSO4
                | 1 << VIRTIO_NET_F_GUEST_TSO6);
        let mut queues = machine.activate_with(features, true);
        let mut rx = queues.remove(0);
        let mut heads = std::collections::HashMap::new();
        post(&mut rx, &mut heads, 64, 2048);
        arp();
        let host = UdpSocket::bind("10.9.0.1:700").unwrap();
        for i in 0..20u8 {
            host.send_to(&[i; 1472], "10.9.0.2:703").unwrap();
            let (frame, count) = frame_for(&machine, &mut rx, &mut heads, 703);
            assert_eq!(count, 1);
            assert_eq!(&frame[42..], &[i; 1472]);
        }
    });
}

#[test]
fn frames_wait_for_buffers_and_bad_ones_go_nowhere() {
    in_own_network(|| {
        let machine = Machine::new(device(None));
        let mut queues = machine.activate(true);
        let mut tx = queues.remove(1);
        let mut rx = queues.remove(0);
        arp();
        let host = UdpSocket::bind("10.9.0.1:700").unwrap();
        host.send_to(b"early", "10.9.0.2:704").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while machine.device().metrics()["rx_starved"] == 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        let mut heads = std::collections::HashMap::new();
        // Outside of memory: given back unused.
        let bad = rx.offer(&[(u64::MAX - 4096, 2048, true)]);
        rx.kick();
        assert_eq!(rx.wait(), (bad, 0));
        post(&mut rx, &mut heads, 100, 1024);
        let (frame, _) = frame_for(&machine, &mut rx, &mut heads, 704);
        assert_eq!(&frame[42..], b"early");

        let frame = udp(705, b"x");
        let mut bad_offload = [0; 12];
        bad_offload[1] = 3; // UFO was not offered
        send(&machine, &mut tx, bad_offload, &frame);
        send(&machine, &mut tx, [0; 12], &frame[..10]);
        tx.offer(&[(DATA, 5, false)]);
        tx.kick();
        tx.wait();
        let metrics = machine.device().metrics();
        assert_eq!(metrics["tx_bad"], 3);
        assert_eq!(metrics["tx_frames"], 0);
        send(&machine, &mut tx, [0; 12], &frame);
        assert_eq!(machine.device().metrics()["tx_frames"], 1);
    });
}

#[test]
fn what_is_no_tap_and_what_cannot_be_is_refused() {
    in_own_network(|| {
        let make = |tap: OwnedFd, mac: [u8; 6], mtu, queue_size| {
            NetDevice::new(NetConfig {
                id: "eth0".into(),
                tap,
                vhost: None,
                mac,
                mtu,
                queue_size,
            })
        };
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let no_header = tap(FLAGS & !0x4000);
        assert!(matches!(
            make(no_header, GUEST_MAC, 1500, 256),
            Err(NetError::Tap { .. })
        ));
        for (mac, mtu, size) in [
            ([1, 0, 0, 0, 0, 0], 1500, 256),
            (GUEST_MAC, 67, 256),
            (GUEST_MAC, 1500, 255),
            (GUEST_MAC, 1500, 2048),
        ] {
            assert!(matches!(
                make(null(), mac, mtu, size),
                Err(NetError::BadConfig { .. })
            ));
        }
        assert!(matches!(
            make(null(), GUEST_MAC, 1500, 256),
            Err(NetError::Tap { .. })
        ));
    });
}

#[test]
fn a_saved_form_keeps_the_offer() {
    in_own_network(|| {
        let config = || NetConfig {
            id: "eth0".into(),
            tap: tap(FLAGS),
            vhost: None,
            mac: GUEST_MAC,
            mtu: 9000,
            queue_size: 128,
        };
        let saved = NetDevice::new(config()).unwrap().save().unwrap().state;
        let mut less = saved.clone();
        less["features"] = (1u64 << VIRTIO_NET_F_CSUM).into();
        let device = NetDevice::restore(config(), &less).unwrap();
        assert_eq!(device.device_features(), 1 << VIRTIO_NET_F_CSUM);
        assert_eq!(device.queue_max_sizes(), [128, 128]);
        let mut space = [0u8; 12];
        device.read_config(0, &mut space);
        assert_eq!(space, [2, 0, 0, 0, 0, 2, 1, 0, 1, 0, 0x28, 0x23]);
        drop(device);
        let mut more = saved;
        more["features"] = u64::MAX.into();
        assert!(NetDevice::restore(config(), &more).is_err());
    });
}
