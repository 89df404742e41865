//! Requests of the driver and answers to it, as they lie in the ring (virtio 1.2 §5.15.6). Pure.

/// Bytes of a request.
pub const REQUEST: usize = 24;
/// Bytes of an answer.
pub const RESPONSE: usize = 10;

/// Blocks from an address on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The guest address of the first.
    pub addr: u64,
    /// How many.
    pub count: u16,
}

/// What the driver asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Memory it will use.
    Plug(Blocks),
    /// Memory it has let go of.
    Unplug(Blocks),
    /// All of it.
    UnplugAll,
    /// Which it has.
    State(Blocks),
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// Done.
    Ack,
    /// Done, and this is how they are.
    State(State),
    /// Not now: it would be more than is wanted.
    Nack,
    /// The request makes no sense.
    Error,
}

/// How blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum State {
    /// All plugged.
    Plugged = 0,
    /// None plugged.
    Unplugged = 1,
    /// Some of both.
    Mixed = 2,
}

impl Request {
    /// Reads a request; `None` for a type that is not defined.
    #[must_use]
    pub fn parse(bytes: &[u8; REQUEST]) -> Option<Self> {
        let [
            t0,
            t1,
            _,
            _,
            _,
            _,
            _,
            _,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            n0,
            n1,
            ..,
        ] = *bytes;
        let blocks = Blocks {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            count: u16::from_le_bytes([n0, n1]),
        };
        match u16::from_le_bytes([t0, t1]) {
            0 => Some(Request::Plug(blocks)),
            1 => Some(Request::Unplug(blocks)),
            2 => Some(Request::UnplugAll),
            3 => Some(Request::State(blocks)),
            _ => None,
        }
    }
}

impl Response {
    /// The answer's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; RESPONSE] {
        let (kind, state) = match self {
            Response::Ack => (0u8, 0u8),
            Response::State(state) => (0, state as u8),
            Response::Nack => (1, 0),
            Response::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE];
        let [k, .., s, _] = &mut bytes;
        (*k, *s) = (kind, state);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_where_the_standard_has_them() {
        let mut raw = [0u8; REQUEST];
        raw[0] = 1;
        raw[8..16].copy_from_slice(&0x1_4000_0000u64.to_le_bytes());
        raw[16..18].copy_from_slice(&513u16.to_le_bytes());
        let blocks = Blocks {
            addr: 0x1_4000_0000,
            count: 513,
        };
        assert_eq!(Request::parse(&raw), Some(Request::Unplug(blocks)));
        raw[1] = 1;
        assert_eq!(Request::parse(&raw), None);
        assert_eq!(Response::Error.to_bytes(), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            Response::State(State::Mixed).to_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 2, 0]
        );
    }
}
