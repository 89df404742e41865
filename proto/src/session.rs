//! The wire form of a session between the daemon and an agent: how it begins, and the frames in
//! which a process's output comes. Pure; both ends use it, so both agree.
//!
//! The daemon sends [`MAGIC`], a 32-bit big-endian length and a `SessionRequest`. The agent answers
//! with a length and a `SessionResponse`. Then bytes flow as the request says.

use prost::Message;

use crate::agent::{Exit, SessionRequest, SessionResponse};

/// What a session begins with. As long as the beginning of HTTP/2's own preface, from which it
/// differs.
pub const MAGIC: [u8; 8] = *b"BHSESS1\n";
/// The longest request: an exec's arguments and environment.
pub const MAX_REQUEST: usize = 4 << 20;
/// The longest answer: an error's text.
pub const MAX_RESPONSE: usize = 64 << 10;
/// The most data in one frame.
pub const MAX_FRAME: usize = 64 << 10;
/// Kind and length.
pub const FRAME_HEADER: usize = 5;
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
    /// That many bytes of standard output follow.
    Stdout(usize),
    /// That many bytes of standard error follow.
    Stderr(usize),
    /// An `Exit` of that many bytes follows; the last frame.
    Exit(usize),
}

impl Frame {
    /// The header of the frame. A longer payload than [`MAX_FRAME`] is the caller's mistake, and
    /// refused by the other end.
    #[must_use]
    pub fn header(self) -> [u8; FRAME_HEADER] {
        let (kind, length) = match self {
            Self::Alive => (ALIVE, 0),
            Self::Stdout(length) => (STDOUT, length),
            Self::Stderr(length) => (STDERR, length),
            Self::Exit(length) => (EXIT, length),
        };
        let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        [kind, a, b, c, d]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// For an unknown kind or a length beyond the kind's limit.
    pub fn parse(header: [u8; FRAME_HEADER]) -> Result<Self, SessionError> {
        let [kind, a, b, c, d] = header;
        let limit = match kind {
            ALIVE => 0,
            STDOUT | STDERR => MAX_FRAME,
            EXIT => MAX_EXIT,
            other => return Err(SessionError::Kind(other)),
        };
        let length = length([a, b, c, d], limit)?;
        Ok(match kind {
            STDOUT => Self::Stdout(length),
            STDERR => Self::Stderr(length),
            EXIT => Self::Exit(length),
            _ => Self::Alive,
        })
    }
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

    #[test]
    fn headers_read_back_and_others_are_refused() {
        for frame in [
            Frame::Alive,
            Frame::Stdout(0),
            Frame::Stdout(MAX_FRAME),
            Frame::Stderr(7),
            Frame::Exit(30),
        ] {
            assert_eq!(Frame::parse(frame.header()), Ok(frame));
        }
        assert_eq!(Frame::parse([4, 0, 0, 0, 0]), Err(SessionError::Kind(4)));
        for bad in [
            [ALIVE, 0, 0, 0, 1],
            [STDOUT, 0, 1, 0, 1],
            [EXIT, 0, 0, 2, 0],
            [STDERR, 255, 255, 255, 255],
        ] {
            assert!(
                matches!(Frame::parse(bad), Err(SessionError::TooLong { .. })),
                "{bad:?}"
            );
        }
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
