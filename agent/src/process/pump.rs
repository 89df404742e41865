//! Moves bytes between a process's descriptors and the agent: output into a [`StreamBuffer`],
//! input from the daemon. Knows pipes and terminals, no processes.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::buffer::StreamBuffer;
use super::exit::ExitWatch;
use crate::{clock, watched};

const READ_SIZE: usize = 64 * 1024;
/// How long the last output of a terminal may take to come through the line discipline once its
/// process is dead, while something else still holds the terminal open.
const TERMINAL_DRAIN: Duration = Duration::from_millis(200);

/// What a descriptor is: they differ in how their end shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pipe: end of file is a read of nothing.
    Pipe,
    /// A terminal's master: end of file is EIO.
    Terminal,
}

enum Step {
    Bytes(usize),
    WouldBlock,
    End,
}

fn read_step(fd: &OwnedFd, kind: Kind, limit: usize, buffer: &StreamBuffer) -> Result<Step, Errno> {
    let mut bytes = BytesMut::zeroed(limit.clamp(1, READ_SIZE));
    match rustix::io::read(fd, &mut bytes[..]) {
        Ok(0) => Ok(Step::End),
        Ok(n) => {
            bytes.truncate(n);
            buffer.push(bytes.freeze(), clock::realtime_ns());
            Ok(Step::Bytes(n))
        }
        Err(Errno::AGAIN) => Ok(Step::WouldBlock),
        Err(Errno::INTR) => Ok(Step::Bytes(0)),
        Err(Errno::IO) if kind == Kind::Terminal => Ok(Step::End),
        Err(error) => Err(error),
    }
}

/// Reads `fd` into `buffer` until its end, or until the process is dead and what it had written is
/// read. A grandchild that keeps the descriptor open does not keep the stream open.
pub async fn pump_output(
    fd: AsyncFd<OwnedFd>,
    kind: Kind,
    buffer: &StreamBuffer,
    mut exit: ExitWatch,
) {
    let ended = copy_until_exit(&fd, kind, buffer, &mut exit).await;
    if !ended {
        drain(&fd, kind, buffer).await;
    }
    buffer.finish();
}

/// True when the descriptor ended by itself; false when the process died first.
async fn copy_until_exit(
    fd: &AsyncFd<OwnedFd>,
    kind: Kind,
    buffer: &StreamBuffer,
    exit: &mut ExitWatch,
) -> bool {
    loop {
        let room = buffer.wait_room().await;
        let mut ready = tokio::select! {
            ready = fd.readable() => match ready {
                Ok(ready) => ready,
                Err(_) => return true,
            },
            () = exit.wait_raw() => return false,
        };
        match read_step(fd.get_ref(), kind, room, buffer) {
            Ok(Step::Bytes(_)) => {}
            Ok(Step::WouldBlock) => ready.clear_ready(),
            Ok(Step::End) => return true,
            Err(error) => {
                tracing::warn!(%error, "reading a process's output failed: the stream ends here");
                return true;
            }
        }
    }
}

async fn drain(fd: &AsyncFd<OwnedFd>, kind: Kind, buffer: &StreamBuffer) {
    match kind {
        // What lies in the pipe now is all the dead process wrote; more than that comes from
        // somebody else, who could go on for ever.
        Kind::Pipe => {
            let Ok(mut left) = rustix::io::ioctl_fionread(fd.get_ref()) else {
                return;
            };
            while left > 0 {
                let room = buffer.wait_room().await;
                let limit = usize::try_from(left).unwrap_or(usize::MAX).min(room);
                match read_step(fd.get_ref(), kind, limit, buffer) {
                    Ok(Step::Bytes(n)) => left = left.saturating_sub(n as u64),
                    Ok(Step::WouldBlock | Step::End) | Err(_) => return,
                }
            }
        }
        // A terminal passes output on through a work queue, so its count is not the truth: read
        // to the hang-up, within a deadline in case somebody else keeps the terminal.
        Kind::Terminal => {
            let deadline = Instant::now() + TERMINAL_DRAIN;
            loop {
                let room = buffer.wait_room().await;
                match read_step(fd.get_ref(), kind, room, buffer) {
                    Ok(Step::Bytes(_)) if Instant::now() < deadline => {}
                    Ok(Step::WouldBlock) => match timeout_at(deadline, fd.readable()).await {
                        Ok(Ok(mut ready)) => ready.clear_ready(),
                        Ok(Err(_)) | Err(_) => return,
                    },
                    Ok(_) | Err(_) => return,
                }
            }
        }
    }
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
    /// When the descriptor cannot be watched.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd: watched::watch(fd, Interest::WRITABLE)?,
        })
    }

    /// Writes all of `data`, waiting while the process does not read. The answer is how much got
    /// there: less than all when the process closed its input or died.
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
