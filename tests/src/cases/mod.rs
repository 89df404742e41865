//! The tests, by theme. A theme's tests share a pod where that is honest.

mod bad_input;
mod basics;
mod confinement;
mod contexts;
mod cpus;
mod crictl;
mod docs;
mod events;
mod exec;
mod exec_probes;
mod host;
mod host_walls;
mod image_config;
mod image_names;
mod images;
mod isolation;
mod kernel;
mod launch_walls;
mod lifecycle;
mod logs;
mod network;
mod node;
mod recovery;
mod resize;
mod scale;
mod security;
mod sizes;
mod stats;
mod streaming;
mod volumes;
mod vsock_walls;

use image_names::{BUSYBOX, image};

use crate::suite::Test;

/// Every test, in the order they run.
#[must_use]
pub fn all() -> Vec<Test> {
    [
        basics::tests(),
        exec::tests(),
        exec_probes::tests(),
        stats::tests(),
        events::tests(),
        resize::tests(),
        sizes::tests(),
        cpus::tests(),
        lifecycle::tests(),
        logs::tests(),
        network::tests(),
        node::tests(),
        images::tests(),
        image_config::tests(),
        security::tests(),
        confinement::tests(),
        vsock_walls::tests(),
        volumes::tests(),
        isolation::tests(),
        kernel::tests(),
        launch_walls::tests(),
        host::tests(),
        host_walls::tests(),
        recovery::tests(),
        bad_input::tests(),
        crictl::tests(),
        streaming::tests(),
        docs::tests(),
        scale::tests(),
    ]
    .concat()
}
