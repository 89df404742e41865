//! Frames of SPDY/3.1 (draft 3.1, §2.2 and §2.6): a parser that takes bytes as they come, and an
//! encoder. Pure: no input or output, no compression, no state of streams.
//!
//! Data is passed on in the pieces in which it arrives, so a frame of 16 MiB costs no more memory
//! than one of a kilobyte. Control frames are short, or the connection is at fault.

use bytes::{Buf as _, Bytes, BytesMut};

/// The length of every frame's header.
pub const HEADER: usize = 8;
/// The longest control frame taken. A compressed header block of the protocols spoken here has a
/// few hundred bytes.
pub const MAX_CONTROL: usize = 16 * 1024;
/// Data below this size is copied out, so that a small piece does not keep a large buffer.
const COPY_BELOW: usize = 4 * 1024;

const CONTROL: u32 = 1 << 31;
const VERSION: u32 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const STREAM_ID: u32 = (1 << 31) - 1;

const SYN_STREAM: u32 = 1;
const SYN_REPLY: u32 = 2;
const RST_STREAM: u32 = 3;
const SETTINGS: u32 = 4;
const PING: u32 = 6;
const GOAWAY: u32 = 7;
const HEADERS: u32 = 8;
const WINDOW_UPDATE: u32 = 9;

/// Why a stream is reset (§2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    /// PROTOCOL_ERROR.
    Protocol = 1,
    /// INVALID_STREAM.
    InvalidStream = 2,
    /// REFUSED_STREAM.
    Refused = 3,
    /// CANCEL.
    Cancel = 5,
    /// INTERNAL_ERROR.
    Internal = 6,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream is opened.
    SynStream {
        /// Its number.
        id: u32,
        /// Nothing follows from this side.
        fin: bool,
        /// The other side is to say nothing.
        unidirectional: bool,
        /// Compressed.
        headers: Bytes,
    },
    /// A stream is taken.
    SynReply {
        /// Its number.
        id: u32,
        /// Nothing follows from this side.
        fin: bool,
        /// Compressed.
        headers: Bytes,
    },
    /// A piece of a stream's data.
    Data {
        /// The stream.
        id: u32,
        /// The bytes; never empty unless `fin`.
        data: Bytes,
        /// Nothing follows from this side.
        fin: bool,
    },
    /// A stream is ended at once, both ways.
    Rst {
        /// Its number.
        id: u32,
        /// Why.
        status: u32,
    },
    /// To be sent back, if it is the other side's.
    Ping {
        /// Odd: the client's.
        id: u32,
    },
    /// No more streams.
    GoAway,
    /// More headers for a stream. They must be unpacked, even if nobody wants them: the
    /// compression's state goes on through all blocks.
    Headers {
        /// The stream.
        id: u32,
        /// Nothing follows from this side.
        fin: bool,
        /// Compressed.
        headers: Bytes,
    },
    /// SETTINGS, WINDOW_UPDATE or a type of frame that is not known, which is passed over
    /// (§2.2.1).
    Ignored,
}

/// The other side does not speak SPDY/3.1, or too much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version, or no SPDY.
    #[error("a control frame of version {0}, not 3")]
    Version(u32),
    /// A control frame that is too long.
    #[error("a control frame of {0} bytes, where {MAX_CONTROL} are allowed")]
    TooLong(usize),
    /// A length that the frame's type cannot have.
    #[error("a frame of type {kind} with {length} bytes")]
    Length {
        /// The type.
        kind: u32,
        /// Its length.
        length: usize,
    },
    /// Stream 0.
    #[error("a frame for stream 0")]
    StreamZero,
}

/// Takes bytes and gives what they say.
#[derive(Debug, Default)]
pub struct Parser {
    /// What is left of a data frame that has begun: stream, bytes, FIN at its end.
    data: Option<(u32, usize, bool)>,
}

impl Parser {
    /// The next event in `input`, which is consumed as far as it is used up; `None` if more is
    /// needed. An error is final.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        if let Some((id, left, fin)) = self.data.take() {
            return Ok(self.piece(input, id, left, fin));
        }
        let Some(header) = input.get(..HEADER) else {
            return Ok(None);
        };
        let mut header = header;
        let (first, second) = (header.get_u32(), header.get_u32());
        let flags = second.to_be_bytes()[0];
        let length = usize::try_from(second & 0x00ff_ffff).unwrap_or(usize::MAX);
        if first & CONTROL == 0 {
            if first == 0 {
                return Err(FrameError::StreamZero);
            }
            input.advance(HEADER);
            return Ok(self.piece(input, first, length, flags & FLAG_FIN != 0));
        }
        let version = (first >> 16) & 0x7fff;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::TooLong(length));
        }
        if input.len() < HEADER + length {
            return Ok(None);
        }
        input.advance(HEADER);
        let body = input.split_to(length).freeze();
        control(first & 0xffff, flags, body).map(Some)
    }

    fn piece(&mut self, input: &mut BytesMut, id: u32, left: usize, fin: bool) -> Option<Event> {
        let now = left.min(input.len());
        if now == 0 && left > 0 {
            self.data = Some((id, left, fin));
            return None;
        }
        let data = if now < COPY_BELOW {
            let data = Bytes::copy_from_slice(input.get(..now).unwrap_or_default());
            input.advance(now);
            data
        } else {
            input.split_to(now).freeze()
        };
        let rest = left - now;
        if rest > 0 {
            self.data = Some((id, rest, fin));
        }
        Some(Event::Data {
            id,
            data,
            fin: fin && rest == 0,
        })
    }
}

fn control(kind: u32, flags: u8, mut body: Bytes) -> Result<Event, FrameError> {
    let length = body.len();
    let wrong = FrameError::Length { kind, length };
    let at_least = |least: usize| if length < least { Err(wrong) } else { Ok(()) };
    let exactly = |size: usize| if length == size { Ok(()) } else { Err(wrong) };
    let stream = |body: &mut Bytes| match body.get_u32() & STREAM_ID {
        0 => Err(FrameError::StreamZero),
        id => Ok(id),
    };
    let fin = flags & FLAG_FIN != 0;
    match kind {
        SYN_STREAM => {
            at_least(10)?;
            let id = stream(&mut body)?;
            // The associated stream, priority and slot say nothing here.
            body.advance(6);
            Ok(Event::SynStream {
                id,
                fin,
                unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                headers: body,
            })
        }
        SYN_REPLY | HEADERS => {
            at_least(4)?;
            let id = stream(&mut body)?;
            let headers = body;
            Ok(if kind == SYN_REPLY {
                Event::SynReply { id, fin, headers }
            } else {
                Event::Headers { id, fin, headers }
            })
        }
        RST_STREAM => {
            exactly(8)?;
            let id = stream(&mut body)?;
            let status = body.get_u32();
            Ok(Event::Rst { id, status })
        }
        PING => {
            exactly(4)?;
            let id = body.get_u32();
            Ok(Event::Ping { id })
        }
        GOAWAY => {
            exactly(8)?;
            Ok(Event::GoAway)
        }
        SETTINGS => {
            at_least(4)?;
            let entries = usize::try_from(body.get_u32()).unwrap_or(usize::MAX);
            if entries.checked_mul(8) != Some(length - 4) {
                return Err(wrong);
            }
            Ok(Event::Ignored)
        }
        // Flow control is in the draft, but no client of this protocol does it (moby/spdystream):
        // what holds a sender up is the connection itself.
        WINDOW_UPDATE => exactly(8).map(|()| Event::Ignored),
        _ => Ok(Event::Ignored),
    }
}

fn control_header(kind: u32, flags: u8, length: usize) -> [u8; HEADER] {
    let first = CONTROL | (VERSION << 16) | kind;
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    let second = (u32::from(flags) << 24) | length;
    join(first, second)
}

fn join(first: u32, second: u32) -> [u8; 8] {
    let [a, b, c, d] = first.to_be_bytes();
    let [e, f, g, h] = second.to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The header of a data frame; `length` below 16 MiB.
pub fn data_header(id: u32, fin: bool, length: usize) -> [u8; HEADER] {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    join(id & STREAM_ID, (u32::from(fin) << 24) | length)
}

/// A SYN_STREAM, as a client opens a stream.
pub fn syn_stream(id: u32, fin: bool, headers: &[u8]) -> Vec<u8> {
    let mut bytes = control_header(SYN_STREAM, u8::from(fin), headers.len() + 10).to_vec();
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(headers);
    bytes
}

/// A SYN_REPLY: the stream is taken.
pub fn syn_reply(id: u32, headers: &[u8]) -> Vec<u8> {
    let mut bytes = control_header(SYN_REPLY, 0, headers.len() + 4).to_vec();
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(headers);
    bytes
}

/// A RST_STREAM.
pub fn rst_stream(id: u32, status: Reset) -> Vec<u8> {
    let mut bytes = control_header(RST_STREAM, 0, 8).to_vec();
    bytes.extend_from_slice(&join(id, status as u32));
    bytes
}

/// A PING, or the answer to one.
pub fn ping(id: u32) -> Vec<u8> {
    let mut bytes = control_header(PING, 0, 4).to_vec();
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes
}

/// A GOAWAY: `last` is the last stream taken; `status` 0 means that all is well, 1 a protocol
/// error.
pub fn go_away(last: u32, status: u32) -> Vec<u8> {
    let mut bytes = control_header(GOAWAY, 0, 8).to_vec();
    bytes.extend_from_slice(&join(last, status));
    bytes
}
