//! What a restored guest knows of connections: those it had end with an event, and those made since
//! must not end with them.

use super::*;
use crate::virtio::device::SavedDevice;

/// What Linux offers.
const BUFFERS: usize = 8;

impl Guest {
    /// Offers `count` event buffers, as a driver that starts.
    fn offer_events(&mut self, count: usize) {
        for _ in 0..count {
            self.event.offer(&[(self.next_event, 4, true)]);
            self.events.push_back(self.next_event);
            self.next_event += 4;
        }
        self.event.kick_if_asked();
    }

    /// Waits for the event, and says in which buffer it is; it is not handled yet.
    fn transport_reset(&mut self) -> u64 {
        let (_, len) = self.event.wait();
        assert_eq!(len, 4);
        let at = self.events.pop_front().unwrap();
        let id: u32 = self.machine.mem.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(id, 0);
        at
    }

    /// As the driver does when it has ended its connections.
    fn handled(&mut self, at: u64) {
        self.event.offer(&[(at, 4, true)]);
        self.events.push_back(at);
        self.event.kick_if_asked();
    }

    fn no_event(&mut self) {
        let until = Instant::now() + Duration::from_millis(60);
        assert_eq!(self.event.wait_until(until), None);
    }

    fn save(&self) -> SavedDevice {
        self.machine.device().quiesce().unwrap();
        self.machine.device().save().unwrap()
    }

    /// A copy whose memory is the saved guest's, with its driver where it was.
    fn copy(self, saved: &SavedDevice, cid: u64) -> Guest {
        let (device, dir, path) = device_of(saved, cid);
        let mut space = [0u8; 8];
        device.read_config(0, &mut space);
        assert_eq!(u64::from_le_bytes(space), cid);
        let machine = Machine::with_memory(device, self.machine.mem.clone());
        let mut queues = machine.activate_at(&saved.queues, 0);
        let (mut event, mut tx, mut rx) = (queues.remove(2), queues.remove(1), queues.remove(0));
        rx.take_over(&self.rx);
        tx.take_over(&self.tx);
        event.take_over(&self.event);
        Guest {
            machine,
            rx,
            tx,
            event,
            path,
            _dir: dir,
            ..self
        }
    }
}

/// A device made from its saved form, in a directory of its own.
fn device_of(saved: &SavedDevice, cid: u64) -> (VsockDevice, tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.sock");
    let config = VsockConfig {
        cid,
        path: path.clone(),
    };
    let device = VsockDevice::restore(config, &saved.state).unwrap();
    (device, dir, path)
}

/// A guest that was saved after its driver had started, and goes on.
fn restored() -> Guest {
    let mut guest = Guest::new();
    guest.offer_events(BUFFERS);
    let saved = guest.save();
    assert_eq!(saved.queues.len(), 3);
    guest.copy(&saved, CID)
}

#[test]
fn a_connect_before_the_event_is_handled_waits_until_it_is() {
    let mut guest = restored();
    let client = guest.ask(1024);
    let at = guest.transport_reset();
    guest.quiet();
    // Another buffer is no sign that the event in this one was handled.
    guest.offer_events(1);
    guest.quiet();
    assert_eq!(guest.metric("connections"), 1);
    guest.handled(at);
    let (mut client, port) = guest.accept(client, 1024);
    client.write_all(b"ping").unwrap();
    assert_eq!(guest.next().1, b"ping");
    guest.send(Op::Rw, 1024, port, 0, b"pong");
    let mut got = [0; 4];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
    guest.no_event();
}

#[test]
fn a_connect_after_the_event_is_handled_waits_for_nothing() {
    let mut guest = restored();
    let at = guest.transport_reset();
    guest.handled(at);
    let clients = [1024, 7, 1024].map(|port| guest.connect(port));
    assert_eq!(guest.metric("connections"), 3);
    guest.no_event();
    drop(clients);
}

#[test]
fn connections_of_before_end_with_the_event_and_new_ones_do_not() {
    let mut guest = Guest::new();
    guest.offer_events(BUFFERS);
    let (mut before, old) = guest.connect(1024);
    let saved = guest.save();
    let mut guest = guest.copy(&saved, CID);
    let client = guest.ask(1024);
    // The copy's socket is another one, so the first client's bytes are nobody's.
    let _ = before.write_all(b"lost");
    let at = guest.transport_reset();
    // Sent before the driver has come to the event.
    guest.send(Op::Rw, 1024, old, 0, b"to nobody");
    let (header, _) = guest.next();
    assert_eq!((header.op, header.src_port), (Op::Rst as u16, old));
    guest.quiet();
    guest.handled(at);
    // Under a port of its own: Linux has the old connection until its program closes it.
    let (_client, port) = guest.accept(client, 1024);
    assert_ne!(port, old);
}

#[test]
fn a_driver_without_event_buffers_is_told_when_it_has_some() {
    for too_small in [false, true] {
        let guest = Guest::new();
        let saved = guest.save();
        let mut guest = guest.copy(&saved, CID);
        let client = guest.ask(1024);
        guest.quiet();
        guest.no_event();
        if too_small {
            guest.event.offer(&[(guest.next_event, 3, true)]);
            guest.event.offer(&[(guest.next_event, 4, false)]);
            guest.event.kick_if_asked();
            assert_eq!(guest.event.wait().1, 0);
            assert_eq!(guest.event.wait().1, 0);
            guest.quiet();
        }
        guest.offer_events(1);
        let at = guest.transport_reset();
        guest.quiet();
        guest.handled(at);
        let _ = guest.accept(client, 1024);
    }
}

#[test]
fn what_the_guest_opens_before_the_event_is_handled_is_granted_after_it() {
    const NEW: u64 = CID + 5;
    let mut guest = Guest::new();
    guest.offer_events(BUFFERS);
    let saved = guest.save();
    let mut guest = guest.copy(&saved, NEW);
    let listener = UnixListener::bind(format!("{}_1025", guest.path.display())).unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = guest.transport_reset();
    // The driver reads its new address when it handles the event.
    guest.cid = NEW;
    let from = |src_cid, src_port, op: Op| Header {
        src_cid,
        dst_cid: HOST_CID,
        src_port,
        dst_port: 1025,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: ALLOC,
        ..Header::default()
    };
    guest.send_header(from(CID, 5000, Op::Request), &[]);
    guest.send_header(from(CID + 1, 5001, Op::Request), &[]);
    guest.quiet();
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"hello").unwrap();
    guest.quiet();
    guest.handled(at);
    let (header, _) = guest.next();
    assert_eq!((header.op, header.dst_port), (Op::Response as u16, 5000));
    assert_eq!(guest.next().1, b"hello");
    // Its former address is nobody's now.
    guest.send_header(from(CID, 5002, Op::Request), &[]);
    guest.quiet();
    assert_eq!(guest.metric("guest_connects"), 1);
    assert_eq!(guest.metric("malformed"), 2);
    guest.send_header(from(NEW, 5003, Op::Request), &[]);
    assert_eq!(guest.next().0.op, Op::Response as u16);
}

#[test]
fn a_guest_saved_before_it_has_handled_the_event_is_told_again() {
    let mut guest = restored();
    let client = guest.ask(1024);
    let first = guest.transport_reset();
    guest.quiet();
    let saved = guest.save();
    let mut guest = guest.copy(&saved, CID + 1);
    guest.cid = CID + 1;
    drop(client);
    let client = guest.ask(1024);
    let second = guest.transport_reset();
    assert_ne!(first, second);
    // In the driver's order: that of the second copy ends all, that of the first does not.
    guest.handled(first);
    guest.quiet();
    guest.handled(second);
    let _ = guest.accept(client, 1024);
}

#[test]
fn a_pause_between_event_and_answer_loses_neither() {
    let mut guest = restored();
    let client = guest.ask(1024);
    let at = guest.transport_reset();
    guest.machine.device().quiesce().unwrap();
    guest.handled(at);
    guest.quiet();
    guest.machine.device().resume().unwrap();
    let _ = guest.accept(client, 1024);
}

#[test]
fn a_driver_that_starts_anew_is_told_nothing() {
    let guest = restored();
    let saved = guest.save();
    let (mut device, dir, path) = device_of(&saved, CID);
    device.reset();
    let mut guest = Guest::start(device, dir, path);
    guest.offer_events(BUFFERS);
    let _ = guest.connect(1024);
    guest.no_event();
}

#[test]
fn held_clients_are_bounded_and_those_that_leave_are_forgotten() {
    more_descriptors();
    let mut guest = restored();
    let at = guest.transport_reset();
    for _ in 0..600 {
        drop(guest.ask(80));
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut clients = Vec::new();
    // All of the table is there for clients that stay.
    while clients.len() < 512 {
        assert!(Instant::now() < deadline, "{} clients", clients.len());
        let client = guest.ask(1024);
        let number = clients.len() as u64 + 1;
        while guest.metric("connections") != number {
            assert!(Instant::now() < deadline, "{number}");
            std::thread::yield_now();
        }
        clients.push(client);
    }
    let mut late = UnixStream::connect(&guest.path).unwrap();
    late.set_read_timeout(Some(TIMEOUT)).unwrap();
    let _ = late.write_all(b"CONNECT 1024\n");
    // Closed with its line unread, which its side may see as a reset.
    assert!(matches!(late.read(&mut [0]), Ok(0) | Err(_)));
    assert!(guest.metric("refused") >= 1);
    guest.quiet();
    guest.handled(at);
    for client in clients {
        let _ = guest.accept(client, 1024);
    }
}

fn more_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: valid pointers.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(4096).max(limit.rlim_cur);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

#[test]
fn a_client_of_a_guest_that_never_handles_the_event_is_let_go() {
    let mut guest = restored();
    let mut client = guest.ask(1024);
    let at = guest.transport_reset();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got.is_empty());
    assert_eq!(guest.metric("connections"), 0);
    assert_eq!(guest.metric("timeouts"), 1);
    // The guest never heard of it, and is not too late for the next.
    let client = guest.ask(1024);
    guest.quiet();
    guest.handled(at);
    let _ = guest.accept(client, 1024);
}
