//! The wire form of a session between the daemon and an agent: how it begins, and the frames in
//! which a process's output comes. Pure; both ends use it, so both agree.
//!
//! The daemon sends [`MAGIC`], a 32-bit big-endian length and a `SessionRequest`. The agent answers
//! with a length and a `SessionResponse`. Then bytes flow as the request says.

use prost::Message;

use crate::agent::{Exit, SessionRequest, SessionResponse, Stream};

/// What a session begins with. As long as the beginning of HTTP/2's own preface, from which it
/// differs.
pub const MAGIC: [u8; 8] = *b"BHSESS1\n";
/// The longest request: an exec's arguments and environment.
pub const MAX_REQUEST: usize = 4 << 20;
/// The longest answer: an error's text.
pub const MAX_RESPONSE: usize = 64 << 10;
/// The most data in one frame: a whole pipe's.
pub const MAX_FRAME: usize = 256 << 10;
/// Kind (1 byte), length (4), offset (8), time (8), big-endian.
pub const FRAME_HEADER: usize = 21;
/// The offsets of both streams up to which a reader has the output safe.
pub const ACKNOWLEDGEMENT: usize = 16;
/// An exit is a few numbers.
const MAX_EXIT: usize = 256;

const ALIVE: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;

/// What the other end sent is not in the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// A length beyond its limit.
    TooLong {
        /// As announced.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A frame of no known kind.
    Kind(u8),
    /// A message that does not parse.
    Message,
}

impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong { length, limit } => {
                write!(f, "a length of {length} bytes where {limit} are allowed")
            }
            Self::Kind(kind) => write!(f, "a frame of the unknown kind {kind}"),
            Self::Message => f.write_str("a message that cannot be read"),
        }
    }
}

impl std::error::Error for SessionError {}

/// The bytes that open a session.
#[must_use]
pub fn opening(request: &SessionRequest) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&with_length(request));
    bytes
}

/// The agent's answer, with its length.
#[must_use]
pub fn answer(response: &SessionResponse) -> Vec<u8> {
    with_length(response)
}

fn with_length(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// Checks an announced length against its limit.
///
/// # Errors
/// [`SessionError::TooLong`].
pub fn length(bytes: [u8; 4], limit: usize) -> Result<usize, SessionError> {
    let length = usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(SessionError::TooLong { length, limit });
    }
    Ok(length)
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Nothing: the agent looks whether the connection is there.
    Alive,
    /// Output follows.
    Output(Output),
    /// An `Exit` of that many bytes follows; the last frame.
    Exit(usize),
}

/// Output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Which.
    pub stream: Stream,
    /// Bytes.
    pub length: usize,
    /// Bytes of the stream before it.
    pub offset: u64,
    /// CLOCK_REALTIME of the guest when it was read from the process.
    pub time_unix_ns: i64,
}

impl Frame {
    /// The header of the frame. A longer payload than [`MAX_FRAME`] is the caller's mistake, and
    /// refused by the other end.
    #[must_use]
    pub fn header(self) -> [u8; FRAME_HEADER] {
        let (kind, length, offset, time) = match self {
            Self::Alive => (ALIVE, 0, 0, 0),
            Self::Output(output) => {
                let kind = match output.stream {
                    Stream::Stdout => STDOUT,
                    Stream::Stderr => STDERR,
                };
                (kind, output.length, output.offset, output.time_unix_ns)
            }
            Self::Exit(length) => (EXIT, length, 0, 0),
        };
        let mut header = [0; FRAME_HEADER];
        header[0] = kind;
        header[1..5].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        header[5..13].copy_from_slice(&offset.to_be_bytes());
        header[13..].copy_from_slice(&time.to_be_bytes());
        header
    }

    /// Reads a header.
    ///
    /// # Errors
    /// For an unknown kind or a length beyond the kind's limit.
    pub fn parse(header: [u8; FRAME_HEADER]) -> Result<Self, SessionError> {
        let [kind, l0, l1, l2, l3, place @ ..] = header;
        let (limit, stream) = match kind {
            ALIVE => (0, None),
            STDOUT => (MAX_FRAME, Some(Stream::Stdout)),
            STDERR => (MAX_FRAME, Some(Stream::Stderr)),
            EXIT => (MAX_EXIT, None),
            other => return Err(SessionError::Kind(other)),
        };
        let length = length([l0, l1, l2, l3], limit)?;
        let (offset, time) = two(place);
        Ok(match stream {
            Some(stream) => Self::Output(Output {
                stream,
                length,
                offset,
                time_unix_ns: time.cast_signed(),
            }),
            None if kind == EXIT => Self::Exit(length),
            None => Self::Alive,
        })
    }
}

fn two(bytes: [u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes);
    // Each half is what fits.
    #[allow(clippy::cast_possible_truncation)]
    ((both >> 64) as u64, both as u64)
}

/// Says that everything before these offsets is safe and may be forgotten.
#[must_use]
pub fn acknowledgement(stdout: u64, stderr: u64) -> [u8; ACKNOWLEDGEMENT] {
    (u128::from(stdout) << 64 | u128::from(stderr)).to_be_bytes()
}

/// Reads an acknowledgement: standard output, standard error.
#[must_use]
pub fn acknowledged(bytes: [u8; ACKNOWLEDGEMENT]) -> (u64, u64) {
    two(bytes)
}

/// The last frame.
#[must_use]
pub fn exit(exit: &Exit) -> Vec<u8> {
    let body = exit.encode_to_vec();
    let mut bytes = Frame::Exit(body.len()).header().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// Reads a message of the contract.
///
/// # Errors
/// [`SessionError::Message`].
pub fn message<T: Message + Default>(bytes: &[u8]) -> Result<T, SessionError> {
    T::decode(bytes).map_err(|_| SessionError::Message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(stream: Stream, length: usize) -> Frame {
        Frame::Output(Output {
            stream,
            length,
            offset: u64::MAX - 1,
            time_unix_ns: -2,
        })
    }

    #[test]
    fn headers_read_back_and_others_are_refused() {
        for frame in [
            Frame::Alive,
            output(Stream::Stdout, 0),
            output(Stream::Stdout, MAX_FRAME),
            output(Stream::Stderr, 7),
            Frame::Exit(30),
        ] {
            assert_eq!(Frame::parse(frame.header()), Ok(frame));
        }
        let header = |kind, length: u32| {
            let mut header = [0; FRAME_HEADER];
            header[0] = kind;
            header[1..5].copy_from_slice(&length.to_be_bytes());
            header
        };
        assert_eq!(Frame::parse(header(4, 0)), Err(SessionError::Kind(4)));
        for (kind, length) in [
            (ALIVE, 1),
            (STDOUT, 0x40001),
            (EXIT, 512),
            (STDERR, u32::MAX),
        ] {
            let parsed = Frame::parse(header(kind, length));
            assert!(
                matches!(parsed, Err(SessionError::TooLong { .. })),
                "{kind} {length}"
            );
        }
    }

    #[test]
    fn acknowledgements_read_back() {
        let bytes = acknowledgement(1 << 63 | 5, u64::MAX);
        assert_eq!(acknowledged(bytes), (1 << 63 | 5, u64::MAX));
    }

    #[test]
    fn an_opening_is_no_http2_preface() {
        let opening = opening(&SessionRequest::default());
        assert!(opening.starts_with(&MAGIC));
        assert_ne!(MAGIC, *b"PRI * HT");
        assert_eq!(length([0, 0x40, 0, 1], MAX_REQUEST).ok(), None);
        assert_eq!(length([0, 0x40, 0, 0], MAX_REQUEST), Ok(MAX_REQUEST));
    }
}
