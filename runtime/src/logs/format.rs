//! The lines of a CRI log: `<time> stdout|stderr F|P <content>`. Pure: bytes in, lines out.
//!
//! `F` ends a line of the container's (its newline is the log line's), `P` is a part of one: the
//! reader joins parts as they are. So content counts as its length, and one more with `F`.

use bulkhead_proto::agent::Stream;
use memchr::memchr;

use super::{offsets::Offsets, time};

/// Bytes of content in one log line; a longer line of the container's is written in parts.
pub const CONTENT_LIMIT: usize = 16 * 1024;
/// A part is written early when its line came in more chunks than this, because the agent bounds
/// how many unacknowledged pieces it keeps, and only what is written is acknowledged.
const CHUNK_LIMIT: usize = 1024;

/// Turns the two streams of a process into log lines.
#[derive(Debug, Default)]
pub struct Encoder {
    stdout: Pending,
    stderr: Pending,
    out: Vec<u8>,
}

/// A stream's line that has not ended.
#[derive(Debug, Default)]
struct Pending {
    line: Vec<u8>,
    chunks: usize,
    /// Bytes of the stream that are in lines.
    written: u64,
}

impl Encoder {
    /// For streams of which this much stands in the log already.
    pub fn new(from: Offsets) -> Self {
        let mut encoder = Self::default();
        encoder.stdout.written = from.stdout;
        encoder.stderr.written = from.stderr;
        encoder
    }

    /// Takes a chunk of a stream, read at `at` (nanoseconds since the epoch).
    pub fn feed(&mut self, stream: Stream, mut data: &[u8], at: i64) {
        let (pending, out) = match stream {
            Stream::Stdout => (&mut self.stdout, &mut self.out),
            Stream::Stderr => (&mut self.stderr, &mut self.out),
        };
        pending.chunks += 1;
        while let Some(first) = data.first() {
            if pending.line.len() >= CONTENT_LIMIT && *first != b'\n' {
                pending.write(stream, b'P', at, out);
            }
            // One byte more than fits: it may be the newline.
            let room = CONTENT_LIMIT.saturating_sub(pending.line.len());
            let window = data.get(..data.len().min(room + 1)).unwrap_or_default();
            let newline = memchr(b'\n', window);
            let (content, rest) = data.split_at(newline.unwrap_or(data.len().min(room)));
            pending.line.extend_from_slice(content);
            data = rest;
            if newline.is_some() {
                pending.write(stream, b'F', at, out);
                data = rest.get(1..).unwrap_or_default();
            }
        }
        if pending.chunks > CHUNK_LIMIT && !pending.line.is_empty() {
            pending.write(stream, b'P', at, out);
        }
    }

    /// The streams have ended: what has no newline becomes a part, so that a reader joins nothing
    /// to it and adds no newline the container did not write.
    pub fn finish(&mut self, at: i64) {
        for (stream, pending) in [
            (Stream::Stdout, &mut self.stdout),
            (Stream::Stderr, &mut self.stderr),
        ] {
            if !pending.line.is_empty() {
                pending.write(stream, b'P', at, &mut self.out);
            }
        }
    }

    /// A part of a stream is lost: what is pending is written as a part, and the stream resumes at
    /// `offset`.
    pub fn skip(&mut self, stream: Stream, offset: u64) {
        let pending = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if !pending.line.is_empty() {
            pending.write(stream, b'P', time::now(), &mut self.out);
        }
        pending.written = offset;
    }

    /// The lines made since the last call, and how far the streams are once they are written.
    pub fn take(&mut self) -> (Vec<u8>, Offsets) {
        (std::mem::take(&mut self.out), self.written())
    }

    /// How far the streams are with all lines made.
    pub fn written(&self) -> Offsets {
        Offsets {
            stdout: self.stdout.written,
            stderr: self.stderr.written,
        }
    }

    /// How many bytes of lines wait to be taken.
    pub fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Bytes of a stream taken so far: the offset the next chunk must have.
    pub fn taken(&self, stream: Stream) -> u64 {
        let pending = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        pending.written + pending.line.len() as u64
    }
}

impl Pending {
    fn write(&mut self, stream: Stream, tag: u8, at: i64, out: &mut Vec<u8>) {
        time::append(at, out);
        out.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        out.extend_from_slice(&[tag, b' ']);
        out.extend_from_slice(&self.line);
        out.push(b'\n');
        self.written += self.line.len() as u64 + u64::from(tag == b'F');
        self.line.clear();
        self.chunks = 0;
    }
}

/// A line of a log, without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Where it came from.
    pub stream: Stream,
    /// `F`: the container's line ends here.
    pub full: bool,
    /// What it wrote.
    pub content: &'a [u8],
}

impl Line<'_> {
    /// Bytes of the stream it stands for.
    pub fn length(&self) -> u64 {
        self.content.len() as u64 + u64::from(self.full)
    }
}

/// Reads a line as the kubelet does: time, stream and tags by single spaces, then the content.
pub fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = parts.next()?;
    if time.is_empty() {
        return None;
    }
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let full = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Line {
        stream,
        full,
        content: parts.next()?,
    })
}
