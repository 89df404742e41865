//! Names of images in the tests' registry.

/// The small image most tests run.
pub(crate) const BUSYBOX: &str = "127.0.0.1:5000/busybox:latest";

/// An image of the tests' registry by its short name.
pub(crate) fn image(name: &str) -> String {
    format!("{}/{name}:latest", crate::host::REGISTRY)
}
