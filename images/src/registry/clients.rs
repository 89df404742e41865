//! The daemon's access to registries: HTTP clients, kept for their connections, and the beginning of
//! a pull's session.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use bulkhead_common::lock;

use super::{
    auth::Credentials,
    error::RegistryError,
    retry::RetryPolicy,
    session::{Place, Session},
    tls,
};
use crate::{
    hosts::{self, Endpoint, HostsError, Tls},
    reference::ImageName,
};

/// Clients kept for reuse of connections; configurations change rarely.
const MOST_CLIENTS: usize = 64;

/// What a client is made for: how it trusts a host, whether without TLS, and how long it may take to connect.
type ClientKey = (Tls, bool, Option<Duration>);

/// Access to registries.
#[derive(Debug)]
pub struct Registry {
    config_dir: PathBuf,
    policy: RetryPolicy,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

impl Registry {
    /// Access by the hosts' configuration in `config_dir`.
    pub fn new(config_dir: PathBuf, policy: RetryPolicy) -> Self {
        Self {
            config_dir,
            policy,
            clients: Mutex::default(),
        }
    }

    /// Begins a pull: reads the hosts' configuration; opens no connection yet.
    pub async fn session(
        self: &Arc<Self>,
        name: &ImageName,
        credentials: &Credentials,
    ) -> Result<Session, RegistryError> {
        let (registry, this) = (name.registry().to_owned(), Arc::clone(self));
        let found = tokio::task::spawn_blocking(move || {
            let found = hosts::endpoints(&this.config_dir, &registry)?;
            // Building a client parses certificates, the system's too: not for an async thread.
            found
                .into_iter()
                .map(|endpoint| Ok((this.client(&endpoint)?, endpoint)))
                .collect::<Result<Vec<_>, RegistryError>>()
        })
        .await;
        let found = found.unwrap_or_else(|_| {
            Err(HostsError::Read {
                path: self.config_dir.clone(),
                source: std::io::Error::other("the daemon is ending"),
            }
            .into())
        })?;
        let places = found
            .into_iter()
            .map(|(client, endpoint)| Place {
                secret: credentials.at(&endpoint, name.registry()).clone(),
                endpoint,
                client,
                authorization: Mutex::default(),
                failed: AtomicBool::new(false),
            })
            .collect();
        Ok(Session {
            name: name.clone(),
            policy: self.policy.clone(),
            places,
            wrong: Mutex::default(),
        })
    }

    fn client(&self, endpoint: &Endpoint) -> Result<reqwest::Client, RegistryError> {
        let loopback = hosts::is_loopback(endpoint.base.host_str().unwrap_or_default());
        let key = (endpoint.tls.clone(), loopback, endpoint.dial_timeout);
        let clients = || lock(&self.clients);
        if let Some(client) = clients().get(&key) {
            return Ok(client.clone());
        }
        let client = tls::client(endpoint, &self.policy)?;
        let mut clients = clients();
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}
