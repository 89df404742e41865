//! What a pod's agent says first on each connection to a socket of the node, so that nothing else in
//! the guest can use the way there (`bridge`).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes of a token.
pub const LENGTH: usize = 32;

/// Random, of one socket of one pod; in no message.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; LENGTH]);

impl Token {
    /// A new one.
    pub fn new() -> std::io::Result<Self> {
        bulkhead_common::random().map(Self)
    }

    /// For the agent.
    pub fn bytes(&self) -> [u8; LENGTH] {
        self.0
    }

    /// Whether what somebody said is the token. Takes as long for every wrong one.
    pub fn is(&self, said: &[u8; LENGTH]) -> bool {
        let pairs = self.0.iter().zip(said);
        // Each step is hidden from the optimizer, which could end early otherwise.
        let differing = pairs.fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        differing == 0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut bytes = [0; LENGTH];
        let text = String::deserialize(from)?;
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| D::Error::custom("not a token"))?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_itself_alone_and_survives_the_record() {
        let token = Token::new().unwrap();
        assert!(token.is(&token.bytes()));
        assert!(!Token::new().unwrap().is(&token.bytes()));
        for bit in 0..LENGTH * 8 {
            let mut said = token.bytes();
            said[bit / 8] ^= 1 << (bit % 8);
            assert!(!token.is(&said), "bit {bit}");
        }
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token);
        assert!(serde_json::from_str::<Token>("\"00\"").is_err());
        // Nor does an error or a log line show one.
        let shown = format!("{token:?}");
        assert!(!shown.contains(&text[1..9]), "{shown}");
    }
}
