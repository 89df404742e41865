//! ContainerStats and ListContainerStats: asked of the guests, all at once, each with a deadline.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bulkhead_proto::{
    agent::{self, StatsRequest},
    cri,
};
use futures::future::join_all;

use super::{ContainerError, find, status::has_labels};
use crate::{
    app::App,
    error::chain,
    records::{ContainerRecord, ContainerState},
    sandbox::Pod,
};

/// A guest that takes longer is left out of a list.
const DEADLINE: Duration = Duration::from_secs(2);
/// One container alone may take longer: there is nothing else to answer.
const DEADLINE_ONE: Duration = Duration::from_secs(10);
/// Two samples closer together than this give no rate.
const SHORTEST_SPAN: i64 = 100_000_000;

/// The last CPU reading of each container, for its rate.
#[derive(Debug, Default)]
pub(super) struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    used: u64,
    /// The rate up to `at`, given again to those who ask too soon after.
    rate: u64,
}

impl Samples {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a reading; gives the rate in billionths of a CPU since the one before, if there is.
    pub(super) fn rate(&self, id: &str, at: i64, used: u64) -> Option<u64> {
        let mut samples = self.lock();
        let Some(last) = samples.get(id).copied() else {
            samples.insert(id.to_owned(), Sample { at, used, rate: 0 });
            return None;
        };
        let span = at.saturating_sub(last.at);
        if span < SHORTEST_SPAN {
            return Some(last.rate);
        }
        // ns of CPU in ns of time, in billionths; in u128, because both can be large.
        let spent = u128::from(used.saturating_sub(last.used)) * 1_000_000_000;
        let rate = u64::try_from(spent / u128::from(span.unsigned_abs())).unwrap_or(u64::MAX);
        samples.insert(id.to_owned(), Sample { at, used, rate });
        Some(rate)
    }

    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }
}

/// Statistics of one container; it must be created or running.
pub async fn one(app: &App, id: &str) -> Result<cri::ContainerStats, ContainerError> {
    let record = find::existing(app, id)?;
    if !alive(&record) {
        // Its cgroup is gone; what is left to say is who it was.
        return Ok(nothing(&record));
    }
    let pod = app.pods.ready(&record.meta.sandbox_id)?;
    let found = ask(&pod, vec![record.meta.id.clone()], DEADLINE_ONE).await?;
    let found = found
        .into_iter()
        .find(|stats| stats.container_id == record.meta.id);
    Ok(match found {
        Some(stats) => to_cri(app, &record, &stats),
        None => nothing(&record),
    })
}

/// Statistics of all running containers a filter lets through. Pods that do not answer in time
/// are left out, with a word in the log.
pub async fn list(
    app: &App,
    filter: Option<&cri::ContainerStatsFilter>,
) -> Vec<cri::ContainerStats> {
    let mut pods: HashMap<String, Vec<Arc<ContainerRecord>>> = HashMap::new();
    for record in app.records.containers.list() {
        if alive(&record) && filter.is_none_or(|filter| lets_through(filter, &record)) {
            pods.entry(record.meta.sandbox_id.clone())
                .or_default()
                .push(record);
        }
    }
    let asked = pods
        .into_iter()
        .filter_map(|(id, records)| Some((app.pods.get(&id)?, records)));
    let answers = join_all(asked.map(|(pod, records)| async move {
        let ids = records
            .iter()
            .map(|record| record.meta.id.clone())
            .collect();
        match ask(&pod, ids, DEADLINE).await {
            Ok(found) => (records, found),
            Err(error) => {
                tracing::warn!(
                    pod = pod.id,
                    error = chain(&error),
                    "no statistics from this pod"
                );
                (Vec::new(), Vec::new())
            }
        }
    }))
    .await;
    let mut result = Vec::new();
    for (records, found) in answers {
        for stats in found {
            // A guest that tells of containers that are not its own is not listened to.
            let record = records
                .iter()
                .find(|record| record.meta.id == stats.container_id);
            if let Some(record) = record {
                result.push(to_cri(app, record, &stats));
            }
        }
    }
    result
}

fn alive(record: &ContainerRecord) -> bool {
    matches!(
        record.status.state,
        ContainerState::Created | ContainerState::Running
    )
}

fn lets_through(filter: &cri::ContainerStatsFilter, record: &ContainerRecord) -> bool {
    record.meta.id.starts_with(&filter.id)
        && record.meta.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && has_labels(&record.meta.config.labels, &filter.label_selector)
}

async fn ask(
    pod: &Pod,
    container_ids: Vec<String>,
    deadline: Duration,
) -> Result<Vec<agent::ContainerStats>, ContainerError> {
    let request = StatsRequest {
        container_ids,
        detailed: false,
    };
    let answer = pod
        .agent
        .call(
            "read the containers' statistics",
            deadline,
            |mut agent| async move { agent.stats(request).await },
        )
        .await?;
    Ok(answer.containers)
}

fn attributes(record: &ContainerRecord) -> cri::ContainerAttributes {
    cri::ContainerAttributes {
        id: record.meta.id.clone(),
        metadata: record.meta.config.metadata.clone(),
        labels: record.meta.config.labels.clone(),
        annotations: record.meta.config.annotations.clone(),
    }
}

fn nothing(record: &ContainerRecord) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(attributes(record)),
        ..Default::default()
    }
}

/// CRI's form of what a guest tells of a container of its own.
pub fn to_cri(
    app: &App,
    record: &ContainerRecord,
    stats: &agent::ContainerStats,
) -> cri::ContainerStats {
    let value = |value| Some(cri::UInt64Value { value });
    let timestamp = stats.time_unix_ns;
    let rate = app
        .containers
        .samples
        .rate(&record.meta.id, timestamp, stats.cpu_usage_ns);
    let available = (stats.memory_limit_bytes > 0).then(|| {
        stats
            .memory_limit_bytes
            .saturating_sub(stats.memory_working_set_bytes)
    });
    cri::ContainerStats {
        attributes: Some(attributes(record)),
        cpu: Some(cri::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(stats.cpu_usage_ns),
            usage_nano_cores: rate.map(|value| cri::UInt64Value { value }),
            psi: stats.cpu_psi.as_ref().map(pressure),
        }),
        memory: Some(cri::MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_working_set_bytes),
            available_bytes: available.map(|value| cri::UInt64Value { value }),
            usage_bytes: value(stats.memory_usage_bytes),
            rss_bytes: value(stats.memory_rss_bytes),
            page_faults: value(stats.page_faults),
            major_page_faults: value(stats.major_page_faults),
            psi: stats.memory_psi.as_ref().map(pressure),
        }),
        // Where the pods' writable disks are: the layer is on one of them, in the guest.
        writable_layer: Some(cri::FilesystemUsage {
            timestamp,
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: app
                    .config
                    .paths
                    .pod_state(&record.meta.sandbox_id)
                    .display()
                    .to_string(),
            }),
            used_bytes: value(stats.writable_bytes),
            inodes_used: value(stats.writable_inodes),
        }),
        swap: Some(cri::SwapUsage {
            timestamp,
            swap_available_bytes: value(
                stats
                    .swap_limit_bytes
                    .saturating_sub(stats.swap_usage_bytes),
            ),
            swap_usage_bytes: value(stats.swap_usage_bytes),
        }),
        io: stats.io_psi.as_ref().map(|psi| cri::IoUsage {
            timestamp,
            psi: Some(pressure(psi)),
        }),
    }
}

/// CRI's form of stalls.
pub fn pressure(psi: &agent::Psi) -> cri::PsiStats {
    let line = |line: &agent::PsiLine| cri::PsiData {
        total: line.total_us,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    cri::PsiStats {
        full: psi.full.as_ref().map(line),
        some: psi.some.as_ref().map(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_use_between_two_readings() {
        let samples = Samples::default();
        let second = 1_000_000_000;
        assert_eq!(samples.rate("c", second, 500), None);
        assert_eq!(
            samples.rate("c", 2 * second, 250_000_500),
            Some(250_000_000)
        );
        assert_eq!(
            samples.rate("c", 2 * second + 1, 250_000_501),
            Some(250_000_000)
        );
        // A counter that went back (a container of the same name made anew) is no huge rate.
        assert_eq!(samples.rate("c", 3 * second, 0), Some(0));
        samples.forget("c");
        assert_eq!(samples.rate("c", 4 * second, 0), None);
    }
}
