//! The images the tests pull: made on the spot, deterministic, written as OCI image layouts that
//! `skopeo` copies into a real registry. What is in each image stands in `recipes`; how a layout
//! is written stands here.

mod base;
mod configs;
mod critest;
mod error;
mod kube;
mod layer;
pub mod recipes;

use std::{fs, path::Path};

pub use error::ImageError;
use error::at;
pub use layer::{Compression, Layer};
use serde_json::json;
use sha2::{Digest, Sha256};

/// What a container of the image runs, and as whom.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `Entrypoint` of the image's config.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`.
    pub env: Vec<String>,
    /// `User`.
    pub user: String,
    /// `WorkingDir`.
    pub workdir: String,
    /// `StopSignal`.
    pub stop_signal: String,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `architecture`, if it is not to be the truth.
    pub architecture: Option<String>,
}

/// An image to be written: its tag in the registry, its layers, its config.
#[derive(Debug)]
pub struct Image {
    /// Repository and tag below the registry, `busybox:latest`.
    pub name: String,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// What runs.
    pub config: Config,
}

impl Image {
    /// Writes the image as an OCI layout into `dir` (which is made).
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn write_layout(&self, dir: &Path) -> Result<(), ImageError> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(at("making", &blobs))?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let (blob, diff_id) = layer.encode()?;
            let digest = put(&blobs, &blob)?;
            layers.push(json!({
                "mediaType": layer.compression().media_type(),
                "digest": digest,
                "size": blob.len(),
            }));
            diff_ids.push(diff_id);
        }
        let mut runtime = json!({"Entrypoint": self.config.entrypoint, "Cmd": self.config.cmd, "Env": self.config.env});
        if let Some(map) = runtime.as_object_mut() {
            for (key, value) in [
                ("User", &self.config.user),
                ("WorkingDir", &self.config.workdir),
                ("StopSignal", &self.config.stop_signal),
            ] {
                if !value.is_empty() {
                    map.insert(key.to_owned(), json!(value));
                }
            }
        }
        if !self.config.volumes.is_empty()
            && let Some(map) = runtime.as_object_mut()
        {
            let volumes = self.config.volumes.iter();
            let volumes: serde_json::Map<_, _> =
                volumes.map(|path| (path.clone(), json!({}))).collect();
            map.insert("Volumes".to_owned(), volumes.into());
        }
        let config = json!({
            "architecture": self.config.architecture.as_deref().unwrap_or("amd64"),
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": runtime,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let config_digest = put(&blobs, config.as_bytes())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": layers,
        })
        .to_string();
        let manifest_digest = put(&blobs, manifest.as_bytes())?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest_digest,
                "size": manifest.len(),
                "platform": {"architecture": "amd64", "os": "linux"},
            }],
        })
        .to_string();
        for (name, text) in [
            ("index.json", index.as_str()),
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        ] {
            let path = dir.join(name);
            fs::write(&path, text).map_err(at("writing", &path))?;
        }
        Ok(())
    }
}

fn put(blobs: &Path, data: &[u8]) -> Result<String, ImageError> {
    let hex = hex::encode(Sha256::digest(data));
    let path = blobs.join(&hex);
    fs::write(&path, data).map_err(at("writing", &path))?;
    Ok(format!("sha256:{hex}"))
}
