//! One stream: a Unix socket on our side, a port pair on the guest's, credit in both directions
//! (virtio 1.2 §5.10.6.3).
//!
//! The socket is watched edge-triggered; `readable` and `writable` remember what it was last seen
//! to be. Nothing is buffered towards the guest: data is read straight into its buffers, as much
//! as it has credit for. Towards the host at most `buf_alloc` bytes are kept, which is what the
//! guest was promised.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::packet::{
    HEADER, HOST_CID, Header, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND,
    TYPE_STREAM,
};
use crate::virtio::iovec::IoVecs;

/// The two ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// On the host.
    pub host_port: u32,
    /// In the guest.
    pub guest_port: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The host asked, the guest has not answered.
    Connecting,
    /// Data flows.
    Established,
    /// Over for the guest; what it had sent is still on its way to the host.
    Draining,
}

/// What goes to the guest when it has a buffer for it.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    reset: bool,
    shutdown: u32,
    credit_update: bool,
    credit_request: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Its name.
    pub key: Key,
    /// How far it is.
    pub state: State,
    /// When it ends if nothing happens.
    pub deadline: Option<Instant>,
    /// The guest opened it.
    pub by_guest: bool,
    /// It is in the muxer's queue of those with something for the guest.
    pub queued: bool,
    stream: UnixStream,
    readable: bool,
    writable: bool,
    /// The host has ended its writing.
    host_eof: bool,
    /// The host takes nothing any more.
    host_gone: bool,
    guest_shutdown: u32,
    sent_shutdown: u32,
    pending: Pending,
    /// Guest to host.
    buf_alloc: u32,
    received: u32,
    forwarded: u32,
    announced: u32,
    backlog: VecDeque<u8>,
    /// Host to guest.
    peer_alloc: u32,
    peer_forwarded: u32,
    sent: u32,
    asked_credit: bool,
}

/// What became of a packet offered to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The connection continues.
    Keep,
    /// The guest has ended it, or has received its end: forget it (or let it drain).
    Ended,
    /// The guest violated the protocol: reset it.
    Violation,
}

/// A packet written for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of data in it.
    pub data: usize,
    /// It was the last one.
    pub last: bool,
}

impl Connection {
    fn new(stream: UnixStream, key: Key, state: State, buf_alloc: u32) -> Self {
        Connection {
            key,
            state,
            deadline: None,
            by_guest: false,
            queued: false,
            stream,
            readable: true,
            writable: true,
            host_eof: false,
            host_gone: false,
            guest_shutdown: 0,
            sent_shutdown: 0,
            pending: Pending::default(),
            buf_alloc,
            received: 0,
            forwarded: 0,
            announced: 0,
            backlog: VecDeque::new(),
            peer_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
            asked_credit: false,
        }
    }

    /// The host asks for a guest port: the guest is to be asked.
    #[must_use]
    pub fn from_host(stream: UnixStream, key: Key, buf_alloc: u32, deadline: Instant) -> Self {
        let mut c = Connection::new(stream, key, State::Connecting, buf_alloc);
        c.pending.request = true;
        c.deadline = Some(deadline);
        c
    }

    /// The guest asked with `request`, and the host's listener took it.
    #[must_use]
    pub fn from_guest(stream: UnixStream, key: Key, buf_alloc: u32, request: &Header) -> Self {
        let mut c = Connection::new(stream, key, State::Established, buf_alloc);
        c.pending.response = true;
        c.by_guest = true;
        c.learn(request);
        c
    }

    /// Notes what epoll said.
    pub fn socket_event(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable || hung_up;
        if hung_up && !self.host_gone {
            self.host_gone = true;
            if self.host_eof {
                self.pending.shutdown |= SHUTDOWN_BOTH & !self.sent_shutdown;
            }
        }
    }

    /// Whether the host has asked and the guest has not heard of it.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        self.pending.request
    }

    /// Whether there is a packet, or may be data, for the guest.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let p = &self.pending;
        p.request
            || p.response
            || p.reset
            || p.credit_update
            || p.credit_request
            || p.shutdown != 0
            || self.may_read()
    }

    fn may_read(&self) -> bool {
        self.state == State::Established
            && self.readable
            && !self.host_eof
            && self.guest_shutdown & SHUTDOWN_RCV == 0
            && (self.credit() > 0 || !self.asked_credit)
    }

    /// Bytes the guest still takes.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(in_flight)
    }

    fn learn(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked_credit = false;
        }
    }

    /// Handles a packet of the guest for this connection.
    pub fn receive(&mut self, op: Op, header: &Header, payload: &mut IoVecs<'_>) -> Verdict {
        self.learn(header);
        match (op, self.state) {
            (Op::Rst, _) => Verdict::Ended,
            (Op::Response, State::Connecting) if !self.pending.request => {
                self.state = State::Established;
                self.deadline = None;
                // The first bytes into an empty socket buffer: they fit.
                let line = format!("OK {}\n", self.key.host_port);
                match (&self.stream).write(line.as_bytes()) {
                    Ok(n) if n == line.len() => {}
                    // The client has gone meanwhile.
                    _ => self.reset(),
                }
                Verdict::Keep
            }
            (Op::Rw, State::Established) => self.take_data(payload),
            (Op::Shutdown, State::Established) => {
                self.guest_shutdown |= header.flags & SHUTDOWN_BOTH;
                if self.guest_shutdown & SHUTDOWN_RCV != 0 {
                    let _ = self.stream.shutdown(Shutdown::Read);
                }
                self.flush();
                if self.guest_shutdown == SHUTDOWN_BOTH {
                    // The reset that ends it may go out at once: no more can come, and what came
                    // is drained without the guest.
                    self.pending.reset = true;
                }
                Verdict::Keep
            }
            (Op::CreditUpdate, _) => Verdict::Keep,
            (Op::CreditRequest, State::Established) => {
                self.pending.credit_update = true;
                Verdict::Keep
            }
            _ => Verdict::Violation,
        }
    }

    fn take_data(&mut self, payload: &mut IoVecs<'_>) -> Verdict {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let held = self.received.wrapping_sub(self.forwarded);
        if self.guest_shutdown & SHUTDOWN_SEND != 0
            || held.checked_add(len).is_none_or(|sum| sum > self.buf_alloc)
        {
            return Verdict::Violation;
        }
        self.received = self.received.wrapping_add(len);
        while self.backlog.is_empty() && self.writable && !payload.is_empty() {
            match payload.send(self.stream.as_fd()) {
                Ok(n) => {
                    payload.advance(n);
                    self.note_forwarded(n);
                }
                Err(e) => self.note_write_error(&e),
            }
        }
        if self.host_gone && !self.writable {
            self.note_forwarded(payload.len());
        } else if !payload.is_empty() {
            self.keep(payload);
        }
        self.consider_update();
        Verdict::Keep
    }

    /// Writes the backlog out, as far as the host takes it; then a half-close that waited for it.
    pub fn flush(&mut self) {
        while self.writable && !self.backlog.is_empty() {
            let (first, second) = self.backlog.as_slices();
            let parts = [io::IoSlice::new(first), io::IoSlice::new(second)];
            match (&self.stream).write_vectored(&parts) {
                Ok(n) => {
                    self.backlog.drain(..n.min(self.backlog.len()));
                    self.note_forwarded(n);
                }
                Err(e) => self.note_write_error(&e),
            }
        }
        if self.backlog.is_empty() {
            if self.backlog.capacity() > 0 {
                self.backlog = VecDeque::new();
            }
            if self.guest_shutdown & SHUTDOWN_SEND != 0 {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
        self.consider_update();
    }

    fn note_forwarded(&mut self, n: usize) {
        let n = u32::try_from(n).unwrap_or(0);
        self.forwarded = self.forwarded.wrapping_add(n);
    }

    fn note_write_error(&mut self, e: &io::Error) {
        match e.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.writable = false,
            _ => {
                // The host reads no more: the guest's data has nowhere to go.
                self.writable = false;
                self.host_gone = true;
                let held = self.backlog.len();
                self.backlog = VecDeque::new();
                self.note_forwarded(held);
                self.pending.shutdown |= SHUTDOWN_RCV & !self.sent_shutdown;
            }
        }
    }

    /// Puts what the host did not take into the backlog; the credit check has bounded it.
    fn keep(&mut self, payload: &mut IoVecs<'_>) {
        let start = self.backlog.len();
        self.backlog.resize(start + payload.len(), 0);
        let (first, second) = self.backlog.as_mut_slices();
        let split = first.len();
        for room in [
            first.get_mut(start..),
            second.get_mut(start.saturating_sub(split)..),
        ]
        .into_iter()
        .flatten()
        {
            let n = payload.copy_to(room);
            payload.advance(n);
        }
    }

    /// Plans a credit update when the guest knows of less than half of the buffer.
    fn consider_update(&mut self) {
        let known_held = self.received.wrapping_sub(self.announced);
        if self.announced != self.forwarded && known_held > self.buf_alloc / 2 {
            self.pending.credit_update = true;
        }
    }

    /// Whether all the guest has sent is with the host.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Ends the connection with a reset to the guest.
    fn reset(&mut self) {
        self.pending = Pending {
            reset: true,
            ..Pending::default()
        };
    }

    /// Writes the next packet for the guest into `buffer`, which has room for a header and more.
    /// `scratch` is for its own use.
    pub fn fill<'m>(
        &mut self,
        guest_cid: u64,
        buffer: &IoVecs<'m>,
        scratch: &mut IoVecs<'m>,
    ) -> Option<Sent> {
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            kind: TYPE_STREAM,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded,
            ..Header::default()
        };
        let mut data = 0;
        let op = self.next_op(buffer, scratch, &mut header.flags, &mut data)?;
        header.op = op as u16;
        header.len = u32::try_from(data).unwrap_or(0);
        self.announced = self.forwarded;
        self.pending.credit_update = false;
        buffer.copy_from(&header.to_bytes());
        Some(Sent {
            data,
            last: op == Op::Rst,
        })
    }

    fn next_op<'m>(
        &mut self,
        buffer: &IoVecs<'m>,
        scratch: &mut IoVecs<'m>,
        flags: &mut u32,
        data: &mut usize,
    ) -> Option<Op> {
        if std::mem::take(&mut self.pending.request) {
            return Some(Op::Request);
        }
        if std::mem::take(&mut self.pending.response) {
            return Some(Op::Response);
        }
        if std::mem::take(&mut self.pending.reset) {
            return Some(Op::Rst);
        }
        if self.may_read() {
            if self.credit() == 0 {
                self.asked_credit = true;
                return Some(Op::CreditRequest);
            }
            if let Some(n) = self.read(buffer, scratch) {
                *data = n;
                return Some(Op::Rw);
            }
        }
        let shutdown = std::mem::take(&mut self.pending.shutdown);
        if shutdown != 0 {
            self.sent_shutdown |= shutdown;
            *flags = self.sent_shutdown;
            return Some(Op::Shutdown);
        }
        if std::mem::take(&mut self.pending.credit_update) {
            return Some(Op::CreditUpdate);
        }
        None
    }

    /// Reads from the host straight into the guest's buffer.
    fn read<'m>(&mut self, buffer: &IoVecs<'m>, scratch: &mut IoVecs<'m>) -> Option<usize> {
        scratch.clear();
        scratch.append(buffer).ok()?;
        scratch.advance(HEADER);
        let credit = usize::try_from(self.credit()).unwrap_or(0);
        scratch.truncate(credit.min(MAX_PAYLOAD));
        if scratch.is_empty() {
            return None;
        }
        loop {
            match scratch.readv(self.stream.as_fd()) {
                Ok(0) => break,
                Ok(n) => {
                    self.sent = self.sent.wrapping_add(u32::try_from(n).unwrap_or(0));
                    return Some(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(_) => {
                    self.host_gone = true;
                    break;
                }
            }
        }
        self.host_eof = true;
        let how = if self.host_gone {
            SHUTDOWN_BOTH
        } else {
            SHUTDOWN_SEND
        };
        self.pending.shutdown |= how & !self.sent_shutdown;
        None
    }

    /// Whether the guest has been sent a shutdown of both directions.
    #[must_use]
    pub fn has_sent_full_shutdown(&self) -> bool {
        self.sent_shutdown == SHUTDOWN_BOTH
    }
}
