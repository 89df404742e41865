//! What a client on the host says first: `CONNECT <port>\n`.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::RecvFlags;

/// The longest line that can be right, and then some.
const MAX_LINE: usize = 32;

/// The guest port a `CONNECT` line (without its line feed) names.
#[must_use]
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let line = line.strip_suffix('\r').unwrap_or(line);
    let mut words = line.split(' ');
    let verb = words.next()?;
    let port = words.next()?;
    if !verb.eq_ignore_ascii_case("connect")
        || words.next().is_some()
        || !port.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    port.parse().ok()
}

/// A client that has not said yet where it wants to go.
#[derive(Debug)]
pub struct Handshake {
    /// Its socket, non-blocking.
    pub stream: UnixStream,
    /// When patience ends.
    pub deadline: Instant,
    line: [u8; MAX_LINE],
    len: usize,
}

/// How far a client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The line is not complete.
    Waiting,
    /// It wants this guest port.
    Connect(u32),
    /// It said something else, or left.
    Bad,
}

impl Handshake {
    /// Starts with a fresh client.
    #[must_use]
    pub fn new(stream: UnixStream, deadline: Instant) -> Self {
        Handshake {
            stream,
            deadline,
            line: [0; MAX_LINE],
            len: 0,
        }
    }

    /// Reads what the client has sent, and never past the end of its line: what follows is for
    /// the guest.
    pub fn advance(&mut self) -> Progress {
        loop {
            let room = self.line.get_mut(self.len..).unwrap_or_default();
            if room.is_empty() {
                return Progress::Bad;
            }
            let seen = match peek(&self.stream, room) {
                Ok(0) => return Progress::Bad,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Progress::Waiting,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Progress::Bad,
            };
            let end = room.iter().take(seen).position(|b| *b == b'\n');
            // Taking exactly what was looked at cannot block.
            let take = end.map_or(seen, |at| at + 1);
            let Some(taken) = room.get_mut(..take) else {
                return Progress::Bad;
            };
            if self.stream.read_exact(taken).is_err() {
                return Progress::Bad;
            }
            if let Some(at) = end {
                let line = self.line.get(..self.len + at).unwrap_or_default();
                return parse_connect(line).map_or(Progress::Bad, Progress::Connect);
            }
            self.len += take;
        }
    }
}

fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (_, n) = rustix::net::recv(stream, buffer, flags)?;
    Ok(n)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_connect_and_a_port_will_do() {
        assert_eq!(parse_connect(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse_connect(b"connect 4294967295\r"), Some(u32::MAX));
        for bad in [
            "CONNECT",
            "CONNECT ",
            "CONNECT 4294967296",
            "CONNECT +1",
            "CONNECT -1",
            "CONNECT 1 2",
            "CONNECT  1",
            "HELO 1",
            "",
            "CONNECT 1\n",
        ] {
            assert_eq!(parse_connect(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_line_may_come_in_pieces_and_what_follows_stays() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(server, Instant::now());
        assert_eq!(handshake.advance(), Progress::Waiting);
        client.write_all(b"CONN").unwrap();
        assert_eq!(handshake.advance(), Progress::Waiting);
        client.write_all(b"ECT 77\nhello").unwrap();
        assert_eq!(handshake.advance(), Progress::Connect(77));
        let mut rest = [0u8; 16];
        let n = handshake.stream.read(&mut rest).unwrap();
        assert_eq!(&rest[..n], b"hello");
    }

    #[test]
    fn too_long_a_line_and_a_hang_up_are_bad() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(
            Handshake::new(server, Instant::now()).advance(),
            Progress::Bad
        );
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(
            Handshake::new(server, Instant::now()).advance(),
            Progress::Bad
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(line in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_connect(&line);
        }
    }
}
