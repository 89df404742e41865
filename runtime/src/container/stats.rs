//! ContainerStats and ListContainerStats: asked of the guests, all at once, each with a deadline.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bulkhead_proto::{
    agent::{self, StatsRequest},
    cri,
};
use futures::future::join_all;

use super::{ContainerError, find};
use crate::{
    app::App,
    error::chain,
    records::{ContainerRecord, ContainerState},
    sandbox::Pod,
    status::has_labels,
};

/// A guest that takes longer is left out of a list.
const DEADLINE: Duration = Duration::from_secs(2);
/// One container alone may take longer: there is nothing else to answer.
const DEADLINE_ONE: Duration = Duration::from_secs(10);
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
        // A guest speaks for its own containers, and once for each.
        for record in records {
            let of_this = |stats: &&agent::ContainerStats| stats.container_id == record.meta.id;
            if let Some(stats) = found.iter().find(of_this) {
                result.push(to_cri(app, &record, stats));
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
