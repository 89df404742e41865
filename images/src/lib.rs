//! Images: pulled from registries, kept as one read-only EROFS file per layer.
//!
//! [`Images`] is what the daemon sees: pull, list, find, remove, hold. Below it:
//! [`mod@reference`] (names), [`hosts`] (where a registry is), [`registry`] (the protocol),
//! [`manifest`] (what registries say), [`pull`] (the work), [`archive`] (images as files), [`layer`] and [`erofs`] (from tar to
//! file), [`store`] (files and records), [`disk_usage`] (how much disk that is). What a container makes of
//! an image's configuration is the daemon's business; this crate knows no containers, no CRI and
//! no gRPC.
#![forbid(unsafe_code)]

pub mod archive;
pub mod digest;
pub mod disk_usage;
pub mod erofs;
mod error;
mod expiry;
pub mod hosts;
pub mod layer;
pub mod manifest;
mod part;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
mod service;
pub mod store;

pub use error::{ImagesError, SharedError};
pub use manifest::ImageConfig;
pub use pull::PullSettings;
pub use registry::{PullSecret, RetryPolicy};
pub use service::{Images, LayerDisk, Settings, serial};
pub use store::{ImageRecord, LayerRecord};
