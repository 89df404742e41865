//! Where an image is fetched from: containerd's `hosts.toml` layout.
//!
//! `<config dir>/<host[:port]>/hosts.toml`, or `_default/hosts.toml` for every host without a
//! directory of its own, names mirrors to try in order, then the registry itself. A directory
//! with certificates only (`*.crt`, `*.cert` with `*.key`) is read as Docker does. Without any
//! file, requests go to the registry's own name: by https, or by http if that name is a loopback.
//!
//! The files are read at every pull, so a change needs no restart. This module reads and checks;
//! it opens no connection.

mod duration;
mod endpoint;
mod error;
mod file;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::{endpoint::default_endpoint, error::read};
pub use self::{
    endpoint::{Endpoint, Tls, is_loopback, same_host},
    error::HostsError,
};

/// The places to ask for images of `registry`, in order; never empty. Blocks: reads files.
pub fn endpoints(config_dir: &Path, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let Some(dir) = host_dir(config_dir, registry) else {
        return Ok(vec![default_endpoint(registry, Tls::default())]);
    };
    let path = dir.join("hosts.toml");
    match read(&path) {
        // containerd takes an empty file for none.
        Ok(bytes) if bytes.is_empty() => Ok(vec![default_endpoint(registry, docker_certs(&dir)?)]),
        Ok(bytes) => file::parse(&path, &String::from_utf8_lossy(&bytes), registry),
        Err(HostsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(vec![default_endpoint(registry, docker_certs(&dir)?)])
        }
        Err(other) => Err(other),
    }
}

fn host_dir(config_dir: &Path, registry: &str) -> Option<PathBuf> {
    // A registry's name holds no slash and is not `..` (the grammar of references).
    let mut names = Vec::new();
    // What may be in a file's name on every system goes first, as in containerd.
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
        .into_iter()
        .map(|name| config_dir.join(name))
        .find(|dir| dir.is_dir())
}

/// Docker's layout: `ca.crt` (any `*.crt`) and pairs of `*.cert` and `*.key`.
fn docker_certs(dir: &Path) -> Result<Tls, HostsError> {
    let failed = |source| HostsError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    let mut tls = Tls::default();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(read(&file)?),
            Some("cert") => {
                let certificate = read(&file)?;
                let key = match read(&file.with_extension("key")) {
                    // Then the key is in the certificate's file.
                    Err(HostsError::Read { source, .. })
                        if source.kind() == io::ErrorKind::NotFound =>
                    {
                        certificate.clone()
                    }
                    other => other?,
                };
                tls.clients.push((certificate, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

#[cfg(test)]
mod tests;
