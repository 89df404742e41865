//! The client's side of the OCI distribution protocol, as far as a pull needs it.
//!
//! [`Registry`] is the daemon's one; [`Session`] belongs to one pull of one image with one set of
//! credentials: it knows the hosts to ask (mirrors first), keeps their tokens, retries what may
//! pass, and checks digest and size of everything before it gives it on. What the bytes mean is
//! for `manifest` and `pull`.
//!
//! It is written on `reqwest` and not on `oci-client`, because that has no limit on the size of
//! manifests and tokens, no Retry-After, no mirrors below a path and no client certificates, and
//! panics on a token that does not fit into a header; types and reference grammar are `oci-spec`'s.

mod auth;
mod blob;
mod clients;
mod der;
mod document;
mod error;
mod hint;
mod identity;
mod request;
mod retry;
mod session;
mod tls;
mod token;
mod verify;

pub use auth::{BadAuth, Credentials, PullSecret, Secret};
pub use blob::{Blob, Sink};
pub use clients::Registry;
pub use document::Document;
pub use error::RegistryError;
pub use retry::RetryPolicy;
pub use session::Session;
