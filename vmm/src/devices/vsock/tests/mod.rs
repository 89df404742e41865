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
use crate::devices::testing::{DATA, DriverQueue, Machine, TIMEOUT};
use crate::virtio::device::VirtioDevice;

mod credit;
mod limits;
mod restored;
mod streams;

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
        self.next_until(Instant::now() + TIMEOUT)
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
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
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
