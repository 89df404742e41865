//! The header in front of every frame (virtio 1.2 §5.1.6): what a guest may say in it. Pure.
//!
//! A frame goes to the tap behind a header of our own making: bits that were not negotiated, or
//! that the standard does not know, never reach the host's network code.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header, `num_buffers` included (always there since virtio 1.0).
pub const HEADER: usize = 12;
/// Where `num_buffers` is in it.
pub const NUM_BUFFERS: usize = 10;
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// The longest frame: an IP packet of 64 KiB with its Ethernet header and a VLAN tag.
pub const MAX_FRAME: usize = 65535 + ETHERNET + 4;

/// Why a frame of the guest is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Less than an Ethernet header, or more than any frame has.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// An offload that was not negotiated, or that contradicts itself.
    #[error("offload not negotiated or not consistent: {0}")]
    Offload(&'static str),
}

/// Checks the header of a frame of `len` bytes and gives the one to pass on.
///
/// # Errors
/// See [`BadFrame`].
pub fn check(raw: [u8; HEADER], len: usize, features: u64) -> Result<[u8; HEADER], BadFrame> {
    if !(ETHERNET..=MAX_FRAME).contains(&len) {
        return Err(BadFrame::Length(len));
    }
    let has = |bit: u32| features.checked_shr(bit).unwrap_or(0) & 1 == 1;
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = raw;
    // Of the flags a driver sets only this one; others are to be ignored (§5.1.6.2).
    let needs_csum = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let (start, offset) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([o0, o1]));
    if needs_csum {
        if !has(VIRTIO_NET_F_CSUM) {
            return Err(BadFrame::Offload("checksum"));
        }
        if usize::from(start) + usize::from(offset) + 2 > len {
            return Err(BadFrame::Offload("checksum beyond the frame"));
        }
    }
    let (kind, ecn) = (
        u32::from(gso_type) & !VIRTIO_NET_HDR_GSO_ECN,
        u32::from(gso_type) & VIRTIO_NET_HDR_GSO_ECN != 0,
    );
    let (gso_type, hdr_len, gso_size) = match kind {
        VIRTIO_NET_HDR_GSO_NONE if !ecn => (0, 0, 0),
        VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6 => {
            let bit = if kind == VIRTIO_NET_HDR_GSO_TCPV4 {
                VIRTIO_NET_F_HOST_TSO4
            } else {
                VIRTIO_NET_F_HOST_TSO6
            };
            if !has(bit) || (ecn && !has(VIRTIO_NET_F_HOST_ECN)) {
                return Err(BadFrame::Offload("segmentation"));
            }
            let size = u16::from_le_bytes([g0, g1]);
            if size == 0 || !needs_csum {
                return Err(BadFrame::Offload("segmentation without size or checksum"));
            }
            let hdr_len = u16::from_le_bytes([h0, h1]);
            // Only a hint (§5.1.6.2), but the host's network code takes it for true.
            if usize::from(hdr_len) > len {
                return Err(BadFrame::Offload("headers longer than the frame"));
            }
            (gso_type, hdr_len, size)
        }
        _ => return Err(BadFrame::Offload("kind of segmentation")),
    };
    let ([h0, h1], [g0, g1]) = (hdr_len.to_le_bytes(), gso_size.to_le_bytes());
    let csum = if needs_csum { [s0, s1, o0, o1] } else { [0; 4] };
    let [s0, s1, o0, o1] = csum;
    Ok([
        u8::from(needs_csum),
        gso_type,
        h0,
        h1,
        g0,
        g1,
        s0,
        s1,
        o0,
        o1,
        0,
        0,
    ])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN;

    fn tso4() -> [u8; HEADER] {
        // flags, gso_type, hdr_len 66, gso_size 1448, csum_start 34, csum_offset 16, 0
        [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]
    }

    #[test]
    fn a_plain_frame_loses_what_means_nothing() {
        assert_eq!(check([0; HEADER], 60, 0), Ok([0; HEADER]));
        let noise = [0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(check(noise, 60, ALL), Ok([0; HEADER]));
        assert_eq!(check([0; HEADER], 13, 0), Err(BadFrame::Length(13)));
        assert!(check([0; HEADER], MAX_FRAME + 1, 0).is_err());
    }

    #[test]
    fn offloads_pass_when_negotiated_and_consistent() {
        assert_eq!(check(tso4(), 60_000, ALL), Ok(tso4()));
        assert!(check(tso4(), 60_000, 0).is_err());
        assert!(check(tso4(), 60_000, ALL & !(1 << VIRTIO_NET_F_HOST_TSO4)).is_err());
        let change = |at: usize, to: u8| {
            let mut h = tso4();
            h[at] = to;
            h
        };
        for bad in [
            change(0, 0),    // no checksum
            change(1, 3),    // UFO
            change(1, 7),    // unknown
            change(1, 0x80), // ECN alone
            change(3, 0xff), // headers longer than the frame
            change(7, 0xff), // checksum outside
        ] {
            assert!(check(bad, 60_000, ALL).is_err(), "{bad:?}");
        }
        let mut no_size = tso4();
        no_size[4] = 0;
        no_size[5] = 0;
        assert!(check(no_size, 60_000, ALL).is_err());
    }

    proptest! {
        #[test]
        fn what_passes_points_into_the_frame(
            raw in any::<[u8; HEADER]>(), kind in 0u8..8, len in 0usize..70_000,
            features in any::<u64>(),
        ) {
            let mut raw = raw;
            raw[1] = kind | (raw[1] & 0x80);
            if let Ok(h) = check(raw, len, features) {
                prop_assert!(h[0] <= 1);
                let word = |at: usize| usize::from(u16::from_le_bytes([h[at], h[at + 1]]));
                prop_assert!(word(2) <= len);
                prop_assert!(h[0] == 0 || word(6) + word(8) + 2 <= len);
                prop_assert_eq!(word(10), 0);
            }
        }
    }
}
