//! As much of X.509 as is needed beside rustls: where a certificate of any version has its issuer
//! and its public key. What they mean is not looked at; what is read is hostile.

const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;
/// `version [0] EXPLICIT`, which version 1 leaves out (RFC 5280 §4.1).
const VERSION: u8 = 0xa0;

/// Parts of a certificate, each with its own tag and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub(super) issuer: &'a [u8],
    pub(super) public_key: &'a [u8],
}

/// Finds them; `None` if this is no certificate.
pub(super) fn parts(certificate: &[u8]) -> Option<Parts<'_>> {
    let mut rest = certificate;
    let mut outer = take(&mut rest, SEQUENCE)?.1;
    let mut fields = take(&mut outer, SEQUENCE)?.1;
    if fields.first() == Some(&VERSION) {
        take(&mut fields, VERSION)?;
    }
    let _serial = take(&mut fields, INTEGER)?;
    let _signature = take(&mut fields, SEQUENCE)?;
    let (issuer, _) = take(&mut fields, SEQUENCE)?;
    let _validity = take(&mut fields, SEQUENCE)?;
    let _subject = take(&mut fields, SEQUENCE)?;
    let (public_key, _) = take(&mut fields, SEQUENCE)?;
    Some(Parts { issuer, public_key })
}

/// Takes one value off: the whole of it, and its content.
fn take<'a>(from: &mut &'a [u8], tag: u8) -> Option<(&'a [u8], &'a [u8])> {
    let [found, first, ..] = **from else {
        return None;
    };
    if found != tag {
        return None;
    }
    let (header, length) = if first < 0x80 {
        (2, usize::from(first))
    } else {
        // DER: the fewest bytes; more than four are no certificate.
        let count = usize::from(first & 0x7f);
        if !(1..=4).contains(&count) {
            return None;
        }
        let bytes = from.get(2..2 + count)?;
        let length = bytes.iter().fold(0, |n, b| (n << 8) | usize::from(*b));
        (2 + count, length)
    };
    let end = header.checked_add(length)?;
    let (value, rest) = from.split_at_checked(end)?;
    *from = rest;
    Some((value, value.get(header..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let integer = [INTEGER, 1, 5];
        let sequence = |content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[SEQUENCE, length], content].concat()
        };
        let name = |n: u8| sequence(&[INTEGER, 1, n]);
        let body = [
            integer.to_vec(),
            name(1),
            name(2),
            name(3),
            name(4),
            name(5),
        ]
        .concat();
        let version = [VERSION, 3, INTEGER, 1, 2].to_vec();
        for fields in [body.clone(), [version, body].concat()] {
            let certificate = sequence(&sequence(&fields));
            let parts = parts(&certificate).unwrap();
            assert_eq!(parts.issuer, name(2));
            assert_eq!(parts.public_key, name(5));
            for cut in 0..certificate.len() {
                assert_eq!(super::parts(&certificate[..cut]), None, "{cut}");
            }
        }
        assert_eq!(parts(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(parts(&[SEQUENCE, 0x80]), None);
    }

    proptest::proptest! {
        #[test]
        fn reading_is_total(bytes in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::strategy::Just(SEQUENCE), proptest::strategy::Just(INTEGER), 0_u8..
            ],
            0..200,
        )) {
            let _ = parts(&bytes);
        }
    }
}
