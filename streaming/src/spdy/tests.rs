//! Frames and header blocks: they read back, in whatever pieces they come; anything else is refused
//! in bounded memory.

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::{
    frame::{self, Event, FrameError, MAX_CONTROL, Parser, Reset},
    headers::{HeaderError, Headers, MAX_UNPACKED, Packer, Unpacker, parse},
};

/// What bytes say, if they come in pieces of these sizes.
fn read(bytes: &[u8], pieces: &[usize]) -> Result<Vec<Event>, FrameError> {
    let mut parser = Parser::default();
    let (mut input, mut events) = (BytesMut::new(), Vec::new());
    let mut sizes = pieces.iter().cycle();
    let mut rest = bytes;
    loop {
        while let Some(event) = parser.next(&mut input)? {
            events.push(event);
        }
        if rest.is_empty() {
            return Ok(events);
        }
        let size = (*sizes.next().unwrap_or(&rest.len())).clamp(1, rest.len());
        input.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
    }
}

/// Joins a stream's data, which may come in any pieces.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    for event in events {
        if let (
            Event::Data { id, data, fin },
            Some(Event::Data {
                id: last,
                data: before,
                fin: ended,
            }),
        ) = (&event, all.last_mut())
            && id == last
            && !*ended
        {
            *before = [&before[..], &data[..]].concat().into();
            *ended = *fin;
            continue;
        }
        all.push(event);
    }
    all
}

#[test]
fn a_frame_of_a_real_client_reads() {
    // moby/spdystream's first SYN_STREAM of a `kubectl exec`: type 1, stream 1, length 10 + block.
    let mut block = vec![0x78, 0xf9];
    block.extend_from_slice(&0xe3c6_a7c2_u32.to_be_bytes());
    let mut plain = Compress::new(Compression::fast(), true);
    plain.set_dictionary(&super::dictionary::bytes()).unwrap();
    let mut packed = Vec::with_capacity(256);
    let text = b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error";
    plain
        .compress_vec(text, &mut packed, FlushCompress::Sync)
        .unwrap();
    // The dictionary's name is what a decompressor finds it by.
    assert_eq!(packed[2..6], block[2..6]);
    let bytes = frame::syn_stream(1, false, &packed);
    assert_eq!(bytes[..5], [0x80, 3, 0, 1, 0]);
    let events = read(&bytes, &[]).unwrap();
    let Event::SynStream {
        id, fin, headers, ..
    } = &events[0]
    else {
        panic!("{events:?}");
    };
    assert_eq!((*id, *fin), (1, false));
    let headers = Unpacker::default().unpack(headers).unwrap();
    assert_eq!(headers.get("StreamType"), Some("error"));
}

#[test]
fn what_is_no_spdy_is_refused() {
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Its first bit makes it a data frame of a huge stream number: no error yet, and no memory.
    assert!(read(http2, &[]).is_ok());
    let version_2 = [0x80, 2, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(read(&version_2, &[]), Err(FrameError::Version(2)));
    let long = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
    assert_eq!(read(&long, &[]), Err(FrameError::TooLong(0x00ff_ffff)));
    let zero = [0, 0, 0, 0, 0, 0, 0, 1, 7];
    assert_eq!(read(&zero, &[]), Err(FrameError::StreamZero));
    for (kind, length) in [
        (1, 9),
        (2, 3),
        (3, 7),
        (3, 9),
        (6, 5),
        (7, 4),
        (9, 0),
        (4, 0),
    ] {
        let mut bytes = vec![0x80, 3, 0, kind, 0, 0, 0, length];
        bytes.extend(vec![1; usize::from(length)]);
        let wrong = FrameError::Length {
            kind: kind.into(),
            length: length.into(),
        };
        assert_eq!(read(&bytes, &[]), Err(wrong), "{kind}");
    }
    let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0x20, 0, 0, 0];
    assert!(matches!(
        read(&settings, &[]),
        Err(FrameError::Length { .. })
    ));
    // An unknown type is passed over.
    assert_eq!(
        read(&[0x80, 3, 0, 99, 0, 0, 0, 1, 5], &[]),
        Ok(vec![Event::Ignored])
    );
}

#[test]
fn a_header_bomb_ends_the_connection() {
    // Nothing but zeros packs a thousandfold: a frame's worth of it.
    let mut context = Compress::new(Compression::best(), true);
    context.set_dictionary(&super::dictionary::bytes()).unwrap();
    let mut packed = Vec::with_capacity(1 << 20);
    context
        .compress_vec(&vec![0; 32 << 20], &mut packed, FlushCompress::Sync)
        .unwrap();
    assert!(packed.len() > MAX_CONTROL);
    let bomb = &packed[..MAX_CONTROL];
    assert_eq!(Unpacker::default().unpack(bomb), Err(HeaderError::TooLarge));
}

#[test]
fn blocks_that_do_not_unpack_or_read_are_refused() {
    for rubbish in [&b"\x78\x9c\xff\xff\xff"[..], b"GET / HTTP/1.1", b"\0\0\0\0"] {
        let refused = Unpacker::default().unpack(rubbish);
        assert_eq!(refused, Err(HeaderError::Compression), "{rubbish:?}");
    }
    // Another dictionary.
    let mut other = Compress::new(Compression::fast(), true);
    other.set_dictionary(b"something else").unwrap();
    let mut packed = Vec::with_capacity(64);
    other
        .compress_vec(b"\0\0\0\0", &mut packed, FlushCompress::Sync)
        .unwrap();
    assert_eq!(
        Unpacker::default().unpack(&packed),
        Err(HeaderError::Compression)
    );
    for bad in [
        &b""[..],
        b"\0\0\0\x01",
        b"\0\0\0\x01\0\0\0\x05name",
        b"\0\0\0\x01\xff\xff\xff\xffname",
        b"\0\0\0\x01\0\0\0\0\0\0\0\0",
        b"\0\0\0\x41",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0more",
        b"\0\0\0\x01\0\0\0\x01\xff\0\0\0\0",
    ] {
        assert_eq!(parse(bad), Err(HeaderError::Malformed), "{bad:?}");
    }
}

fn header_list() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,60}"), 0..12)
}

proptest! {
    // Every block of a connection reads back, though each depends on those before it.
    #[test]
    fn headers_read_back(blocks in prop::collection::vec(header_list(), 1..6)) {
        let mut packer = Packer::new().unwrap();
        let mut unpacker = Unpacker::default();
        for block in blocks {
            let pairs: Vec<_> = block.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let packed = packer.pack(&pairs).unwrap();
            prop_assert_eq!(unpacker.unpack(&packed).unwrap(), Headers(block));
        }
    }

    #[test]
    fn frames_read_back_in_any_pieces(
        data in prop::collection::vec((1u32..1000, prop::collection::vec(any::<u8>(), 0..20_000), any::<bool>()), 0..4),
        pieces in prop::collection::vec(1usize..9000, 1..8),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (id, content, fin) in data {
            bytes.extend_from_slice(&frame::data_header(id, fin, content.len()));
            bytes.extend_from_slice(&content);
            expected.push(Event::Data { id, data: content.into(), fin });
            bytes.extend_from_slice(&frame::ping(id));
            expected.push(Event::Ping { id });
            bytes.extend_from_slice(&frame::rst_stream(id, Reset::Cancel));
            expected.push(Event::Rst { id, status: 5 });
            bytes.extend_from_slice(&frame::syn_reply(id, b"block"));
            expected.push(Event::SynReply { id, fin: false, headers: Bytes::from_static(b"block") });
        }
        bytes.extend_from_slice(&frame::go_away(7, 0));
        expected.push(Event::GoAway);
        prop_assert_eq!(joined(read(&bytes, &pieces).unwrap()), expected);
    }

    #[test]
    fn no_bytes_panic_or_grow(bytes in prop::collection::vec(any::<u8>(), 0..2000), spdy in any::<bool>()) {
        let mut bytes = bytes;
        if spdy && bytes.len() > 8 {
            bytes[..3].copy_from_slice(&[0x80, 3, 0]);
            bytes[5] = 0;
        }
        if let Ok(events) = read(&bytes, &[7, 100]) {
            let mut unpacker = Unpacker::default();
            for event in events {
                if let Event::SynStream { headers, .. } = event {
                    let _ = unpacker.unpack(&headers);
                }
            }
        }
        let _ = parse(&bytes);
    }

    #[test]
    fn no_unpacked_block_exceeds_its_bound(
        byte in any::<u8>(), length in 0usize..(4 * MAX_UNPACKED)
    ) {
        let mut context = Compress::new(Compression::fast(), true);
        context.set_dictionary(&super::dictionary::bytes()).unwrap();
        let mut packed = Vec::with_capacity(1 << 20);
        context.compress_vec(&vec![byte; length], &mut packed, FlushCompress::Sync).unwrap();
        let result = Unpacker::default().unpack(&packed);
        if length > MAX_UNPACKED {
            prop_assert_eq!(result, Err(HeaderError::TooLarge));
        }
    }
}
