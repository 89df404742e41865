//! SPDY of a streaming client: no bytes make the parser or the header blocks fail otherwise than by an
//! error, and nothing grows beyond its bound.
#![no_main]

use bulkhead_streaming::spdy::{
    frame::{Event, Parser},
    headers::{MAX_UNPACKED, Unpacker},
};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let mut parser = Parser::default();
    let mut unpacker = Unpacker::default();
    let mut waiting = BytesMut::new();
    let mut data = 0;
    for piece in bytes.chunks(usize::from(size).max(1)) {
        waiting.extend_from_slice(piece);
        loop {
            match parser.next(&mut waiting) {
                Ok(Some(Event::SynStream { headers, .. } | Event::Headers { headers, .. })) => {
                    let Ok(headers) = unpacker.unpack(&headers) else {
                        return;
                    };
                    let length: usize = headers.0.iter().map(|(n, v)| n.len() + v.len()).sum();
                    assert!(length <= MAX_UNPACKED);
                }
                Ok(Some(Event::Data { data: piece, .. })) => data += piece.len(),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    assert!(data <= bytes.len());
});
