//! Page lists, as the inflate and deflate queues carry them. Pure.

/// Bytes of a page in a list, whatever the guest's own page size (virtio 1.2 §5.5.6).
pub const PAGE: u64 = 4096;

/// The most page numbers one request may have (Linux sends 256).
pub const MAX_PAGES: usize = 1024;

/// A run of consecutive pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The guest address of the first.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// The runs in a list of 32-bit page numbers; a cut-off number at the end is ignored.
pub fn runs(list: &[u8]) -> impl Iterator<Item = Run> {
    let mut numbers = list
        .as_chunks::<4>()
        .0
        .iter()
        .map(|n| u64::from(u32::from_le_bytes(*n)))
        .peekable();
    std::iter::from_fn(move || {
        let first = numbers.next()?;
        let mut last = first;
        while numbers.next_if_eq(&(last + 1)).is_some() {
            last += 1;
        }
        Some(Run {
            start: first * PAGE,
            len: (last - first + 1) * PAGE,
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    #[test]
    fn consecutive_pages_are_one_run() {
        let got: Vec<_> = runs(&list(&[5, 6, 7, 9, 1, u32::MAX])).collect();
        let run = |start: u64, pages: u64| Run {
            start: start * PAGE,
            len: pages * PAGE,
        };
        assert_eq!(
            got,
            [run(5, 3), run(9, 1), run(1, 1), run(u64::from(u32::MAX), 1)]
        );
        assert_eq!(runs(&[1, 0, 0]).count(), 0);
    }

    proptest! {
        #[test]
        fn every_page_is_in_exactly_one_run(numbers in proptest::collection::vec(0u32..50, 0..99)) {
            let pages: u64 = runs(&list(&numbers)).map(|r| r.len / PAGE).sum();
            prop_assert_eq!(pages, numbers.len() as u64);
        }
    }
}
