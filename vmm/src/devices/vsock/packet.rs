//! The header in front of every packet (virtio 1.2 §5.10.6), and what makes one acceptable.
//! Pure: bytes in, a checked header out.

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's address (virtio 1.2 §5.10.4).
pub const HOST_CID: u64 = 2;
/// Socket type "stream".
pub const TYPE_STREAM: u16 = 1;
/// The most payload we put into one packet, as Linux does.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// In `flags` of a shutdown: the sender will receive no more.
pub const SHUTDOWN_RCV: u32 = 1;
/// In `flags` of a shutdown: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// What a packet does (virtio 1.2 §5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Refuses or ends it.
    Rst = 3,
    /// Half or whole close.
    Shutdown = 4,
    /// Data.
    Rw = 5,
    /// News of the sender's buffer.
    CreditUpdate = 6,
    /// Asks for such news.
    CreditRequest = 7,
}

impl Op {
    fn from_wire(op: u16) -> Option<Op> {
        Some(match op {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Rst,
            4 => Op::Shutdown,
            5 => Op::Rw,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }
}

/// A header, as it stands on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// To whom.
    pub dst_cid: u64,
    /// From which port.
    pub src_port: u32,
    /// To which port.
    pub dst_port: u32,
    /// Bytes of payload that follow.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation.
    pub op: u16,
    /// Meaning depends on the operation.
    pub flags: u32,
    /// The size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// How much the sender has taken out of that buffer since the start, modulo 2^32.
    pub fwd_cnt: u32,
}

/// Takes fixed-size fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Header {
        let mut f = Fields(bytes);
        Header {
            src_cid: u64::from_le_bytes(f.take()),
            dst_cid: u64::from_le_bytes(f.take()),
            src_port: u32::from_le_bytes(f.take()),
            dst_port: u32::from_le_bytes(f.take()),
            len: u32::from_le_bytes(f.take()),
            kind: u16::from_le_bytes(f.take()),
            op: u16::from_le_bytes(f.take()),
            flags: u32::from_le_bytes(f.take()),
            buf_alloc: u32::from_le_bytes(f.take()),
            fwd_cnt: u32::from_le_bytes(f.take()),
        }
    }

    /// Writes a header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut out = [0u8; HEADER];
        let fields = self
            .src_cid
            .to_le_bytes()
            .into_iter()
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.kind.to_le_bytes())
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (to, from) in out.iter_mut().zip(fields) {
            *to = from;
        }
        out
    }
}

/// What to do with a packet of the guest that is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// The chain is shorter than the header, or than the payload the header announces.
    #[error("the packet is cut short")]
    Short,
    /// Not from the guest's address, or not to the host's.
    #[error("wrong source or destination address")]
    WrongAddress,
    /// A socket type other than stream, or an operation that does not exist: answered with a
    /// reset (virtio 1.2 §5.10.6.1).
    #[error("unknown socket type or operation")]
    Unknown,
}

/// Checks a header from a guest with address `guest_cid`, `payload` bytes of chain following it.
///
/// # Errors
/// See [`BadPacket`].
pub fn check(header: &Header, payload: usize, guest_cid: u64) -> Result<Op, BadPacket> {
    if header.src_cid != guest_cid || header.dst_cid != HOST_CID {
        return Err(BadPacket::WrongAddress);
    }
    if usize::try_from(header.len).map_or(true, |len| len > payload) {
        return Err(BadPacket::Short);
    }
    if header.kind != TYPE_STREAM {
        return Err(BadPacket::Unknown);
    }
    Op::from_wire(header.op).ok_or(BadPacket::Unknown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_where_the_standard_puts_them() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 0x0102_0304,
            dst_port: 1025,
            len: 5,
            kind: TYPE_STREAM,
            op: 5,
            flags: 1,
            buf_alloc: 0x4_0000,
            fwd_cnt: 9,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[0], 3);
        assert_eq!(bytes[8], 2);
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[20..24], [1, 4, 0, 0]);
        assert_eq!(bytes[24], 5);
        assert_eq!(bytes[28], 1);
        assert_eq!(bytes[30], 5);
        assert_eq!(bytes[32], 1);
        assert_eq!(bytes[36..40], [0, 0, 4, 0]);
        assert_eq!(bytes[40], 9);
        assert_eq!(check(&header, 5, 3), Ok(Op::Rw));
        assert_eq!(check(&header, 4, 3), Err(BadPacket::Short));
        assert_eq!(check(&header, 5, 4), Err(BadPacket::WrongAddress));
        let to_elsewhere = Header {
            dst_cid: 5,
            ..header
        };
        assert_eq!(check(&to_elsewhere, 5, 3), Err(BadPacket::WrongAddress));
        for unknown in [
            Header { kind: 2, ..header },
            Header { op: 0, ..header },
            Header { op: 8, ..header },
        ] {
            assert_eq!(check(&unknown, 5, 3), Err(BadPacket::Unknown));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(low in any::<[u8; 32]>(), high in any::<[u8; 12]>()) {
            let mut bytes = [0u8; HEADER];
            bytes[..32].copy_from_slice(&low);
            bytes[32..].copy_from_slice(&high);
            prop_assert_eq!(Header::parse(&bytes).to_bytes(), bytes);
        }
    }
}
