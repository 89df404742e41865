//! Protobuf messages inside records: serde cannot see into prost's types, so they are kept as
//! their wire bytes in base64.

/// For `#[serde(with = "crate::records::proto")]` on a field that is a prost message.
pub mod proto {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Writes the message.
    pub fn serialize<M: Message, S: Serializer>(message: &M, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    /// Reads the message.
    pub fn deserialize<'de, M, D>(from: D) -> Result<M, D::Error>
    where
        M: Message + Default,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}
