//! The cases, by what users call it. Manifests of more than a few lines are in `tests/kube/manifests`, those that
//! several cases want in `manifests`.

mod network;
mod node;
mod pods;
mod sizes;
mod streams;
mod volumes;
mod workloads;

use super::case::Case;

/// All of them. Those that wait longest come first.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut all = network::cases();
    all.extend(streams::cases());
    all.extend(volumes::cases());
    all.extend(workloads::cases());
    all.extend(pods::cases());
    all.extend(sizes::cases());
    all.extend(node::cases());
    all
}
