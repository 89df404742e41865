//! Runs cases: several at once while they wait, those that shake the node one by one after that. Prints a
//! line per case and the sum, as the end-to-end tests do.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tokio::sync::OnceCell;

use super::{
    case::Case,
    cases,
    certificates::Certificates,
    cluster::{Cluster, Kubectl},
    control_plane::ControlPlane,
    manifests,
    test_host::{TestHost, node_name},
};
use crate::{Failure, Outcome, suite::Sums, waiting::pause};

/// Cases that run at once: they wait more than they work, and a machine start takes a processor whole.
const AT_ONCE: usize = 4;
/// A node is ready half a minute after the boot of its host, on an idle machine.
const NODE: Duration = Duration::from_secs(360);
/// After this a case has failed: whatever it waits for has an earlier deadline.
const LIMIT: Duration = Duration::from_secs(900);

/// The cases whose name contains one of the filters.
#[must_use]
pub fn chosen(filters: &[String]) -> Vec<Case> {
    let wanted = |case: &Case| filters.is_empty() || filters.iter().any(|f| case.name.contains(f));
    cases::all().into_iter().filter(wanted).collect()
}

/// A cluster with its node, ready.
#[derive(Debug)]
pub struct Up {
    /// What cases talk to.
    pub cluster: Cluster,
    /// Ends with this.
    pub plane: ControlPlane,
    /// Further nodes.
    pub others: Vec<TestHost>,
}

/// Brings control plane and nodes up side by side.
///
/// # Errors
/// Which part did not come up, with the end of its log.
pub async fn up(work: &Path, nodes: u8) -> Result<Up, Failure> {
    let began = Instant::now();
    let said = |what: &str| {
        let seconds = began.elapsed().as_secs_f32();
        println!("   {what} after {seconds:.0} s");
    };
    let names: Vec<String> = (1..=nodes).map(node_name).collect();
    let made = Certificates::make(&work.join("certificates"), &names).await?;
    let mut hosts = (1..=nodes)
        .map(|number| TestHost::boot(number, work, &made))
        .collect::<Result<Vec<_>, _>>()?;
    let kubectl = Kubectl::new(&made)?;
    let plane = ControlPlane::start(work, &made, &kubectl).await?;
    said("the control plane is up");
    let host = hosts.remove(0);
    let mut up = Up {
        cluster: Cluster {
            kubectl,
            host: tokio::sync::Mutex::new(host),
            web: OnceCell::new(),
            proxy: OnceCell::new(),
        },
        plane,
        others: hosts,
    };
    up.cluster.apply(manifests::BASE).await?;
    for name in names {
        ready(&mut up, &name).await?;
        said(&format!("{name} is ready"));
    }
    up.cluster
        .until("serviceaccount/default", "to be there", |_| true)
        .await?;
    Ok(up)
}

async fn ready(up: &mut Up, name: &str) -> Outcome {
    let deadline = tokio::time::Instant::now() + NODE;
    let node = format!("node/{name}");
    loop {
        if let Ok(node) = up.cluster.get(&node).await {
            let conditions = node["status"]["conditions"].as_array().cloned();
            let is = |c: &serde_json::Value| c["type"] == "Ready" && c["status"] == "True";
            if conditions.unwrap_or_default().iter().any(is) {
                return Ok(());
            }
        }
        up.plane.alive()?;
        let host = up.cluster.host.get_mut();
        host.alive()?;
        for other in &mut up.others {
            other.alive()?;
        }
        let late = pause(deadline, &format!("{node} to be ready")).await;
        late.map_err(|late| format!("{late}:\n{}", up.cluster.host.get_mut().said()))?;
    }
}

/// Runs the chosen cases on a new cluster.
///
/// # Errors
/// If the cluster does not come up.
pub async fn run(work: &Path, results: &Path, filters: &[String]) -> Result<Sums, Failure> {
    let began = Instant::now();
    let up = up(work, 1).await?;
    let (alone, others): (Vec<Case>, Vec<Case>) =
        chosen(filters).into_iter().partition(|case| case.alone);
    let sums = Mutex::new(Sums::default());
    let failures: PathBuf = results.to_owned();
    let one = async |case: Case| {
        let (held, took) = timed(&case, &up.cluster).await;
        let mut sums = sums
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match held {
            Ok(()) => {
                sums.passed += 1;
                println!("ok {} ({took:.0} s)", case.name);
            }
            Err(error) => {
                sums.failed += 1;
                println!("FAIL {} ({took:.0} s): {error}", case.name);
            }
        }
    };
    let running = stream::iter(others).map(&one).buffer_unordered(AT_ONCE);
    running.collect::<Vec<()>>().await;
    for case in alone {
        one(case).await;
    }
    let sums = *sums
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if sums.failed > 0 {
        keep_logs(work, &failures)?;
        println!("{}", up.cluster.host.lock().await.said());
    }
    println!("   the cluster was up for {} s", began.elapsed().as_secs());
    Ok(sums)
}

async fn timed(case: &Case, cluster: &Cluster) -> (Outcome, f32) {
    let began = Instant::now();
    let held = tokio::time::timeout(LIMIT, (case.run)(cluster)).await;
    let held = held.unwrap_or_else(|_| Err(format!("not done within {LIMIT:?}").into()));
    (held, began.elapsed().as_secs_f32())
}

/// What the parts said, where the caller finds it.
///
/// # Errors
/// If it cannot be copied.
pub fn keep_logs(work: &Path, results: &Path) -> Outcome {
    for dir in [
        work.to_owned(),
        work.join("node1"),
        work.join("node1/node1"),
        work.join("node2"),
        work.join("node2/node2"),
    ] {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "log") {
                let name = path.strip_prefix(work)?.to_string_lossy().replace('/', "-");
                fs::copy(&path, results.join(name))?;
            }
        }
    }
    Ok(())
}
