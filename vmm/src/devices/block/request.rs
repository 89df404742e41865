//! From a descriptor chain to a checked action on the disk. Pure: no descriptor of the host, no
//! state of the device; everything in a chain is the guest's and may be anything.
//!
//! The layout of a chain is free (virtio 1.2 §2.7.4): the header is the first 16 readable bytes
//! and the status the last writable byte, however they are cut into descriptors.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory};

use crate::virtio::buffers::Buffers;
use crate::virtio::iovec::{BufferError, IoVecs};

/// The unit of all positions and sizes in requests (virtio 1.2 §5.2.4), whatever the block size.
pub const SECTOR: u64 = 512;

/// Bytes of the request header (virtio 1.2 §5.2.6).
pub const HEADER: usize = 16;

/// Bytes of one range in a discard or write-zeroes request.
const RANGE: usize = 16;

/// The length of the answer to GET_ID.
pub const ID_BYTES: usize = 20;

/// The greatest range one discard or write-zeroes request may have.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// The statuses (virtio 1.2 §5.2.6), as the one byte they are.
pub const STATUS_OK: u8 = 0;
/// See [`STATUS_OK`].
pub const STATUS_IOERR: u8 = 1;
/// See [`STATUS_OK`].
pub const STATUS_UNSUPP: u8 = 2;

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// The size.
    pub sectors: u64,
    /// No writes.
    pub read_only: bool,
    /// DISCARD was negotiated.
    pub discard: bool,
    /// WRITE_ZEROES was negotiated.
    pub write_zeroes: bool,
}

/// What is to be done. Positions and lengths are in bytes and inside the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Disk to guest.
    Read {
        /// Where on the disk.
        offset: u64,
    },
    /// Guest to disk.
    Write {
        /// Where on the disk.
        offset: u64,
    },
    /// What was written is to be durable.
    Flush,
    /// The serial.
    GetId,
    /// The range's content is no longer wanted.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// The range is to read as zeroes.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// The space may be given back.
        unmap: bool,
    },
}

/// A request that gets no more than a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Ends with VIRTIO_BLK_S_IOERR.
    #[error("refused: {0}")]
    IoError(&'static str),
    /// Ends with VIRTIO_BLK_S_UNSUPP.
    #[error("request type or flags unknown")]
    Unsupported,
}

impl Refusal {
    /// The status byte.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Refusal::IoError(_) => STATUS_IOERR,
            Refusal::Unsupported => STATUS_UNSUPP,
        }
    }
}

/// A chain that cannot even be given a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A bad descriptor.
    #[error(transparent)]
    Buffers(#[from] BufferError),
    /// No byte for the status.
    #[error("the chain has no writable byte for the status")]
    NoStatus,
}

/// A parsed chain.
#[derive(Debug)]
pub struct Request<'m> {
    /// What to do, or why not.
    pub action: Result<Action, Refusal>,
    /// Where the data comes from or goes to; empty for actions without data.
    pub data: IoVecs<'m>,
    /// Where the status goes: a byte of guest memory.
    pub status: GuestAddress,
}

impl<'m> Request<'m> {
    /// Parses `chain` against `disk`.
    ///
    /// # Errors
    /// When there is no way to tell the guest the outcome.
    pub fn parse<M: GuestMemory>(
        chain: DescriptorChain<&M>,
        mem: &'m M,
        disk: &Disk,
    ) -> Result<Self, Malformed> {
        let mut buffers = Buffers::default();
        let status = buffers.gather(chain, mem)?.ok_or(Malformed::NoStatus)?;
        let Buffers {
            mut readable,
            mut writable,
        } = buffers;
        writable.truncate(writable.len() - 1);
        let mut header = [0u8; HEADER];
        let got = readable.copy_to(&mut header);
        readable.advance(got);
        let mut range = [0u8; RANGE];
        let range_len = readable.copy_to(&mut range);
        let action = if got < HEADER {
            Err(Refusal::IoError("the header is shorter than 16 bytes"))
        } else {
            plan(
                header,
                readable.len(),
                writable.len(),
                (range_len == RANGE).then_some(range),
                disk,
            )
        };
        let data = match action {
            Ok(Action::Read { .. } | Action::GetId) => writable,
            Ok(Action::Write { .. }) => readable,
            _ => IoVecs::new(),
        };
        Ok(Request {
            action,
            data,
            status,
        })
    }
}

/// Decides what a header asks for. `readable` and `writable` are the lengths of the data, `range`
/// its first 16 readable bytes.
///
/// # Errors
/// The status to answer with, when it is not allowed.
pub fn plan(
    header: [u8; HEADER],
    readable: usize,
    writable: usize,
    range: Option<[u8; RANGE]>,
    disk: &Disk,
) -> Result<Action, Refusal> {
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    match kind {
        VIRTIO_BLK_T_IN => Ok(Action::Read {
            offset: place(sector, writable, disk)?,
        }),
        VIRTIO_BLK_T_OUT => {
            writable_disk(disk)?;
            Ok(Action::Write {
                offset: place(sector, readable, disk)?,
            })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        VIRTIO_BLK_T_GET_ID => {
            if writable < ID_BYTES {
                return Err(Refusal::IoError("no room for the 20 bytes of the id"));
            }
            Ok(Action::GetId)
        }
        VIRTIO_BLK_T_DISCARD if disk.discard => {
            let (offset, len, flags) = parse_range(readable, range, disk)?;
            // virtio 1.2 §5.2.6.2: the unmap flag has no meaning here and is refused.
            if flags != 0 {
                return Err(Refusal::Unsupported);
            }
            Ok(Action::Discard { offset, len })
        }
        VIRTIO_BLK_T_WRITE_ZEROES if disk.write_zeroes => {
            let (offset, len, flags) = parse_range(readable, range, disk)?;
            if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Refusal::Unsupported);
            }
            Ok(Action::WriteZeroes {
                offset,
                len,
                unmap: flags != 0,
            })
        }
        _ => Err(Refusal::Unsupported),
    }
}

fn writable_disk(disk: &Disk) -> Result<(), Refusal> {
    if disk.read_only {
        return Err(Refusal::IoError("the disk is read-only"));
    }
    Ok(())
}

/// The byte position of `len` bytes at `sector`, when they are whole sectors inside the disk.
fn place(sector: u64, len: usize, disk: &Disk) -> Result<u64, Refusal> {
    let len = u64::try_from(len).map_err(|_| Refusal::IoError("the length overflows"))?;
    if len % SECTOR != 0 {
        return Err(Refusal::IoError("the length is not whole sectors"));
    }
    inside(sector, len / SECTOR, disk)
}

fn inside(sector: u64, sectors: u64, disk: &Disk) -> Result<u64, Refusal> {
    let beyond = Refusal::IoError("the range is beyond the end of the disk");
    let end = sector.checked_add(sectors).ok_or(beyond)?;
    if end > disk.sectors {
        return Err(beyond);
    }
    sector.checked_mul(SECTOR).ok_or(beyond)
}

/// The one range of a discard or write-zeroes request (max_discard_seg is 1).
fn parse_range(
    readable: usize,
    range: Option<[u8; RANGE]>,
    disk: &Disk,
) -> Result<(u64, u64, u32), Refusal> {
    writable_disk(disk)?;
    let (Some(range), RANGE) = (range, readable) else {
        return Err(Refusal::IoError("not exactly one range of 16 bytes"));
    };
    let [
        s0,
        s1,
        s2,
        s3,
        s4,
        s5,
        s6,
        s7,
        n0,
        n1,
        n2,
        n3,
        f0,
        f1,
        f2,
        f3,
    ] = range;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    if sectors > MAX_RANGE_SECTORS {
        return Err(Refusal::IoError("the range is longer than announced"));
    }
    let sectors = u64::from(sectors);
    let offset = inside(sector, sectors, disk)?;
    Ok((
        offset,
        sectors * SECTOR,
        u32::from_le_bytes([f0, f1, f2, f3]),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    const DISK: Disk = Disk {
        sectors: 1000,
        read_only: false,
        discard: true,
        write_zeroes: true,
    };

    fn header(kind: u32, sector: u64) -> [u8; HEADER] {
        let mut h = [0u8; HEADER];
        h[..4].copy_from_slice(&kind.to_le_bytes());
        h[8..].copy_from_slice(&sector.to_le_bytes());
        h
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE] {
        let mut r = [0u8; RANGE];
        r[..8].copy_from_slice(&sector.to_le_bytes());
        r[8..12].copy_from_slice(&sectors.to_le_bytes());
        r[12..].copy_from_slice(&flags.to_le_bytes());
        r
    }

    #[test]
    fn reads_and_writes_stay_inside_the_disk() {
        let read = |sector, len| plan(header(VIRTIO_BLK_T_IN, sector), 0, len, None, &DISK);
        assert_eq!(read(999, 512), Ok(Action::Read { offset: 999 * 512 }));
        assert_eq!(read(0, 512_000), Ok(Action::Read { offset: 0 }));
        for (sector, len) in [
            (1000, 512),
            (999, 1024),
            (0, 512_512),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (0, 511),
            (0, 513),
            (0, 1),
        ] {
            assert!(
                matches!(read(sector, len), Err(Refusal::IoError(_))),
                "{sector} {len}"
            );
        }
        let write = |disk: &Disk| plan(header(VIRTIO_BLK_T_OUT, 8), 4096, 0, None, disk);
        assert_eq!(write(&DISK), Ok(Action::Write { offset: 4096 }));
        let read_only = Disk {
            read_only: true,
            ..DISK
        };
        assert!(matches!(write(&read_only), Err(Refusal::IoError(_))));
    }

    #[test]
    fn discard_and_zeroes_take_exactly_one_good_range() {
        let ask = |kind, len, r| plan(header(kind, 0), len, 0, r, &DISK);
        let good = range(8, 16, 0);
        assert_eq!(
            ask(VIRTIO_BLK_T_DISCARD, 16, Some(good)),
            Ok(Action::Discard {
                offset: 4096,
                len: 8192
            })
        );
        assert_eq!(
            ask(VIRTIO_BLK_T_WRITE_ZEROES, 16, Some(range(8, 16, 1))),
            Ok(Action::WriteZeroes {
                offset: 4096,
                len: 8192,
                unmap: true
            })
        );
        assert_eq!(
            ask(VIRTIO_BLK_T_DISCARD, 16, Some(range(8, 16, 1))),
            Err(Refusal::Unsupported)
        );
        assert_eq!(
            ask(VIRTIO_BLK_T_WRITE_ZEROES, 16, Some(range(8, 16, 2))),
            Err(Refusal::Unsupported)
        );
        for (len, r) in [
            (32, Some(good)),
            (0, None),
            (16, Some(range(990, 11, 0))),
            (16, Some(range(u64::MAX, u32::MAX, 0))),
        ] {
            assert!(matches!(
                ask(VIRTIO_BLK_T_DISCARD, len, r),
                Err(Refusal::IoError(_))
            ));
        }
        let none = Disk {
            discard: false,
            write_zeroes: false,
            ..DISK
        };
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, 2, 77] {
            assert_eq!(
                plan(header(kind, 0), 16, 0, Some(good), &none),
                Err(Refusal::Unsupported)
            );
        }
    }

    #[test]
    fn a_header_and_a_status_may_be_cut_anyhow() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let h = header(VIRTIO_BLK_T_IN, 3);
        mem.write_slice(&h[..5], GuestAddress(0x8000)).unwrap();
        mem.write_slice(&h[5..], GuestAddress(0x9000)).unwrap();
        let queue = MockSplitQueue::new(&mem, 16);
        let raw: Vec<_> = [
            (0x8000, 5, 0),
            (0x9000, 11, 0),
            (0xa000, 500, 2),
            (0xb000, 13, 2),
        ]
        .into_iter()
        .map(|(a, l, f)| RawDescriptor::from(Descriptor::new(a, l, f, 0)))
        .collect();
        let chain = queue.build_desc_chain(&raw).unwrap();
        let request = Request::parse(chain, &mem, &DISK).unwrap();
        assert_eq!(request.action, Ok(Action::Read { offset: 1536 }));
        assert_eq!(request.data.len(), 512);
        assert_eq!(request.status, GuestAddress(0xb00c));
    }

    #[test]
    fn a_chain_without_a_status_byte_is_malformed() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let queue = MockSplitQueue::new(&mem, 16);
        let raw = [RawDescriptor::from(Descriptor::new(0x8000, 16, 0, 0))];
        let chain = queue.build_desc_chain(&raw).unwrap();
        assert_eq!(
            Request::parse(chain, &mem, &DISK).unwrap_err(),
            Malformed::NoStatus
        );
    }

    proptest! {
        #[test]
        fn whatever_is_planned_lies_inside_the_disk(
            head in any::<[u8; HEADER]>(), kind in 0u32..16, readable in 0usize..1 << 20,
            writable in 0usize..1 << 20, r in proptest::option::of(any::<[u8; RANGE]>()),
            read_only in any::<bool>(),
        ) {
            let mut head = head;
            head[..4].copy_from_slice(&kind.to_le_bytes());
            let disk = Disk { read_only, ..DISK };
            let end = |offset: u64, len: u64| offset.checked_add(len).unwrap();
            match plan(head, readable, writable, r, &disk) {
                Ok(Action::Read { offset }) =>
                    prop_assert!(end(offset, writable as u64) <= 512_000),
                Ok(Action::Write { offset }) =>
                    prop_assert!(!read_only && end(offset, readable as u64) <= 512_000),
                Ok(Action::Discard { offset, len } | Action::WriteZeroes { offset, len, .. }) =>
                    prop_assert!(!read_only && end(offset, len) <= 512_000),
                Ok(Action::Flush | Action::GetId) | Err(_) => {}
            }
        }
    }
}
