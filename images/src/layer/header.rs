//! One 512-byte tar header (POSIX.1-1988 ustar, GNU and old variants), as a pure function.

use super::error::FormatProblem;

/// The fields of a header, as they stand there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u16,
    pub uid: i64,
    pub gid: i64,
    pub size: u64,
    pub mtime: i64,
    pub kind: u8,
    pub major: u32,
    pub minor: u32,
}

impl Header {
    /// Reads a header; `None` for a block of zeros, the mark of the end.
    pub(super) fn parse(block: &[u8; 512]) -> Result<Option<Self>, FormatProblem> {
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        check_sum(block)?;
        let field = |from: usize, len: usize| block.get(from..from + len).unwrap_or_default();
        let kind = field(156, 1).first().copied().unwrap_or_default();
        let posix = field(257, 6) == b"ustar\0";
        let star = posix && field(508, 4) == b"tar\0";
        let gnu = field(257, 8) == b"ustar  \0";
        let mut name = text(field(0, 100)).to_vec();
        if posix {
            // star keeps two times behind a shorter prefix.
            let prefix = text(field(345, if star { 131 } else { 155 }));
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let device = |from, what| -> Result<u32, FormatProblem> {
            // Only devices have a number there; others may have anything.
            if !(posix || gnu) || !matches!(kind, b'3' | b'4') {
                return Ok(0);
            }
            u32::try_from(unsigned(field(from, 8), what)?).map_err(|_| FormatProblem::Number(what))
        };
        // Types that have no body say nothing with their size.
        let size = if matches!(kind, b'1'..=b'6') {
            0
        } else {
            unsigned(field(124, 12), "size")?
        };
        Ok(Some(Self {
            link: text(field(157, 100)).to_vec(),
            // Some writers put the file type's bits there, too.
            mode: u16::try_from(number(field(100, 8), "mode")? & 0o7777).unwrap_or(0),
            uid: signed(field(108, 8), "uid")?,
            gid: signed(field(116, 8), "gid")?,
            size,
            mtime: signed(field(136, 12), "mtime")?,
            major: device(329, "devmajor")?,
            minor: device(337, "devminor")?,
            name,
            kind,
        }))
    }
}

/// The sum of all bytes, its own field taken as blanks; old writers summed signed bytes.
fn check_sum(block: &[u8; 512]) -> Result<(), FormatProblem> {
    let stored = block.get(148..156).and_then(|f| unsigned(f, "chksum").ok());
    let stored = stored.ok_or(FormatProblem::Checksum)?;
    let bytes = || {
        let outside = |i: &usize| !(148..156).contains(i);
        block
            .iter()
            .enumerate()
            .map(move |(i, b)| if outside(&i) { *b } else { b' ' })
    };
    let plain: u64 = bytes().map(u64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    if stored == plain || i64::try_from(stored) == Ok(signed) {
        Ok(())
    } else {
        Err(FormatProblem::Checksum)
    }
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number that must not be negative.
pub(super) fn unsigned(field: &[u8], what: &'static str) -> Result<u64, FormatProblem> {
    u64::try_from(number(field, what)?).map_err(|_| FormatProblem::Number(what))
}

fn signed(field: &[u8], what: &'static str) -> Result<i64, FormatProblem> {
    i64::try_from(number(field, what)?).map_err(|_| FormatProblem::Number(what))
}

/// Octal text with blanks and NULs around it, or GNU's base 256: the top bit of the first byte
/// set, the rest a big-endian two's complement number. An empty field is 0.
fn number(field: &[u8], what: &'static str) -> Result<i128, FormatProblem> {
    let bad = FormatProblem::Number(what);
    let Some((&first, rest)) = field.split_first() else {
        return Ok(0);
    };
    if first & 0x80 != 0 {
        // The second bit is the sign; 12 bytes fit 128 bits.
        let top = i128::from(first & 0x3f) - i128::from(first & 0x40);
        return Ok(rest.iter().fold(top, |n, b| (n << 8) | i128::from(*b)));
    }
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let digits = field
        .iter()
        .skip_while(|b| blank(b))
        .take_while(|b| !blank(b));
    let mut n: i128 = 0;
    for b in digits {
        if !(b'0'..=b'7').contains(b) {
            return Err(bad);
        }
        n = n * 8 + i128::from(b - b'0');
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let ok: &[(&[u8], i128)] = &[
            (b"", 0),
            (b"\0\0\0", 0),
            (b"    ", 0),
            (b"0000644\0", 0o644),
            (b"  644 \0", 0o644),
            (b"77777777777 ", 0o77_777_777_777),
            (b"777777777777", 0o777_777_777_777),
            (&[0x80, 0, 0, 0, 0, 0, 0, 1], 1),
            (&[0xff; 12], -1),
            (
                &[
                    0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ],
                i64::MAX as i128,
            ),
        ];
        for (field, n) in ok {
            assert_eq!(number(field, "x"), Ok(*n), "{field:?}");
        }
        for field in [&b"8"[..], b"12x", b"-1", b"0x1"] {
            assert_eq!(number(field, "x"), Err(FormatProblem::Number("x")));
        }
        let huge = [
            0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        assert!(unsigned(&huge, "x").is_err());
        assert!(unsigned(&[0xff; 8], "x").is_err());
        assert_eq!(signed(&[0xff; 8], "x"), Ok(-1));
    }

    #[test]
    fn zeros_and_noise() {
        assert_eq!(Header::parse(&[0; 512]), Ok(None));
        assert_eq!(Header::parse(&[b'x'; 512]), Err(FormatProblem::Checksum));
    }
}
