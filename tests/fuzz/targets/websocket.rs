//! Messages of a WebSocket client: each is read or refused, and what is read is what the same protocol
//! writes.
#![no_main]

use bulkhead_streaming::websocket::codec::{ChannelMessage, Codec};
use libfuzzer_sys::fuzz_target;
use tokio_tungstenite::tungstenite::Message;

const PROTOCOLS: [&str; 4] = [
    "v4.channel.k8s.io",
    "v5.channel.k8s.io",
    "base64.channel.k8s.io",
    "v4.base64.channel.k8s.io",
];

fuzz_target!(|input: (u8, &[u8])| {
    let (choice, bytes) = input;
    let codec = Codec::of(PROTOCOLS[usize::from(choice) % PROTOCOLS.len()]);
    let mut messages = vec![Message::Binary(bytes.to_vec().into())];
    if let Ok(text) = std::str::from_utf8(bytes) {
        messages.push(Message::Text(text.into()));
    }
    for message in messages {
        match codec.read(&message) {
            Ok(ChannelMessage::Data(channel, data)) => {
                assert!(data.len() < bytes.len());
                let again = codec.read(&codec.write(channel, &data));
                assert_eq!(again, Ok(ChannelMessage::Data(channel, data)));
            }
            Ok(ChannelMessage::Closed(channel)) => {
                let close = codec
                    .close(channel)
                    .expect("a protocol that closes channels");
                assert_eq!(codec.read(&close), Ok(ChannelMessage::Closed(channel)));
            }
            Ok(ChannelMessage::Nothing) => assert!(bytes.is_empty()),
            Err(_) => {}
        }
    }
});
