//! The URLs that the server serves.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::OnceLock,
};

use crate::{error::ServerError, target::Target, tokens::Tokens};

/// Gives out URLs and knows what each stands for. Shared with the server that serves them.
#[derive(Debug, Default)]
pub struct Urls {
    pub(crate) tokens: Tokens,
    base: OnceLock<String>,
}

impl Urls {
    /// A URL for a target, good for one use within a minute.
    ///
    /// # Errors
    /// No server listens yet, or too many URLs wait to be used.
    pub fn url(&self, target: Target) -> Result<String, ServerError> {
        let base = self.base.get().ok_or(ServerError::NotListening)?;
        let path = target.path();
        let token = self.tokens.give(target)?;
        Ok(format!("{base}/{path}/{token}"))
    }

    /// Says where the server listens. Only the first call counts.
    pub(crate) fn listens(&self, scheme: &str, address: SocketAddr) {
        let mut reachable = address;
        if address.ip().is_unspecified() {
            // The kubelet is on this node.
            reachable.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let _known = self.base.set(format!("{scheme}://{reachable}"));
    }
}
