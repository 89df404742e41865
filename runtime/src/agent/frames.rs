//! What an agent says in a session about a process: its output, and how it ended.

use std::io;

use bulkhead_proto::{
    agent::Exit,
    session::{self, FRAME_HEADER, Frame, Output},
};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{io::AsyncReadExt as _, net::unix::OwnedReadHalf};

use super::AgentError;

/// As much as the socket holds at once.
const READ_SIZE: usize = 256 * 1024;

/// What comes from the process.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// Output; its length is the data's.
    Data(Output, Bytes),
    /// The end, after all output.
    Exit(Exit),
}

/// The frames of a session as they come. A frame is given in the pieces it arrives in.
#[derive(Debug)]
pub struct Frames {
    read: OwnedReadHalf,
    action: &'static str,
    parser: Parser,
}

impl Frames {
    /// Reads what comes on a session, which is there for `action`.
    #[must_use]
    pub fn new(read: OwnedReadHalf, action: &'static str) -> Self {
        Self {
            read,
            action,
            parser: Parser::default(),
        }
    }

    /// Waits for the next event. Nothing is lost if the wait is given up.
    ///
    /// # Errors
    /// When the connection ends before the process, or the agent does not keep to the contract.
    pub async fn next(&mut self) -> Result<Event, AgentError> {
        let action = self.action;
        let next = self.read_event().await;
        next.map_err(|source| AgentError::Session { action, source })
    }

    async fn read_event(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.parser.event()? {
                return Ok(event);
            }
            let input = self.parser.input();
            input.reserve(READ_SIZE);
            if self.read.read_buf(input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The frames in bytes from a guest. Pure.
#[derive(Debug, Default)]
pub struct Parser {
    input: BytesMut,
    /// What is to come of the frame that is being read.
    rest: Option<Frame>,
}

impl Parser {
    /// Where bytes are added as they come.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// What can be said of the bytes so far; `None` if more must come.
    ///
    /// # Errors
    /// When they are not in the contract: the session is then of no more use.
    pub fn event(&mut self) -> io::Result<Option<Event>> {
        let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        loop {
            match self.rest {
                None => {
                    let Some((header, _)) = self.input.split_first_chunk::<FRAME_HEADER>() else {
                        return Ok(None);
                    };
                    self.rest = Some(Frame::parse(*header).map_err(broken)?);
                    self.input.advance(FRAME_HEADER);
                }
                Some(Frame::Alive | Frame::Output(Output { length: 0, .. })) => self.rest = None,
                Some(Frame::Output(_)) if self.input.is_empty() => return Ok(None),
                Some(Frame::Output(output)) => {
                    let data = self.input.split_to(output.length.min(self.input.len()));
                    self.rest = Some(Frame::Output(Output {
                        length: output.length - data.len(),
                        offset: output.offset.saturating_add(data.len() as u64),
                        ..output
                    }));
                    let length = data.len();
                    return Ok(Some(Event::Data(
                        Output { length, ..output },
                        data.freeze(),
                    )));
                }
                Some(Frame::Exit(length)) => {
                    if self.input.len() < length {
                        return Ok(None);
                    }
                    self.rest = None;
                    let exit = session::message(&self.input.split_to(length)).map_err(broken)?;
                    return Ok(Some(Event::Exit(exit)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::agent::Stream;
    use proptest::prelude::*;

    use super::*;

    fn events(parser: &mut Parser) -> Vec<Event> {
        std::iter::from_fn(|| parser.event().unwrap()).collect()
    }

    proptest! {
        // However the bytes are cut up, the same output comes, each piece where it belongs.
        #[test]
        fn frames_survive_any_cut(
            lengths in prop::collection::vec((0usize..70, any::<bool>()), 0..20),
            cuts in prop::collection::vec(1usize..40, 1..200),
        ) {
            let (mut bytes, mut sent) = (Vec::new(), [Vec::new(), Vec::new()]);
            for (length, second) in lengths {
                let stream = if second { Stream::Stderr } else { Stream::Stdout };
                let all = &mut sent[usize::from(second)];
                let data: Vec<u8> = (0..length).map(|n| u8::try_from(n).unwrap()).collect();
                let offset = all.len() as u64;
                let output = Output { stream, length, offset, time_unix_ns: 7 };
                bytes.extend_from_slice(&Frame::Output(output).header());
                bytes.extend_from_slice(&data);
                bytes.extend_from_slice(&Frame::Alive.header());
                all.extend_from_slice(&data);
            }
            let exit = Exit { code: 3, ..Exit::default() };
            bytes.extend_from_slice(&session::exit(&exit));
            let (mut parser, mut got) = (Parser::default(), [Vec::new(), Vec::new()]);
            let (mut ends, mut rest) = (Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                parser.input.extend_from_slice(now);
                rest = later;
                for event in events(&mut parser) {
                    match event {
                        Event::Exit(exit) => ends.push(exit),
                        Event::Data(place, data) => {
                            let all = &mut got[usize::from(place.stream == Stream::Stderr)];
                            prop_assert_eq!(place.offset, all.len() as u64);
                            prop_assert_eq!(place.length, data.len());
                            all.extend_from_slice(&data);
                        }
                    }
                }
            }
            prop_assert_eq!(got, sent);
            prop_assert_eq!(ends, vec![exit]);
        }

        #[test]
        fn garbage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut parser = Parser::default();
            parser.input.extend_from_slice(&bytes);
            while let Ok(Some(_)) = parser.event() {}
        }
    }
}
