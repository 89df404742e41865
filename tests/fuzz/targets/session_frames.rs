//! What a guest's agent says in a session, in pieces of any size.
#![no_main]

use bulkhead_runtime::agent::{Event, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u8, &[u8])| {
    let (size, bytes) = data;
    let mut parser = Parser::default();
    let (mut given, mut told) = (0, 0);
    for piece in bytes.chunks(usize::from(size).max(1)) {
        parser.input().extend_from_slice(piece);
        given += piece.len();
        loop {
            match parser.event() {
                Ok(Some(Event::Data(place, data))) => {
                    assert_eq!(place.length, data.len());
                    told += data.len();
                    assert!(told <= given, "more came out than went in");
                }
                Ok(Some(Event::Exit(_))) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
