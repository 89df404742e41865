//! The maps of sparse files: GNU's old format, and PAX formats 0.0, 0.1 and 1.0.
//!
//! A map lists the pieces of data of a file in order; what is between them is a hole.

use std::io::Read;

use super::error::{FormatProblem, LayerError};
use super::header::unsigned;
use super::pax::decimal;
use super::source::Source;

/// A piece of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// Checks a map against the size of the file and the bytes stored for it, and drops empty pieces.
pub(super) fn check(map: &[Extent], size: u64, stored: u64) -> Result<Vec<Extent>, FormatProblem> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for extent in map {
        if extent.offset < end {
            return Err(FormatProblem::Sparse("pieces overlap or go back"));
        }
        end = extent
            .offset
            .checked_add(extent.len)
            .filter(|end| *end <= size)
            .ok_or(FormatProblem::Sparse(
                "a piece is behind the end of the file",
            ))?;
        sum += extent.len;
    }
    if sum != stored {
        return Err(FormatProblem::Sparse(
            "the pieces are not the data that is stored",
        ));
    }
    Ok(map
        .iter()
        .copied()
        .filter(|extent| extent.len > 0)
        .collect())
}

/// Pairs the numbers of PAX formats 0.0 and 0.1.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Extent>, FormatProblem> {
    if !numbers.len().is_multiple_of(2) {
        return Err(FormatProblem::Sparse("an offset without a length"));
    }
    Ok(numbers
        .chunks_exact(2)
        .filter_map(|pair| match pair {
            [offset, len] => Some(Extent {
                offset: *offset,
                len: *len,
            }),
            _ => None,
        })
        .collect())
}

/// The old GNU format: four pieces in the header, then blocks of 21. Returns the map and the
/// size with holes.
pub(super) fn old_gnu<R: Read>(
    header: &[u8; 512],
    source: &mut Source<'_, R>,
    max: usize,
) -> Result<(Vec<Extent>, u64), LayerError> {
    let offset = source.offset();
    let bad = |problem| LayerError::Format { offset, problem };
    let size = unsigned(header.get(483..495).unwrap_or_default(), "realsize").map_err(bad)?;
    let mut map = Vec::new();
    let mut more = header.get(482).is_some_and(|b| *b != 0);
    if !table(header.get(386..482).unwrap_or_default(), &mut map).map_err(bad)? {
        more = false;
    }
    while more {
        if map.len() > max {
            return Err(too_many(max));
        }
        let what = "the map of a sparse file";
        let offset = source.offset();
        let block = source
            .block(what)?
            .ok_or(LayerError::Truncated { offset, what })?;
        let bad = |problem| LayerError::Format {
            offset: offset + 512,
            problem,
        };
        more = block.get(504).is_some_and(|b| *b != 0);
        if !table(block.get(..504).unwrap_or_default(), &mut map).map_err(bad)? {
            more = false;
        }
    }
    Ok((map, size))
}

/// Reads pieces of 24 bytes up to the first that is empty; `false` when one was.
fn table(bytes: &[u8], map: &mut Vec<Extent>) -> Result<bool, FormatProblem> {
    for piece in bytes.chunks_exact(24) {
        let (offset, len) = piece.split_at(12);
        if offset.first() == Some(&0) || len.first() == Some(&0) {
            return Ok(false);
        }
        map.push(Extent {
            offset: unsigned(offset, "offset")?,
            len: unsigned(len, "numbytes")?,
        });
    }
    Ok(true)
}

/// PAX format 1.0: decimal lines in front of the data, padded to a block: the number of pieces,
/// then offset and length of each. Returns the map and the bytes it took.
pub(super) fn pax_1_0<R: Read>(
    source: &mut Source<'_, R>,
    stored: u64,
    max: usize,
) -> Result<(Vec<Extent>, u64), LayerError> {
    let what = "the map of a sparse file";
    let start = source.offset();
    let bad = |problem| LayerError::Format {
        offset: start,
        problem,
    };
    let mut used = 0;
    let mut numbers: Vec<u64> = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    let mut want = 1_usize;
    while numbers.len() < want {
        if used + 512 > stored {
            return Err(bad(FormatProblem::Sparse("it does not end")));
        }
        let offset = source.offset();
        let block = source
            .block(what)?
            .ok_or(LayerError::Truncated { offset, what })?;
        used += 512;
        for b in block {
            if numbers.len() == want {
                break;
            }
            if b != b'\n' {
                line.push(b);
                if line.len() > 20 {
                    return Err(bad(FormatProblem::Number("sparse map")));
                }
                continue;
            }
            let n = decimal(&line).ok_or_else(|| bad(FormatProblem::Number("sparse map")))?;
            line.clear();
            numbers.push(n);
            if numbers.len() == 1 {
                let pieces = usize::try_from(n).unwrap_or(usize::MAX);
                if pieces > max {
                    return Err(too_many(max));
                }
                want = 1 + 2 * pieces;
            }
        }
    }
    let map = pairs(numbers.get(1..).unwrap_or_default()).map_err(bad)?;
    Ok((map, used))
}

pub(super) fn too_many(max: usize) -> LayerError {
    LayerError::Limit {
        what: "pieces of data in a sparse file",
        limit: max as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
        list.iter()
            .map(|(offset, len)| Extent {
                offset: *offset,
                len: *len,
            })
            .collect()
    }

    #[test]
    fn checks() {
        let good = extents(&[(0, 10), (10, 0), (20, 5), (100, 0)]);
        assert_eq!(check(&good, 100, 15).unwrap(), extents(&[(0, 10), (20, 5)]));
        assert_eq!(check(&[], 1 << 40, 0).unwrap(), []);
        for (map, size, stored) in [
            (extents(&[(0, 10), (5, 5)]), 100, 15),
            (extents(&[(10, 10), (0, 5)]), 100, 15),
            (extents(&[(0, 10)]), 9, 10),
            (extents(&[(u64::MAX, 2)]), u64::MAX, 2),
            (extents(&[(0, 10)]), 100, 11),
            (extents(&[(0, u64::MAX), (u64::MAX, 0)]), u64::MAX, 0),
        ] {
            assert!(check(&map, size, stored).is_err(), "{map:?}");
        }
    }
}
