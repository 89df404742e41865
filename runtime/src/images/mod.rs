//! Images: pulled from registries, kept as one read-only file per layer.

pub mod erofs;
pub mod layer;

use tonic::Code;

use crate::{config::Config, error::Grpc, records::Records};

/// The image store.
#[derive(Debug)]
pub struct Images {}

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {}

impl Grpc for ImagesError {
    fn code(&self) -> Code {
        match *self {}
    }
}

impl Images {
    /// Opens the store below `config.paths.images()`. Blocks.
    pub fn open(_config: &Config, _records: &Records) -> Result<Self, ImagesError> {
        Ok(Self {})
    }
}
