//! Messages of a guest, whole, cut off and wrong.

use proptest::prelude::*;

use super::*;

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(IN_HEADER + body.len()).unwrap();
    let mut out = len.to_le_bytes().to_vec();
    out.extend_from_slice(&opcode.to_le_bytes());
    out.resize(IN_HEADER, 0);
    out.extend_from_slice(body);
    out
}

fn names<'a>(request: &Request<'a>) -> Vec<&'a CStr> {
    match *request {
        Request::Lookup { name }
        | Request::Symlink { name, .. }
        | Request::Mknod { name, .. }
        | Request::Mkdir { name, .. }
        | Request::Unlink { name }
        | Request::Rmdir { name }
        | Request::Link { name, .. }
        | Request::Create { name, .. } => vec![name],
        Request::Rename { name, to_name, .. } => vec![name, to_name],
        _ => vec![],
    }
}

proptest! {
    #[test]
    fn whatever_is_said_names_one_entry_or_is_refused(
        opcode in 0u32..60,
        numbers in proptest::collection::vec(any::<u8>(), 0..40),
        text in proptest::collection::vec(prop_oneof![Just(0u8), Just(b'/'), Just(b'.'), any::<u8>()], 0..600),
        agreed in prop_oneof![Just(0), Just(abi::init::SETXATTR_EXT)],
    ) {
        let body = [numbers, text].concat();
        let message = message(opcode, &body);
        let header = Header::parse(&message, message.len()).unwrap();
        if let Ok(request) = Request::parse(&header, &message[IN_HEADER..], agreed) {
            for name in names(&request) {
                let bytes = name.to_bytes();
                prop_assert!((1..=255).contains(&bytes.len()));
                prop_assert!(!bytes.contains(&b'/'));
                prop_assert!(bytes != b"." && bytes != b"..");
            }
            if let Request::SetXattr { value, .. } = request {
                prop_assert!(value.len() <= body.len());
            }
            if let Request::BatchForget(forgets) = request {
                prop_assert!(forgets.count() * 16 <= body.len());
            }
        }
    }

    #[test]
    fn a_header_never_claims_more_than_there_is(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        if let Ok(header) = Header::parse(&bytes, bytes.len()) {
            prop_assert!(header.len as usize <= bytes.len());
            prop_assert!(header.len as usize >= IN_HEADER);
        }
    }
}

#[test]
fn flags_and_counts_are_checked() {
    let parse = |opcode, body: &[u8]| {
        let message = message(opcode, body);
        let header = Header::parse(&message, message.len()).unwrap();
        Request::parse(&header, &message[IN_HEADER..], 0).map(|_| ())
    };
    let rename = |flags: u32| {
        let mut body = vec![0; 8];
        body.extend_from_slice(&flags.to_le_bytes());
        body.extend_from_slice(b"\0\0\0\0a\0b\0");
        parse(op::RENAME2, &body)
    };
    assert_eq!(rename(7), Ok(()));
    assert_eq!(rename(8), Err(Errno::INVAL));
    let mut copy = vec![0; 56];
    assert_eq!(parse(op::COPY_FILE_RANGE, &copy), Ok(()));
    copy[48] = 1;
    assert_eq!(parse(op::COPY_FILE_RANGE, &copy), Err(Errno::INVAL));
    assert_eq!(parse(op::READ, &[0; 39]), Err(Errno::INVAL));
    assert_eq!(parse(op::READ, &[0; 40]), Ok(()));
    let mut forgets = vec![2, 0, 0, 0, 0, 0, 0, 0];
    forgets.resize(8 + 31, 0);
    assert_eq!(parse(op::BATCH_FORGET, &forgets), Err(Errno::INVAL));
    assert!(!wants_answer(op::FORGET) && wants_answer(op::LOOKUP));
}
