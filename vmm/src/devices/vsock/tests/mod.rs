//! The device as a Linux driver and host clients meet it: real Unix sockets, real rings, and a
//! small guest that keeps to the credit rules.

#![allow(
    clippy::cast_possible_truncation,
    reason = "patterns and lengths a test has chosen itself"
)]

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM};
use super::*;
use crate::devices::testing::{DATA, DriverQueue, Machine, PATIENCE};
use crate::virtio::device::VirtioDevice;

mod restored;

const CID: u64 = 42;
/// Receive buffers as Linux has them.
const RX_BYTES: u32 = 4096;
const RX_COUNT: u64 = 64;
const TX: u64 = DATA + RX_COUNT * RX_BYTES as u64;
/// Buffers for events, after all else.
const EVENTS: u64 = TX + (2 << 20);
/// The guest's own receive buffer per connection.
const ALLOC: u32 = 32 << 10;

struct Guest {
    machine: Machine<VsockDevice>,
    rx: DriverQueue,
    tx: DriverQueue,
    event: DriverQueue,
    /// The event buffers the device has, in the order it uses them.
    events: VecDeque<u64>,
    /// The next buffer for events that it has not used yet.
    next_event: u64,
    /// Its address.
    cid: u64,
    heads: HashMap<u16, u64>,
    /// How large the receive buffers are that it gives from now on.
    rx_bytes: u32,
    inbox: VecDeque<(Header, Vec<u8>)>,
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Guest {
    fn new() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let device = VsockDevice::new(VsockConfig {
            cid: CID,
            path: path.clone(),
        })
        .unwrap();
        Guest::start(device, dir, path)
    }

    fn start(device: VsockDevice, dir: tempfile::TempDir, path: PathBuf) -> Guest {
        let machine = Machine::new(device);
        let mut queues = machine.activate(true);
        let event = queues.remove(2);
        let tx = queues.remove(1);
        let rx = queues.remove(0);
        let mut guest = Guest {
            machine,
            rx,
            tx,
            event,
            events: VecDeque::new(),
            next_event: EVENTS,
            cid: CID,
            heads: HashMap::new(),
            rx_bytes: RX_BYTES,
            inbox: VecDeque::new(),
            _dir: dir,
            path,
        };
        for i in 0..RX_COUNT {
            guest.post(DATA + i * u64::from(RX_BYTES));
        }
        guest.rx.kick();
        guest
    }

    fn post(&mut self, at: u64) {
        let head = self.rx.offer(&[(at, self.rx_bytes, true)]);
        self.heads.insert(head, at);
    }

    fn send_header(&mut self, header: Header, data: &[u8]) {
        let mem = self.machine.mem.clone();
        mem.write_slice(&header.to_bytes(), GuestAddress(TX))
            .unwrap();
        mem.write_slice(data, GuestAddress(TX + HEADER as u64))
            .unwrap();
        let len = u32::try_from(data.len()).unwrap();
        if data.is_empty() {
            self.tx.offer(&[(TX, 44, false)]);
        } else {
            self.tx.offer(&[(TX, 44, false), (TX + 44, len, false)]);
        }
        self.tx.kick();
        self.tx.wait();
    }

    fn send(&mut self, op: Op, guest_port: u32, host_port: u32, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: u32::try_from(data.len()).unwrap(),
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc: ALLOC,
            fwd_cnt: 0,
        };
        self.send_header(header, data);
    }

    fn next_until(&mut self, deadline: Instant) -> Option<(Header, Vec<u8>)> {
        if let Some(packet) = self.inbox.pop_front() {
            return Some(packet);
        }
        let (head, len) = self.rx.wait_until(deadline)?;
        let at = self.heads.remove(&head).unwrap();
        let mut bytes = vec![0u8; len as usize];
        self.machine
            .mem
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        self.post(at);
        self.rx.kick();
        let header = Header::parse(bytes.first_chunk().unwrap());
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.dst_cid, self.cid);
        assert_eq!(header.len as usize, bytes.len() - HEADER);
        Some((header, bytes.split_off(HEADER)))
    }

    fn next(&mut self) -> (Header, Vec<u8>) {
        self.next_until(Instant::now() + PATIENCE)
            .unwrap_or_else(|| {
                panic!(
                    "no packet for the guest: {}",
                    self.machine.device().metrics()
                )
            })
    }

    fn quiet(&mut self) {
        let got = self.next_until(Instant::now() + Duration::from_millis(60));
        assert!(got.is_none(), "unexpected {got:?}");
    }

    /// A host client that asks for `port`.
    fn ask(&self, port: u32) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        client
    }

    /// A host client connects to `port`, the guest accepts: the client and its host port.
    fn connect(&mut self, port: u32) -> (UnixStream, u32) {
        let client = self.ask(port);
        self.accept(client, port)
    }

    /// The guest accepts what `client` asked for.
    fn accept(&mut self, mut client: UnixStream, port: u32) -> (UnixStream, u32) {
        let (request, _) = self.next();
        assert_eq!(request.op, Op::Request as u16);
        assert_eq!(request.dst_port, port);
        assert!(request.buf_alloc >= 4096);
        self.send(Op::Response, port, request.src_port, 0, &[]);
        let mut line = Vec::new();
        let mut byte = [0u8];
        while byte[0] != b'\n' {
            client.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        assert_eq!(
            String::from_utf8(line).unwrap(),
            format!("OK {}\n", request.src_port)
        );
        (client, request.src_port)
    }

    fn metric(&self, name: &str) -> u64 {
        self.machine.device().metrics()[name].as_u64().unwrap()
    }
}

#[test]
fn a_host_client_and_the_guest_talk_and_part() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(1024);
    client.write_all(b"ping").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, data.as_slice()), (Op::Rw as u16, &b"ping"[..]));
    guest.send(Op::Rw, 1024, port, 0, b"pong");
    let mut got = [0u8; 4];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
    drop(client);
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Shutdown as u16);
    assert_eq!(header.flags, SHUTDOWN_BOTH);
    guest.send(Op::Rst, 1024, port, 0, &[]);
    guest.quiet();
    assert_eq!(guest.metric("connections"), 0);
}

#[test]
fn a_half_close_leaves_the_other_direction() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(7);
    client.write_all(b"all I have").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().1, b"all I have");
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Shutdown as u16);
    assert_eq!(header.flags, SHUTDOWN_SEND);
    guest.send(Op::Rw, 7, port, 0, b"thanks");
    guest.send(Op::Shutdown, 7, port, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.next().0.op, Op::Rst as u16);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"thanks");
    assert_eq!(guest.metric("connections"), 0);
}

#[test]
fn the_guests_half_close_reaches_the_host() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(7);
    guest.send(Op::Rw, 7, port, 0, b"bye");
    guest.send(Op::Shutdown, 7, port, SHUTDOWN_SEND, &[]);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
    client.write_all(b"still here").unwrap();
    assert_eq!(guest.next().1, b"still here");
    // Data after the guest's own end of sending breaks the rules.
    guest.send(Op::Rw, 7, port, 0, b"more");
    assert_eq!(guest.next().0.op, Op::Rst as u16);
    assert_eq!(guest.metric("violations"), 1);
}

#[test]
fn the_guest_reaches_listeners_by_port_and_is_refused_elsewhere() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(format!("{}_1025", guest.path.display())).unwrap();
    guest.send(Op::Request, 5000, 1025, 0, &[]);
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Response as u16);
    assert_eq!((header.src_port, header.dst_port), (1025, 5000));
    let (mut host, _) = listener.accept().unwrap();
    guest.send(Op::Rw, 5000, 1025, 0, b"ready");
    let mut got = [0u8; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ready");
    guest.send(Op::Request, 5001, 1026, 0, &[]);
    let (header, _) = guest.next();
    assert_eq!(header.op, Op::Rst as u16);
    assert_eq!((header.src_port, header.dst_port), (1026, 5001));
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let (client, port) = guest.connect(9);
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i * 7 / 3) as u8).collect();
    let to_send = sent.clone();
    let mut writer = client.try_clone().unwrap();
    let thread = std::thread::spawn(move || writer.write_all(&to_send).unwrap());
    let mut got = Vec::new();
    let mut forwarded = 0u32;
    while got.len() < sent.len() {
        let (header, data) = guest.next();
        if header.op == Op::CreditRequest as u16 {
            // Full: exactly what was promised is in flight. Take it all and say so.
            assert_eq!(got.len() as u32 - forwarded, ALLOC);
            forwarded = got.len() as u32;
            let update = Header {
                src_cid: CID,
                dst_cid: HOST_CID,
                src_port: 9,
                dst_port: port,
                kind: TYPE_STREAM,
                op: Op::CreditUpdate as u16,
                buf_alloc: ALLOC,
                fwd_cnt: forwarded,
                ..Header::default()
            };
            guest.send_header(update, &[]);
            continue;
        }
        assert_eq!(header.op, Op::Rw as u16);
        got.extend_from_slice(&data);
        assert!(got.len() as u32 - forwarded <= ALLOC);
    }
    assert_eq!(got, sent);
    thread.join().unwrap();
}

#[test]
fn what_the_host_does_not_read_is_kept_up_to_the_promise_and_not_beyond() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.connect(9);
    // Fill the socket's own buffer and then the backlog; the device never forwards more than the
    // guest is told, and the guest stops when it has no credit.
    let chunk: Vec<u8> = (0..4096u32).map(|i| i as u8).collect();
    let mut sent = 0u32;
    let mut credit = (0u32, 0u32);
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline);
        while let Some((h, _)) = guest.next_until(Instant::now() + Duration::from_millis(1)) {
            credit = (h.buf_alloc, h.fwd_cnt);
        }
        if credit.0 == 0 {
            guest.send(Op::CreditRequest, 9, port, 0, &[]);
            let (h, _) = guest.next();
            credit = (h.buf_alloc, h.fwd_cnt);
        }
        let free = credit.0 - (sent - credit.1);
        if free < 4096 {
            guest.send(Op::CreditRequest, 9, port, 0, &[]);
            let (h, _) = guest.next();
            assert_eq!(h.op, Op::CreditUpdate as u16);
            if (h.buf_alloc, h.fwd_cnt) == credit {
                break;
            }
            credit = (h.buf_alloc, h.fwd_cnt);
            continue;
        }
        guest.send(Op::Rw, 9, port, 0, &chunk);
        sent += 4096;
    }
    // Ends for the guest; the host still gets every byte.
    guest.send(Op::Shutdown, 9, port, SHUTDOWN_BOTH, &[]);
    while guest.next().0.op != Op::Rst as u16 {}
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got.len() as u32, sent);
    assert!(got.iter().enumerate().all(|(i, b)| *b == i as u8));
    assert_eq!(guest.metric("violations"), 0);
}

#[test]
fn more_than_the_promise_ends_the_connection() {
    let mut guest = Guest::new();
    let (client, port) = guest.connect(9);
    let chunk = vec![0u8; 65536];
    let mut reset = false;
    for _ in 0..64 {
        guest.send(Op::Rw, 9, port, 0, &chunk);
        let got = guest.next_until(Instant::now() + Duration::from_millis(1));
        if got.is_some_and(|(h, _)| h.op == Op::Rst as u16) {
            reset = true;
            break;
        }
    }
    assert!(reset);
    assert_eq!(guest.metric("violations"), 1);
    drop(client);
}

#[test]
fn a_refused_port_closes_the_client() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    let (request, _) = guest.next();
    guest.send(Op::Rst, 80, request.src_port, 0, &[]);
    let mut got = Vec::new();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.read_to_end(&mut got).unwrap();
    assert!(got.is_empty());
}

#[test]
fn nonsense_is_answered_or_dropped_and_never_more() {
    let mut guest = Guest::new();
    let good = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 1,
        dst_port: 2,
        kind: TYPE_STREAM,
        op: Op::Rw as u16,
        ..Header::default()
    };
    // Of no connection, of an unknown type, of an unknown operation: reset.
    for header in [good, Header { kind: 9, ..good }, Header { op: 77, ..good }] {
        guest.send_header(header, &[]);
        assert_eq!(guest.next().0.op, Op::Rst as u16);
    }
    // From or to someone else, longer than the chain, a reset of nothing: silence.
    for header in [
        Header { src_cid: 3, ..good },
        Header { dst_cid: 9, ..good },
        Header { len: 5, ..good },
        Header {
            op: Op::Rst as u16,
            ..good
        },
    ] {
        guest.send_header(header, &[]);
    }
    guest.quiet();
    // Not even a header.
    guest.tx.offer(&[(TX, 43, false)]);
    guest.tx.kick();
    guest.tx.wait();
    guest.quiet();
    assert!(guest.metric("malformed") >= 6);
}

#[test]
fn refusals_wait_for_buffers_without_getting_lost() {
    let mut guest = Guest::new();
    // 1000 refused connects while only 64 receive buffers exist and none is recycled.
    let header = |port: u32| Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: port,
        dst_port: 2,
        kind: TYPE_STREAM,
        op: Op::Request as u16,
        ..Header::default()
    };
    let mem = guest.machine.mem.clone();
    let mut offered = 0u32;
    let mut refused = 0;
    while refused < 1000 {
        while offered < 1000 && guest.tx.room() > 0 {
            let at = TX + u64::from(offered) * 64;
            mem.write_slice(&header(offered).to_bytes(), GuestAddress(at))
                .unwrap();
            guest.tx.offer(&[(at, 44, false)]);
            offered += 1;
        }
        guest.tx.kick();
        let (h, _) = guest.next();
        assert_eq!(h.op, Op::Rst as u16);
        assert_eq!(h.dst_port, refused);
        refused += 1;
        while guest.tx.take().is_some() {}
    }
}

#[test]
fn buffers_without_room_for_data_hold_up_the_data_alone() {
    let mut guest = Guest::new();
    let (mut host, _) = guest.connect(7);
    guest.rx_bytes = HEADER as u32;
    for _ in 0..RX_COUNT {
        host.write_all(b"x").unwrap();
        assert_eq!(guest.next().1, b"x");
    }
    // All its buffers are headers now. Packets without data go on.
    host.write_all(b"y").unwrap();
    guest.rx_bytes = RX_BYTES;
    for _ in 0..RX_COUNT {
        guest.send(Op::Rw, 9999, 9999, 0, b"");
        assert_eq!(guest.next().0.op, Op::Rst as u16);
    }
    assert_eq!(guest.next().1, b"y");
}

#[test]
fn a_hundred_connections_echo_any_size() {
    let mut guest = Guest::new();
    let mut clients: Vec<_> = (0..100u32).map(|i| guest.connect(2000 + i)).collect();
    assert_eq!(guest.metric("connections"), 100);
    let size = |i: usize| (i * 37) % 3000 + 1;
    for (i, (client, _)) in clients.iter_mut().enumerate() {
        let data: Vec<u8> = (0..size(i)).map(|n| (n + i) as u8).collect();
        client.write_all(&data).unwrap();
    }
    let mut done = 0;
    while done < (0..100).map(size).sum() {
        let (h, data) = guest.next();
        if h.op == Op::Rw as u16 {
            done += data.len();
            guest.send(Op::Rw, h.dst_port, h.src_port, 0, &data);
        }
    }
    for (i, (client, _)) in clients.iter_mut().enumerate() {
        let mut got = vec![0u8; size(i)];
        client.read_exact(&mut got).unwrap();
        assert!(got.iter().enumerate().all(|(n, b)| *b == (n + i) as u8));
    }
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let guest = Guest::new();
    let mut silent = UnixStream::connect(&guest.path).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rude = UnixStream::connect(&guest.path).unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    rude.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = Vec::new();
    let _ = rude.read_to_end(&mut got);
    let _ = silent.read_to_end(&mut got);
    assert!(got.is_empty());
    assert_eq!(guest.metric("timeouts"), 1);
}

#[test]
fn while_paused_nothing_moves_and_afterwards_all_does() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connect(7);
    guest.machine.device().quiesce().unwrap();
    client.write_all(b"later").unwrap();
    guest.quiet();
    guest.machine.device().resume().unwrap();
    assert_eq!(guest.next().1, b"later");
}

/// A container's way to its guest's agent, which trusts whoever comes by vsock: neither by an
/// address that is not the host's, nor in the name of one that is not the guest's own.
#[test]
fn the_guest_cannot_reach_itself_or_others_by_way_of_the_vmm() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(format!("{}_1024", guest.path.display())).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (mut client, port) = guest.connect(1024);
    let own = (CID, HOST_CID);
    let elsewhere = [0, 1, HOST_CID, 3, CID, CID + 1, CID | 1 << 32, u64::MAX]
        .into_iter()
        .flat_map(|cid| [(CID, cid), (cid, HOST_CID), (HOST_CID, cid), (cid, cid)])
        .filter(|addresses| *addresses != own);
    let mut sent = 0;
    for (src_cid, dst_cid) in elsewhere {
        for op in 0..9 {
            for (src_port, dst_port) in [(5000, 1024), (1024, port), (port, 1024)] {
                let header = Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    kind: TYPE_STREAM,
                    op,
                    buf_alloc: ALLOC,
                    ..Header::default()
                };
                guest.send_header(header, &[]);
                sent += 1;
            }
        }
    }
    guest.quiet();
    assert_eq!(guest.metric("malformed"), sent);
    assert_eq!(guest.metric("guest_connects"), 0);
    assert!(listener.accept().is_err(), "someone was let in");
    // The host's own connection has seen nothing of it.
    client.write_all(b"ping").unwrap();
    assert_eq!(guest.next().1, b"ping");
}

#[test]
fn the_guest_cannot_take_the_hosts_way_in() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(format!("{}_1025", guest.path.display())).unwrap();
    let mut accepted = Vec::new();
    let (mut granted, mut refused) = (0, 0);
    for port in 0..300 {
        guest.send(Op::Request, port, 1025, 0, &[]);
        match guest.next().0.op {
            op if op == Op::Response as u16 => {
                granted += 1;
                accepted.push(listener.accept().unwrap().0);
            }
            op if op == Op::Rst as u16 => refused += 1,
            op => panic!("operation {op}"),
        }
    }
    assert_eq!((granted, refused), (256, 44));
    let _client = guest.connect(1024);
    // What the guest ends it can open again.
    guest.send(Op::Rst, 0, 1025, 0, &[]);
    guest.send(Op::Request, 1000, 1025, 0, &[]);
    assert_eq!(guest.next().0.op, Op::Response as u16);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_and_told() {
    let mut guest = Guest::new();
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    let (request, _) = guest.next();
    assert_eq!(request.op, Op::Request as u16);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got.is_empty());
    let (reset, _) = guest.next();
    assert_eq!(reset.op, Op::Rst as u16);
    assert_eq!(reset.src_port, request.src_port);
    assert_eq!(guest.metric("connections"), 0);
    // Its late answer is of no connection.
    guest.send(Op::Response, 80, request.src_port, 0, &[]);
    assert_eq!(guest.next().0.op, Op::Rst as u16);
}
