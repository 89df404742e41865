//! Moves bytes between a process's descriptors and the agent: [`Output`] from a process, into a
//! [`StreamBuffer`] if it is to be kept, and [`Input`] to it. Knows pipes and terminals, no
//! processes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::buffer::StreamBuffer;
use super::exit::ExitWatch;
use crate::{async_fd, clock};

/// The most bytes read at once.
const READ_SIZE: usize = 64 * 1024;
/// More than a terminal can hold that was written and not read (twice 8 KiB in the pair's buffers,
/// pty.c, and 4 KiB in the line discipline).
const IN_TERMINAL: u64 = 64 * 1024;

/// What a descriptor is: they differ in how their end shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pipe: end of file is a read of nothing.
    Pipe,
    /// A terminal's master: end of file is EIO.
    Terminal,
}

/// What may still come.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// The process lives: whatever it writes.
    Open,
    /// It is dead, and left at most so many bytes. Anything beyond comes from another process,
    /// which could write for ever. They stay available however slow the reader is; nothing else is
    /// waited for.
    Bytes(u64),
    /// Nothing.
    Nothing,
}

/// The agent's end of an output stream. It ends with the descriptor, or when the process is dead and
/// what it had written is read: a grandchild that keeps the descriptor does not keep it open.
#[derive(Debug)]
pub struct Output {
    fd: AsyncFd<OwnedFd>,
    kind: Kind,
    exit: ExitWatch,
    left: Left,
    /// A terminal's other end, held so that it does not hang up while its process has it closed for
    /// a time, as an init does that opens its console for each line.
    _other_end: Option<OwnedFd>,
}

impl Output {
    /// Takes the descriptor, which is set non-blocking.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn new(fd: OwnedFd, kind: Kind, exit: ExitWatch) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let other_end = match kind {
            Kind::Pipe => None,
            // Refused only where it is too late for it.
            Kind::Terminal => rustix::pty::ioctl_tiocgptpeer(&fd, flags).ok(),
        };
        Ok(Self {
            _other_end: other_end,
            fd: async_fd::readable(fd)?,
            kind,
            exit,
            left: Left::Open,
        })
    }

    /// Returns when [`read`](Self::read) may find something.
    pub async fn ready(&mut self) {
        match self.left {
            Left::Open => {
                tokio::select! {
                    ready = self.fd.readable() => if ready.is_err() {
                        self.left = Left::Nothing;
                    },
                    () = self.exit.wait_raw() => self.left = Left::Bytes(match self.kind {
                        Kind::Pipe => self.in_pipe(),
                        // It passes output on through a work queue, so its count is not the truth;
                        // but a read that finds nothing has waited for the queue (n_tty_read).
                        Kind::Terminal => IN_TERMINAL,
                    }),
                }
            }
            Left::Bytes(_) | Left::Nothing => {}
        }
    }

    fn in_pipe(&self) -> u64 {
        rustix::io::ioctl_fionread(self.fd.get_ref()).unwrap_or(0)
    }

    /// Fills the spare capacity of `into` with what is there now, which may be nothing.
    pub fn read(&mut self, into: &mut Vec<u8>) {
        self.left = match self.left {
            Left::Bytes(0) => Left::Nothing,
            left => left,
        };
        if self.has_ended() {
            return;
        }
        let mut read =
            |fd: &OwnedFd| Ok(rustix::io::read(fd, rustix::buffer::spare_capacity(into))?);
        let read: io::Result<usize> = match self.left {
            // Everything is in the pipe by now; the runtime's readiness may be outdated.
            Left::Bytes(_) => read(self.fd.get_ref()),
            _ => self.fd.try_io(Interest::READABLE, read),
        };
        match (read, &mut self.left) {
            (Ok(n), Left::Bytes(left)) if n > 0 => *left = left.saturating_sub(n as u64),
            (Ok(n), _) if n > 0 => {}
            (Ok(_), left) => *left = Left::Nothing,
            (Err(error), _) if error.kind() == io::ErrorKind::Interrupted => {}
            (Err(error), Left::Open) if error.kind() == io::ErrorKind::WouldBlock => {}
            (Err(error), left) => {
                let hung_up = error.raw_os_error() == Some(Errno::IO.raw_os_error());
                if matches!(left, Left::Open) && !(hung_up && self.kind == Kind::Terminal) {
                    tracing::warn!(%error, "reading a process's output failed; the rest is lost");
                }
                *left = Left::Nothing;
            }
        }
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        matches!(self.left, Left::Nothing)
    }
}

/// Carries an output stream into a buffer, to its end.
pub async fn pump(mut output: Output, buffer: &StreamBuffer) {
    while !output.has_ended() {
        let room = buffer.wait_room().await;
        output.ready().await;
        let mut bytes = Vec::with_capacity(room.min(READ_SIZE));
        output.read(&mut bytes);
        // A program that flushes every line does not keep a large buffer for each.
        if bytes.len() < bytes.capacity() / 2 {
            bytes.shrink_to_fit();
        }
        buffer.push(bytes.into(), clock::realtime_ns());
    }
    buffer.finish();
}

/// The agent's end of a process's standard input.
#[derive(Debug)]
pub struct Input {
    fd: AsyncFd<OwnedFd>,
}

impl Input {
    /// Takes the descriptor, which is set non-blocking.
    ///
    /// # Errors
    /// If the descriptor cannot be watched.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd: async_fd::watch(fd, Interest::WRITABLE)?,
        })
    }

    /// Writes all of `data`, waiting while the process does not read. Returns how many bytes were
    /// written: fewer than all if the process closed its input or died.
    pub async fn write(&self, data: &[u8], exit: &mut ExitWatch) -> usize {
        let mut written = 0;
        while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
            let mut ready = tokio::select! {
                ready = self.fd.writable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => break,
                },
                () = exit.wait_raw() => break,
            };
            match rustix::io::write(self.fd.get_ref(), rest) {
                Ok(n) => written += n,
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // EPIPE: the process closed its input. EIO: the terminal is gone.
                Err(_) => break,
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::fs::OFlags;
    use rustix::pty::OpenptFlags;

    use super::*;
    use crate::process::exit;

    /// A terminal: master, slave.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, slave)
    }

    /// Fills a terminal or a pipe to the brim; how much that is.
    fn fill(fd: &OwnedFd) -> usize {
        rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).unwrap();
        let mut filled = 0;
        while let Ok(n) = rustix::io::write(fd, &[b'x'; 1000]) {
            filled += n;
        }
        filled
    }

    async fn rest(output: &mut Output) -> usize {
        let mut length = 0;
        while !output.has_ended() {
            output.ready().await;
            let mut bytes = Vec::with_capacity(1000);
            output.read(&mut bytes);
            length += bytes.len();
        }
        length
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods)] // a reader that is slow, not a wait for anything
    async fn output_of_a_dead_process_waits_for_a_slow_reader() {
        for held in [false, true] {
            let (master, slave) = terminal();
            let (dead, exit) = exit::channel();
            let mut output = Output::new(master, Kind::Terminal, exit).unwrap();
            let filled = fill(&slave);
            assert!(filled > 4096, "{filled} bytes fit into a terminal");
            // With and without a background process that keeps the terminal.
            let kept = held.then_some(slave);
            dead.dead();
            output.ready().await;
            let mut bytes = Vec::with_capacity(1000);
            output.read(&mut bytes);
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(
                bytes.len() + rest(&mut output).await,
                filled,
                "held: {held}"
            );
            drop(kept);
        }
    }

    #[tokio::test]
    async fn another_writer_does_not_keep_the_stream_of_a_dead_process_open() {
        for kind in [Kind::Terminal, Kind::Pipe] {
            let (ours, theirs) = match kind {
                Kind::Terminal => terminal(),
                Kind::Pipe => rustix::pipe::pipe().unwrap(),
            };
            let (dead, exit) = exit::channel();
            let mut output = Output::new(ours, kind, exit).unwrap();
            let filled = fill(&theirs);
            dead.dead();
            let mut length = 0;
            while !output.has_ended() {
                output.ready().await;
                let mut bytes = Vec::with_capacity(1000);
                output.read(&mut bytes);
                length += bytes.len();
                fill(&theirs);
            }
            assert!(length >= filled, "{length} of {filled}");
            assert!(length <= filled.max(128 * 1024), "{length} of {filled}");
        }
    }
}
