//! Clients on the host: how they come in, say where they want to go, and are turned away.

use std::os::fd::AsRawFd;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::{CONNECT, FIRST_PORT, HANDSHAKE, LINGER, MAX_PEERS, Muxer, Peer};
use crate::devices::vsock::connection::{Connection, Key, State};
use crate::devices::vsock::handshake::{Handshake, Progress};
use crate::devices::vsock::sockets::spare;

impl Muxer {
    pub(super) fn accept(&mut self) {
        // A bounded number at a time; the listener stays readable when more wait.
        for _ in 0..16 {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    // Left in its queue, the client would keep the event loop spinning.
                    self.spare = None;
                    drop(self.listener.accept());
                    self.spare = spare().ok();
                    self.metrics.refused += 1;
                    return;
                }
                Err(_) => return,
            };
            if self.peers.len() >= MAX_PEERS || stream.set_nonblocking(true).is_err() {
                // Dropped: the client sees the end.
                self.metrics.refused += 1;
                continue;
            }
            let handshake = Handshake::new(stream, Instant::now() + HANDSHAKE);
            let fd = handshake.stream.as_raw_fd();
            // The line may be there already: the edge comes with the registration.
            self.add_peer(Peer::Handshake(handshake), fd);
        }
    }

    pub(super) fn peer_event(&mut self, id: u64, events: EventSet) {
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        match self.peers.get_mut(&id) {
            Some(Peer::Handshake(handshake)) => match handshake.advance() {
                Progress::Waiting => {}
                Progress::Bad => {
                    self.metrics.refused += 1;
                    self.forget(id);
                }
                Progress::Connect(port) => {
                    self.connect_guest(id, port);
                    if hung_up {
                        // Said once, and meant for the connection.
                        self.peer_event(id, events);
                    }
                }
            },
            Some(Peer::Connection(c)) => {
                c.socket_event(
                    events.intersects(EventSet::IN | EventSet::READ_HANG_UP),
                    events.contains(EventSet::OUT),
                    hung_up,
                );
                if self.held && hung_up && c.is_unasked() {
                    // Its place is another's.
                    let key = c.key;
                    self.keys.remove(&key);
                    self.forget(id);
                    self.count();
                    return;
                }
                c.flush();
                if c.state == State::Draining {
                    c.deadline = Some(Instant::now() + LINGER);
                }
                self.after(id);
            }
            None => {}
        }
    }

    /// A host client has said where it wants to go.
    fn connect_guest(&mut self, id: u64, guest_port: u32) {
        let key = loop {
            let key = Key {
                host_port: self.next_port,
                guest_port,
            };
            // At most MAX_PEERS ports are taken, so this ends.
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.keys.contains_key(&key) {
                break key;
            }
        };
        let size = super::buffer_size(self.peers.len());
        if let Some(Peer::Handshake(h)) = self.peers.remove(&id) {
            self.metrics.host_connects += 1;
            let c = Connection::from_host(h.stream, key, size, Instant::now() + CONNECT);
            self.peers.insert(id, Peer::Connection(Box::new(c)));
            self.keys.insert(key, id);
            self.count();
            self.after(id);
        }
    }
}
