//! All connections of a pod's VM: which packet belongs to which, who has something for the guest,
//! the listener for host clients, the sockets guest connects go to, and time-outs.
//!
//! The muxer knows no rings. It has an epoll of its own, which the device shows to the event loop
//! as one descriptor. Everything is bounded: connections, handshakes, refusals waiting to be
//! sent, and bytes held for the host. `clients` is the host's side of the table, `deadlines` its clock.

mod clients;
mod deadlines;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{Connection, Key, State, Verdict};
use super::handshake::Handshake;
use super::metrics::VsockMetrics;
use super::packet::{BadPacket, HEADER, HOST_CID, Header, Op, TYPE_STREAM, check};
use super::sockets::{connect, port_path, spare};
use crate::virtio::iovec::IoVecs;

/// The most connections and handshakes together.
pub const MAX_PEERS: usize = 512;
/// The most connections the guest may open: it cannot take the host's way in from the host.
pub const MAX_FROM_GUEST: usize = 256;
/// The most refusals waiting for a buffer of the guest; at this many, its packets wait.
const MAX_REFUSALS: usize = 256;
/// How long a host client may take for its line.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long the guest may take to answer a connection request; after a restore, first as long to
/// take the event that the request waits for.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the guest may take to confirm the end of a connection.
const CLOSE: Duration = Duration::from_secs(8);
/// How long the host may leave data unread that a guest sent before it closed.
const LINGER: Duration = Duration::from_secs(60);
/// How often deadlines are looked at, while there are any.
const TICK: Duration = Duration::from_millis(500);
/// The first host port given to host clients, as other VMMs do.
const FIRST_PORT: u32 = 1 << 30;
/// What all connections together may keep for the host, roughly; see `buffer_size`.
const BUFFERS: usize = 2 << 20;
/// The largest receive buffer of one connection.
const MAX_BUFFER: usize = 256 << 10;
/// The smallest.
const MIN_BUFFER: usize = 4 << 10;

const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_PEER: u64 = 2;

#[derive(Debug)]
enum Peer {
    Handshake(Handshake),
    Connection(Box<Connection>),
}

/// The table of connections.
#[derive(Debug)]
pub struct Muxer {
    cid: u64,
    path: PathBuf,
    listener: UnixListener,
    /// Given up for a moment to turn a client away when descriptors have run out.
    spare: Option<EventFd>,
    epoll: Epoll,
    timer: TimerFd,
    timer_on: bool,
    peers: HashMap<u64, Peer>,
    keys: HashMap<Key, u64>,
    /// Connections with something for the guest, in turn.
    ready: VecDeque<u64>,
    /// New connections are not shown to the guest yet; see [`Muxer::hold`].
    held: bool,
    /// The address that the driver of a restored guest may still send from.
    former_cid: Option<u64>,
    /// Resets for packets that belong to no connection.
    refusals: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
    scratch: IoVecs<'static>,
    pub(super) metrics: VsockMetrics,
}

/// The receive buffer promised to a new connection when there are `peers` others: the more there
/// are, the smaller, so that a host that reads nothing cannot make the process large.
fn buffer_size(peers: usize) -> u32 {
    let size = (BUFFERS / (peers + 1)).clamp(MIN_BUFFER, MAX_BUFFER);
    u32::try_from(size).unwrap_or(4096)
}

impl Muxer {
    /// Binds the socket. An old one in its place is removed first.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(cid: u64, path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        epoll.ctl(
            ControlOperation::Add,
            listener.as_raw_fd(),
            EpollEvent::new(EventSet::IN, LISTENER),
        )?;
        epoll.ctl(
            ControlOperation::Add,
            timer.as_raw_fd(),
            EpollEvent::new(EventSet::IN, TIMER),
        )?;
        Ok(Muxer {
            cid,
            path: path.to_path_buf(),
            listener,
            spare: spare().ok(),
            epoll,
            timer,
            timer_on: false,
            peers: HashMap::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            held: false,
            former_cid: None,
            refusals: VecDeque::new(),
            next_id: FIRST_PEER,
            next_port: FIRST_PORT,
            scratch: IoVecs::new(),
            metrics: VsockMetrics::default(),
        })
    }

    /// The host port of the next host client.
    #[must_use]
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with the ports of host clients from `port`.
    pub fn set_next_port(&mut self, port: u32) {
        self.next_port = port.max(FIRST_PORT);
    }

    /// Readable when [`Muxer::turn`] has something to do.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Whether there are packets for the guest.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.refusals.is_empty() || (!self.held && !self.ready.is_empty())
    }

    /// From now on connections are made, but the guest hears of none until [`Muxer::release`]: it
    /// is about to end all connections it knows of. Refusals are still sent. Until then the guest may
    /// also send from `former_cid`, which it had before.
    pub fn hold(&mut self, former_cid: Option<u64>) {
        self.held = true;
        self.former_cid = former_cid;
    }

    /// The guest has ended the connections it had: it hears of the new ones now, and has the usual
    /// time to answer.
    pub fn release(&mut self) {
        self.former_cid = None;
        if !std::mem::take(&mut self.held) {
            return;
        }
        let deadline = Instant::now() + CONNECT;
        for peer in self.peers.values_mut() {
            if let Peer::Connection(c) = peer
                && c.state == State::Connecting
            {
                c.deadline = Some(deadline);
            }
        }
    }

    /// Whether packets of the guest have to wait until it gives buffers for our refusals.
    #[must_use]
    pub fn must_wait(&self) -> bool {
        self.refusals.len() >= MAX_REFUSALS
    }

    /// Ends everything, as after a reset of the device: host peers see their sockets close.
    pub fn clear(&mut self) {
        self.peers.clear();
        self.keys.clear();
        self.ready.clear();
        self.refusals.clear();
        self.held = false;
        self.former_cid = None;
        self.metrics.connections = 0;
    }

    /// Handles what sockets and the clock have to say.
    pub fn turn(&mut self) {
        let mut batch = [EpollEvent::default(); 64];
        let n = self.epoll.wait(0, &mut batch).unwrap_or(0);
        for event in batch.iter().take(n) {
            match event.data() {
                LISTENER => self.accept(),
                TIMER => {
                    let _ = self.timer.wait();
                    self.expire(Instant::now());
                }
                id => self.peer_event(id, event.event_set()),
            }
        }
        self.keep_time();
    }

    /// Enters a peer into the table and the epoll.
    fn add_peer(&mut self, peer: Peer, fd: RawFd) -> Option<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let all = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(all, id))
            .ok()?;
        self.peers.insert(id, peer);
        Some(id)
    }

    /// Takes a peer out of the table, and out of the queue of those with news: a guest that gives no
    /// buffers must not make that longer than the table.
    fn forget(&mut self, id: u64) {
        if let Some(Peer::Connection(c)) = self.peers.remove(&id)
            && c.queued
        {
            self.ready.retain(|queued| *queued != id);
        }
    }

    /// After anything happened to a connection: queues it, or lets it go.
    fn after(&mut self, id: u64) {
        let Some(Peer::Connection(c)) = self.peers.get_mut(&id) else {
            return;
        };
        if c.state == State::Draining {
            if c.drained() {
                self.forget(id);
                self.count();
            }
            return;
        }
        if !c.queued && c.has_news() {
            c.queued = true;
            self.ready.push_back(id);
        }
    }

    fn count(&mut self) {
        self.metrics.connections = self.keys.len() as u64;
    }

    /// The guest is done with a connection: it may use the ports again. What it had sent still
    /// goes to the host.
    fn detach(&mut self, id: u64, linger: bool) {
        if let Some(Peer::Connection(c)) = self.peers.get_mut(&id) {
            self.keys.remove(&c.key);
            c.flush();
            if linger && !c.drained() {
                c.state = State::Draining;
                c.deadline = Some(Instant::now() + LINGER);
            } else {
                self.forget(id);
            }
        }
        self.count();
        self.keep_time();
    }

    /// Handles a packet of the guest; `packet` is the whole chain's readable part.
    pub fn receive(&mut self, packet: &mut IoVecs<'_>) {
        let mut bytes = [0u8; HEADER];
        if packet.copy_to(&mut bytes) < HEADER {
            self.metrics.malformed += 1;
            return;
        }
        packet.advance(HEADER);
        let mut header = Header::parse(&bytes);
        if self.former_cid == Some(header.src_cid) {
            header.src_cid = self.cid;
        }
        self.metrics.packets_from_guest += 1;
        let op = match check(&header, packet.len(), self.cid) {
            Ok(op) => op,
            Err(BadPacket::Unknown) => {
                self.metrics.malformed += 1;
                self.refuse(&header);
                return;
            }
            Err(_) => {
                self.metrics.malformed += 1;
                return;
            }
        };
        packet.truncate(usize::try_from(header.len).unwrap_or(0));
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        match (op, self.keys.get(&key).copied()) {
            (Op::Request, None) => self.connect_host(key, &header),
            (Op::Rst, None) => {}
            // Of a connection that is over or never was (virtio 1.2 §5.10.6.5).
            (_, None) => self.refuse(&header),
            (Op::Request, Some(id)) => {
                // The guest has forgotten the connection it had under these ports.
                self.metrics.violations += 1;
                self.detach(id, true);
                self.refuse(&header);
            }
            (op, Some(id)) => self.deliver(id, op, &header, packet),
        }
    }

    fn deliver(&mut self, id: u64, op: Op, header: &Header, payload: &mut IoVecs<'_>) {
        let Some(Peer::Connection(c)) = self.peers.get_mut(&id) else {
            return;
        };
        if op == Op::Rw {
            self.metrics.bytes_from_guest += payload.len() as u64;
        }
        match c.receive(op, header, payload) {
            Verdict::Keep => self.after(id),
            Verdict::Ended => self.detach(id, true),
            Verdict::Violation => {
                self.metrics.violations += 1;
                self.detach(id, false);
                self.refuse(header);
            }
        }
    }

    /// The guest wants to reach a host port.
    fn connect_host(&mut self, key: Key, header: &Header) {
        let stream = if self.peers.len() < MAX_PEERS && self.opened_by_guest() < MAX_FROM_GUEST {
            connect(&port_path(&self.path, key.host_port)).ok()
        } else {
            None
        };
        let Some(stream) = stream else {
            self.metrics.refused += 1;
            self.refuse(header);
            return;
        };
        let fd = stream.as_raw_fd();
        let size = buffer_size(self.peers.len());
        let c = Connection::from_guest(stream, key, size, header);
        match self.add_peer(Peer::Connection(Box::new(c)), fd) {
            Some(id) => {
                self.metrics.guest_connects += 1;
                self.keys.insert(key, id);
                self.count();
                self.after(id);
            }
            None => self.refuse(header),
        }
    }

    /// How many connections the guest has opened.
    fn opened_by_guest(&self) -> usize {
        let by_guest = |p: &&Peer| matches!(p, Peer::Connection(c) if c.by_guest);
        self.peers.values().filter(by_guest).count()
    }

    /// Plans a reset as the answer to `header`.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Rst as u16 {
            self.plan_reset(Key {
                host_port: header.dst_port,
                guest_port: header.src_port,
            });
        }
    }

    fn plan_reset(&mut self, key: Key) {
        if !self.must_wait() {
            self.refusals.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: Op::Rst as u16,
                ..Header::default()
            });
        }
    }

    /// Writes the next packet for the guest into `buffer` (at least a header long), and says how
    /// long it is; `None` when there is nothing to say after all.
    pub fn fill(&mut self, buffer: &IoVecs<'_>) -> Option<usize> {
        if let Some(header) = self.refusals.pop_front() {
            buffer.copy_from(&header.to_bytes());
            self.metrics.packets_to_guest += 1;
            return Some(HEADER);
        }
        if self.held {
            return None;
        }
        let mut scratch = std::mem::take(&mut self.scratch).recycle();
        let len = self.fill_from_ready(buffer, &mut scratch);
        self.scratch = scratch.recycle();
        len
    }

    /// As `fill`, of the connections with something for the guest.
    fn fill_from_ready<'m>(
        &mut self,
        buffer: &IoVecs<'m>,
        scratch: &mut IoVecs<'m>,
    ) -> Option<usize> {
        // Each has one turn: one with data that a buffer without room for any cannot take goes back
        // into the queue, and a guest that gives such buffers must not keep this thread.
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some(Peer::Connection(c)) = self.peers.get_mut(&id) else {
                continue;
            };
            c.queued = false;
            if c.state == State::Draining {
                continue;
            }
            let sent = c.fill(self.cid, buffer, scratch);
            if c.has_sent_full_shutdown() && c.deadline.is_none() {
                c.deadline = Some(Instant::now() + CLOSE);
                self.keep_time();
            }
            match sent {
                None => self.after(id),
                Some(sent) => {
                    if sent.last {
                        self.detach(id, true);
                    } else {
                        self.after(id);
                    }
                    self.metrics.packets_to_guest += 1;
                    self.metrics.bytes_to_guest += sent.data as u64;
                    return Some(HEADER + sent.data);
                }
            }
        }
        None
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
