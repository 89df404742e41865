//! The bounded log of the guest's serial output.
//!
//! Two files of half the limit each: when the log is full it becomes `<path>.1`, in place of
//! the one before. The last lines are kept in memory too, for the report of a VM's end. A full
//! disk loses output and never stops the guest.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// How much is kept in memory.
const TAIL: usize = 4096;
/// Output is written by lines; a longer line is written in pieces of this.
const LINE: usize = 512;
/// An unfinished line is written after this long.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// The log.
#[derive(Debug)]
pub struct ConsoleLog {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
    line: Vec<u8>,
    tail: VecDeque<u8>,
    lost: u64,
    timer: TimerFd,
    armed: bool,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

impl ConsoleLog {
    /// Opens the log at `path`, which together with its predecessor takes `limit` bytes at most.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn new(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let written = file.metadata()?.len();
        Ok(ConsoleLog {
            path: path.to_owned(),
            file,
            written,
            limit: limit / 2,
            line: Vec::with_capacity(LINE),
            tail: VecDeque::with_capacity(TAIL),
            lost: 0,
            timer: TimerFd::new().map_err(io::Error::from)?,
            armed: false,
        })
    }

    /// The last output, as text.
    #[must_use]
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Readable some time after a line was begun: then call [`ConsoleLog::on_timer`].
    #[must_use]
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Writes out what the guest has left unfinished (a prompt).
    pub fn on_timer(&mut self) {
        self.armed = false;
        // Stops it being readable; it does not repeat.
        let _ = self.timer.clear();
        self.write_line();
    }

    /// Bytes that could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn write_line(&mut self) {
        let len = self.line.len() as u64;
        if len == 0 {
            return;
        }
        if self.written.saturating_add(len) > self.limit {
            self.rotate();
        }
        match self.file.write_all(&self.line) {
            Ok(()) => self.written += len,
            Err(_) => self.lost += len,
        }
        self.line.clear();
    }

    /// Starts a new file. When that fails the old one is emptied: bounded comes first.
    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let fresh = std::fs::rename(&self.path, old).and_then(|()| open(&self.path));
        match fresh {
            Ok(file) => self.file = file,
            Err(_) => {
                if self.file.set_len(0).is_err() {
                    self.lost = self.lost.saturating_add(self.written);
                }
            }
        }
        self.written = 0;
    }
}

impl Write for ConsoleLog {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        for byte in buf {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(*byte);
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() == LINE {
                self.write_line();
            }
        }
        if !self.line.is_empty() && !self.armed {
            // Without the timer the line is written with the next newline, or at the end.
            self.armed = self.timer.reset(FLUSH_AFTER, None).is_ok();
        }
        Ok(buf.len())
    }

    /// Writes out an unfinished line. The serial port flushes after every byte, which is why
    /// this is not what it calls: see `serial::Output`.
    fn flush(&mut self) -> io::Result<()> {
        self.write_line();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_together_keep_the_limit_and_the_newest_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::new(&path, 8192).unwrap();
        for n in 0..2000 {
            writeln!(log, "line {n}").unwrap();
        }
        log.flush().unwrap();
        let now = std::fs::read(&path).unwrap();
        let before = std::fs::read(dir.path().join("console.log.1")).unwrap();
        assert!(now.len() + before.len() <= 8192);
        assert!(before.len() > 4000);
        let text = String::from_utf8([before, now].concat()).unwrap();
        assert!(text.ends_with("line 1999\n"));
        let first: u32 = text.lines().next().unwrap()[5..].parse().unwrap();
        let count = u32::try_from(text.lines().count()).unwrap();
        assert_eq!(first + count, 2000, "no line lost between the files");
        assert!(log.tail().ends_with("line 1999\n"));
        assert_eq!(log.tail().len(), TAIL);
    }

    #[test]
    fn an_unfinished_line_is_written_on_flush() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::new(&path, 8192).unwrap();
        log.write_all(b"login: ").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        log.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"login: ");
    }
}
