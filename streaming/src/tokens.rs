//! Tokens: what a URL stands for, until it is used or a minute has gone by.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bulkhead_common::lock;
use tokio::time::Instant;

use crate::{error::ServerError, target::Target};

/// How long a URL can be used.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// How many may wait to be used.
pub const LIMIT: usize = 1000;
/// Sixteen characters: with a thousand of them valid for a minute, not to be found by trying.
const RANDOM_BYTES: usize = 12;

/// The tokens that have been given out.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<String, (Target, Instant)>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Target, Instant)>> {
        lock(&self.0)
    }

    /// A token for a target.
    pub fn give(&self, target: Target) -> Result<String, ServerError> {
        self.give_at(target, Instant::now())
    }

    fn give_at(&self, target: Target, now: Instant) -> Result<String, ServerError> {
        let token = random()?;
        let mut tokens = self.lock();
        if tokens.len() >= LIMIT {
            tokens.retain(|_, (_, until)| *until > now);
        }
        if tokens.len() >= LIMIT {
            return Err(ServerError::Full { limit: LIMIT });
        }
        tokens.insert(token.clone(), (target, now + LIFETIME));
        Ok(token)
    }

    /// Whether a token can be used for this path now.
    pub fn is_good(&self, path: &str, token: &str) -> bool {
        self.lock()
            .get(token)
            .is_some_and(|(target, until)| target.path() == path && *until > Instant::now())
    }

    /// Uses a token up.
    pub fn take(&self, path: &str, token: &str) -> Option<Target> {
        self.take_at(path, token, Instant::now())
    }

    fn take_at(&self, path: &str, token: &str, now: Instant) -> Option<Target> {
        let mut tokens = self.lock();
        let (target, until) = tokens.remove(token)?;
        (target.path() == path && until > now).then_some(target)
    }
}

fn random() -> Result<String, ServerError> {
    let bytes = bulkhead_common::random::<RANDOM_BYTES>();
    let bytes = bytes.map_err(|source| ServerError::Random { source })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::PortForward;

    fn target() -> Target {
        Target::PortForward(PortForward {
            pod: "pod".into(),
            ports: vec![],
        })
    }

    #[test]
    fn a_token_is_good_once_for_its_path_and_a_minute() {
        let tokens = Tokens::default();
        let token = tokens.give(target()).unwrap();
        assert!(token.len() >= 8, "{token}");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(token.chars().all(plain), "{token}");
        assert!(tokens.is_good("portforward", &token));
        assert!(!tokens.is_good("exec", &token));
        assert!(!tokens.is_good("portforward", "forged00"));
        assert_eq!(tokens.take("portforward", &token), Some(target()));
        assert_eq!(tokens.take("portforward", &token), None);
        let long_ago = Instant::now() - LIFETIME;
        let late = tokens.give_at(target(), long_ago).unwrap();
        assert!(!tokens.is_good("portforward", &late));
        assert_eq!(tokens.take("portforward", &late), None);
    }

    #[test]
    fn a_thousand_wait_and_no_more() {
        let tokens = Tokens::default();
        let now = Instant::now();
        for _ in 0..LIMIT {
            tokens.give_at(target(), now).unwrap();
        }
        let full = tokens.give_at(target(), now).unwrap_err();
        assert!(matches!(full, ServerError::Full { .. }));
        tokens.give_at(target(), now + LIFETIME).unwrap();
    }
}
