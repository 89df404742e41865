//! What cannot be seen from outside: how long the queues become.

use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress, Permissions};

use super::*;
use crate::memory::GuestMemory;

/// A guest that gives no buffers, so that it is never told anything.
struct Guest {
    muxer: Muxer,
    mem: GuestMemory,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        Guest {
            muxer: Muxer::bind(3, &dir.path().join("v.sock")).unwrap(),
            mem: GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap(),
            dir,
        }
    }

    fn send(&mut self, op: Op, guest_port: u32) {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: 1025,
            kind: TYPE_STREAM,
            op: op as u16,
            ..Header::default()
        };
        self.mem
            .write_slice(&header.to_bytes(), GuestAddress(0))
            .unwrap();
        let mut packet = IoVecs::new();
        packet
            .push(&self.mem, GuestAddress(0), 44, Permissions::Read)
            .unwrap();
        self.muxer.receive(&mut packet);
    }
}

#[test]
fn a_guest_without_buffers_makes_no_queue_longer_than_the_table() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.dir.path().join("v.sock_1025")).unwrap();
    listener.set_nonblocking(true).unwrap();
    for round in 0..5000 {
        guest.send(Op::Request, round % 7);
        drop(listener.accept().unwrap());
        guest.send(Op::Rst, round % 7);
        let muxer = &guest.muxer;
        assert!(muxer.ready.len() <= muxer.peers.len(), "round {round}");
    }
    assert!(guest.muxer.peers.is_empty());
    assert_eq!(guest.muxer.metrics.guest_connects, 5000);
}

#[test]
fn clients_that_come_and_go_while_held_leave_nothing() {
    let mut guest = Guest::new();
    guest.muxer.hold(None);
    for _ in 0..1000 {
        use std::io::Write;
        let mut client = UnixStream::connect(guest.dir.path().join("v.sock")).unwrap();
        client.write_all(b"CONNECT 1\n").unwrap();
        guest.muxer.turn();
        guest.muxer.turn();
        assert_eq!(guest.muxer.keys.len(), 1);
        drop(client);
        guest.muxer.turn();
        assert!(guest.muxer.peers.is_empty() && guest.muxer.ready.is_empty());
    }
    assert!(guest.muxer.keys.is_empty());
}
