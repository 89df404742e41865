//! How much of a request is served. Pure.

/// The most bytes one request gets; a driver that asks for more gets less, as it may
/// (virtio 1.2 §5.4.6.1: the device places one or more bytes).
pub const MAX_BYTES: usize = 4096;

/// The bytes to write into a buffer of `room` bytes.
#[must_use]
pub fn served(room: usize) -> usize {
    room.min(MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_requests_are_served_whole_and_large_ones_in_part() {
        assert_eq!(served(0), 0);
        assert_eq!(served(64), 64);
        assert_eq!(served(usize::MAX), MAX_BYTES);
    }
}
