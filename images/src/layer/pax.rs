//! PAX extended headers (POSIX.1-2001): records `LENGTH KEY=VALUE\n`, as a pure function.
//!
//! Known keys are kept, others are passed over, as every reader of tar does.

use super::error::FormatProblem;

/// What the extended headers of one entry say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<(i64, u32)>,
    /// Full names and values, in the order of the records.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// The keys `GNU.sparse.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// Size with holes: `realsize` (1.0) or `size` (0.x).
    pub size: Option<u64>,
    /// Offsets and lengths of the data (0.x).
    pub map: Option<Vec<u64>>,
}

impl Pax {
    /// Reads the body of one extended header.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, FormatProblem> {
        let mut pax = Self::default();
        while !body.is_empty() {
            let (key, value, rest) = record(body).map_err(FormatProblem::Pax)?;
            pax.set(key, value)?;
            body = rest;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), FormatProblem> {
        // An empty value takes back what was said before.
        let some = || (!value.is_empty()).then(|| value.to_vec());
        let int = |what| -> Result<Option<u64>, FormatProblem> {
            if value.is_empty() {
                return Ok(None);
            }
            decimal(value).map(Some).ok_or(FormatProblem::Number(what))
        };
        let id = |what| -> Result<Option<i64>, FormatProblem> {
            if value.is_empty() {
                return Ok(None);
            }
            let (sign, digits) = match value.strip_prefix(b"-") {
                Some(digits) => (-1, digits),
                None => (1, value),
            };
            decimal(digits)
                .and_then(|n| i64::try_from(n).ok())
                .map(|n| Some(sign * n))
                .ok_or(FormatProblem::Number(what))
        };
        match key {
            b"path" => self.path = some(),
            b"linkpath" => self.link = some(),
            b"size" => self.size = int("size")?,
            b"uid" => self.uid = id("uid")?,
            b"gid" => self.gid = id("gid")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or(FormatProblem::Number("mtime"))?),
            b"GNU.sparse.major" => self.sparse.major = int("GNU.sparse.major")?,
            b"GNU.sparse.minor" => self.sparse.minor = int("GNU.sparse.minor")?,
            b"GNU.sparse.name" => self.sparse.name = some(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.size = int("GNU.sparse.size")?;
            }
            b"GNU.sparse.map" => {
                let map = if value.is_empty() {
                    Some(Vec::new())
                } else {
                    value.split(|b| *b == b',').map(decimal).collect()
                };
                self.sparse.map = Some(map.ok_or(FormatProblem::Number("GNU.sparse.map"))?);
            }
            // Format 0.0: one record per number, in turns.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = self.sparse.map.get_or_insert_default();
                if map.len().is_multiple_of(2) != (key == b"GNU.sparse.offset") {
                    return Err(FormatProblem::Sparse(
                        "offset and numbytes do not take turns",
                    ));
                }
                let n = decimal(value).ok_or(FormatProblem::Number("GNU.sparse.offset"))?;
                map.push(n);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent(name).ok_or(FormatProblem::Pax("a bad attribute name"))?;
                    let value = base64(value).ok_or(FormatProblem::Pax("a bad base64 value"))?;
                    self.xattrs.push((name, value));
                }
            }
        }
        Ok(())
    }
}

/// Key, value, and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record.
fn record(body: &[u8]) -> Result<Record<'_>, &'static str> {
    let blank = body
        .iter()
        .take(20)
        .position(|b| *b == b' ')
        .ok_or("no length")?;
    let (digits, _) = body.split_at(blank);
    let len = decimal(digits)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or("no length")?;
    if len <= blank + 1 {
        return Err("a length that is too short");
    }
    let (record, rest) = body
        .split_at_checked(len)
        .ok_or("a length beyond the header")?;
    let record = record
        .strip_suffix(b"\n")
        .ok_or("no line feed at the end")?;
    let record = record
        .get(blank + 1..)
        .ok_or("a length that is too short")?;
    let equals = record
        .iter()
        .position(|b| *b == b'=')
        .ok_or("no equals sign")?;
    if equals == 0 {
        return Err("an empty key");
    }
    let (key, value) = record.split_at(equals);
    Ok((key, value.get(1..).unwrap_or_default(), rest))
}

/// A decimal number of digits only.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// Seconds with an optional sign and fraction; digits behind the nanoseconds are cut.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0_u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let digits = fraction
            .iter()
            .copied()
            .chain(std::iter::repeat(b'0'))
            .take(9);
        nanos = digits.fold(0, |n, b| n * 10 + u32::from(b - b'0'));
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// Percent-encoding, as libarchive writes names.
fn percent(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(b) = bytes.next() {
        if *b == b'%' {
            let mut digit = || char::from(*bytes.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            out.push(u8::try_from(value).ok()?);
        } else {
            out.push(*b);
        }
    }
    Some(out)
}

/// Base 64 (RFC 4648), with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config)
        .decode(text)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(records: &[(&str, &[u8])]) -> Vec<u8> {
        let one = |(key, value): &(&str, &[u8])| {
            let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let digits = (1..)
                .find(|d| (rest.len() + d).to_string().len() == *d)
                .unwrap();
            [(rest.len() + digits).to_string().as_bytes(), &rest].concat()
        };
        records.iter().flat_map(one).collect()
    }

    #[test]
    fn records() {
        let list: &[(&str, &[u8])] = &[
            ("path", b"a/b"),
            ("linkpath", b"x y = z"),
            ("mtime", b"1.25"),
            ("other", b"1\n2"),
        ];
        let pax = Pax::parse(&body(list)).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.link.as_deref(), Some(&b"x y = z"[..]));
        assert_eq!(pax.mtime, Some((1, 250_000_000)));
        let list: &[(&str, &[u8])] = &[
            ("path", b"a"),
            ("size", b"1"),
            ("mtime", b"1"),
            ("path", b""),
            ("size", b""),
            ("mtime", b""),
        ];
        assert_eq!(Pax::parse(&body(list)), Ok(Pax::default()));
    }

    #[test]
    fn malformed_records() {
        let raw: &[&[u8]] = &[
            b"x",
            b" ",
            b"\n",
            b"0 ",
            b"1 ",
            b"2 ",
            b"3 \n",
            b"5 a=",
            b"8 path=a\n",
            b"11 path=a\n",
            b"99 path=a\n",
            b"-1 path=a\n",
            b"4294967295 a=b\n",
            b"18446744073709551616 a=b\n",
            b"6 a=bc",
            b"5 =b\n",
            b"7 path\n",
            b"9 path=a\n ",
        ];
        for raw in raw {
            assert!(
                matches!(Pax::parse(raw), Err(FormatProblem::Pax(_))),
                "{}",
                raw.escape_ascii()
            );
        }
        assert!(Pax::parse(b"9 path=a\n").is_ok());
        let values: &[(&str, &[u8])] = &[
            ("size", b"x"),
            ("size", b"-1"),
            ("size", b"18446744073709551616"),
            ("uid", b" 1"),
            ("mtime", b"1.x"),
            ("mtime", b"-"),
            ("GNU.sparse.map", b"1,x"),
            ("GNU.sparse.map", b"1,"),
            ("GNU.sparse.numbytes", b"1"),
            ("LIBARCHIVE.xattr.a", b"***"),
            ("LIBARCHIVE.xattr.%z", b"YQ=="),
        ];
        for value in values {
            assert!(Pax::parse(&body(&[*value])).is_err(), "{value:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"0"), Some((0, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"1."), Some((1, 0)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"99999999999999999999"), None);
    }

    #[test]
    fn attributes_of_both_kinds() {
        let schily = body(&[("SCHILY.xattr.user.a", b"b=\n")]);
        assert_eq!(
            Pax::parse(&schily).unwrap().xattrs,
            [(b"user.a".to_vec(), b"b=\n".to_vec())]
        );
        let archive = body(&[("LIBARCHIVE.xattr.user.%61", b"AAECAw")]);
        let expected = [(b"user.a".to_vec(), vec![0, 1, 2, 3])];
        assert_eq!(Pax::parse(&archive).unwrap().xattrs, expected);
    }
}
