//! Messages of the channel protocols: a channel's number and bytes, plain or as base64. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// In the fifth protocol: the next byte is a channel that is closed.
const CLOSE: u8 = 255;

/// How channels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codec {
    /// Text messages: a digit, then base64.
    base64: bool,
    /// The fifth protocol.
    closes: bool,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelMessage {
    /// Bytes of a channel.
    Data(u8, Bytes),
    /// A channel that is closed.
    Closed(u8),
    /// Nothing of this protocol: passed over.
    Nothing,
}

/// A message that is none of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message that is not of the channel protocol that was agreed on")]
pub struct BadMessage;

impl Codec {
    /// Of a protocol's name.
    #[must_use]
    pub fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.contains("base64."),
            closes: protocol.starts_with("v5."),
        }
    }

    /// Reads a data message.
    ///
    /// # Errors
    /// It is not of this protocol.
    pub fn read(self, message: &Message) -> Result<ChannelMessage, BadMessage> {
        let bytes = match message {
            Message::Binary(bytes) if !self.base64 => bytes.clone(),
            // Browsers of the plain protocol may send text.
            Message::Text(text) => Bytes::from(text.clone()),
            Message::Binary(bytes) => bytes.clone(),
            _ => return Ok(ChannelMessage::Nothing),
        };
        let Some((first, rest)) = bytes.split_first() else {
            return Ok(ChannelMessage::Nothing);
        };
        if self.closes && *first == CLOSE {
            return match rest {
                [channel] => Ok(ChannelMessage::Closed(*channel)),
                _ => Err(BadMessage),
            };
        }
        if self.base64 {
            let channel = first.checked_sub(b'0').filter(|channel| *channel < 10);
            let data = STANDARD.decode(rest).map_err(|_| BadMessage)?;
            return Ok(ChannelMessage::Data(
                channel.ok_or(BadMessage)?,
                data.into(),
            ));
        }
        Ok(ChannelMessage::Data(*first, bytes.slice(1..)))
    }

    /// Writes a data message.
    #[must_use]
    pub fn write(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0'.saturating_add(channel)));
            STANDARD.encode_string(data, &mut text);
            return Message::Text(Utf8Bytes::from(text));
        }
        let mut bytes = BytesMut::with_capacity(1 + data.len());
        bytes.put_u8(channel);
        bytes.put_slice(data);
        Message::Binary(bytes.freeze())
    }

    /// Says that a channel is closed, where the protocol has a word for it.
    #[must_use]
    pub fn close(self, channel: u8) -> Option<Message> {
        self.closes
            .then(|| Message::Binary(Bytes::copy_from_slice(&[CLOSE, channel])))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn closing_is_known_in_the_fifth_protocol_only() {
        let close = Message::Binary(Bytes::from_static(&[255, 0]));
        let v5 = Codec::of("v5.channel.k8s.io");
        assert_eq!(v5.read(&close), Ok(ChannelMessage::Closed(0)));
        let bad = Message::Binary(Bytes::from_static(&[255, 0, 1]));
        assert_eq!(v5.read(&bad), Err(BadMessage));
        let v4 = Codec::of("v4.channel.k8s.io");
        assert_eq!(
            v4.read(&close),
            Ok(ChannelMessage::Data(255, Bytes::from_static(&[0])))
        );
        assert_eq!(v4.close(1), None);
        assert!(v5.close(1).is_some());
    }

    #[test]
    fn base64_is_text_with_a_digit() {
        let codec = Codec::of("v4.base64.channel.k8s.io");
        assert_eq!(codec.write(1, b"hi"), Message::Text("1aGk=".into()));
        for bad in ["x", "0?", "/aGk="] {
            assert_eq!(
                codec.read(&Message::Text(bad.into())),
                Err(BadMessage),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn messages_read_back(channel in 0u8..10, data in prop::collection::vec(any::<u8>(), 0..300)) {
            for name in ["", "channel.k8s.io", "base64.channel.k8s.io", "v5.channel.k8s.io"] {
                let codec = Codec::of(name);
                let message = codec.write(channel, &data);
                prop_assert_eq!(codec.read(&message), Ok(ChannelMessage::Data(channel, data.clone().into())));
            }
        }

        #[test]
        fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), name in 0usize..3) {
            let names = ["", "base64.channel.k8s.io", "v5.channel.k8s.io"];
            let codec = Codec::of(names[name]);
            let _ = codec.read(&Message::Binary(bytes.into()));
        }
    }
}
