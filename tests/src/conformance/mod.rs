//! critest, the CRI's own validation suite, against a node: which specs, on which handlers, shared
//! between nodes by claims as the end-to-end tests are. Each spec counts once per handler.
//!
//! Filters: one that begins with `critest` chooses specs, by what stands after `critest:` (a part
//! of `RUN: SPEC`); with other filters only, critest does not run.

pub mod expected;
pub mod specs;

mod run;

pub use run::{claims, run};

use crate::suite::Plan;

/// The registries whose names critest's images have; the test registry holds these below the name.
pub const MIRRORED: [&str; 3] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"];

/// Specs that are not run, and why.
const LEFT_OUT: [(&str, &str); 1] = [(
    "Image Manager public image with digest should be pulled and removed [Conformance]",
    "wants an image by its upstream digest, which cannot be made on the spot",
)];

/// One run over the specs.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// What it is called.
    name: &'static str,
    /// Further arguments of critest.
    args: &'static [&'static str],
    /// Only specs whose name begins so.
    only: &'static str,
}

const STREAMING: &str = "Streaming ";

const RUNS: &[Run] = &[
    Run {
        name: "kvm",
        args: &[],
        only: "",
    },
    Run {
        name: "host",
        args: &["-runtime-handler=host"],
        only: "",
    },
    Run {
        name: "kvm-websocket",
        args: &[
            "-websocket-exec",
            "-websocket-attach",
            "-websocket-portforward",
        ],
        only: STREAMING,
    },
    Run {
        name: "host-websocket",
        args: &[
            "-runtime-handler=host",
            "-websocket-exec",
            "-websocket-attach",
            "-websocket-portforward",
        ],
        only: STREAMING,
    },
];

/// The parts of `RUN: SPEC` that are asked for; `None` if critest is not to run at all.
fn focuses(plan: &Plan) -> Option<Vec<String>> {
    if plan.filters.is_empty() {
        return Some(Vec::new());
    }
    let mut focuses = Vec::new();
    for filter in &plan.filters {
        let Some(rest) = filter.strip_prefix("critest") else {
            continue;
        };
        match rest.strip_prefix(':').unwrap_or(rest) {
            "" => return Some(Vec::new()),
            focus => focuses.push(focus.to_owned()),
        }
    }
    (!focuses.is_empty()).then_some(focuses)
}

/// Whether critest is asked for.
#[must_use]
pub fn wanted(plan: &Plan) -> bool {
    focuses(plan).is_some()
}

/// The plan without its filters for critest; `None` if nothing else is asked for.
#[must_use]
pub fn without(plan: &Plan) -> Option<Plan> {
    let mut rest = plan.clone();
    rest.filters.retain(|filter| !filter.starts_with("critest"));
    (plan.filters.is_empty() || !rest.filters.is_empty()).then_some(rest)
}
