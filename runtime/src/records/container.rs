//! A container's record, split into what never changes ([`ContainerMeta`]) and what does
//! ([`ContainerStatus`]).

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use bulkhead_proto::cri::{ContainerConfig, LinuxContainerResources};
use bulkhead_records::Record;
use serde::{Deserialize, Serialize};

use crate::volumes::VolumeRecord;

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Fixed at its creation.
    pub meta: Arc<ContainerMeta>,
    /// Changes with its life.
    pub status: ContainerStatus,
}

impl Record for ContainerRecord {
    const TABLE: &'static str = "containers";

    fn key(&self) -> &str {
        &self.meta.id
    }
}

/// What is fixed when a container is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerMeta {
    /// 32 lower-case hexadecimal digits.
    pub id: String,
    /// Its pod.
    pub sandbox_id: String,
    /// As CRI sent it.
    #[serde(with = "super::proto")]
    pub config: ContainerConfig,
    /// The image's id (sha256:…).
    pub image_id: String,
    /// Disk serials of its layers, lowest first.
    pub layers: Vec<String>,
    /// The log file, if CRI wants one.
    pub log_path: Option<PathBuf>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The signal StopContainer sends first.
    pub stop_signal: u32,
    /// User id, group id and all groups, as the agent resolved them.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// Where those of its layers, and of its image volumes', are that are parts of a disk. A layer
    /// that is not here is a disk of its own.
    #[serde(default)]
    pub layer_places: Vec<LayerPlace>,
    /// What it holds for its volumes, in the order made; given back in reverse.
    #[serde(default)]
    pub volumes: Vec<VolumeRecord>,
    /// Whatever else the container module wants to remember, by name.
    #[serde(default)]
    pub extra: BTreeMap<String, String>,
}

impl ContainerMeta {
    /// Whether it has this name in this pod, which one container has at a time.
    pub fn is_named(&self, sandbox: &str, name: &str, attempt: u32) -> bool {
        self.sandbox_id == sandbox
            && self.config.metadata.as_ref().is_some_and(|metadata| {
                (metadata.name.as_str(), metadata.attempt) == (name, attempt)
            })
    }

    /// Serials of all disks of the VM that it needs, each once.
    pub fn disks(&self) -> Vec<String> {
        let places: HashMap<&str, &str> = self
            .layer_places
            .iter()
            .map(|place| (place.layer.as_str(), place.disk.as_str()))
            .collect();
        let disk = |serial: String| match places.get(serial.as_str()) {
            Some(disk) => (*disk).to_owned(),
            None => serial,
        };
        let volumes = self.volumes.iter().flat_map(VolumeRecord::disks);
        let all = self.layers.iter().cloned().chain(volumes);
        let mut disks: Vec<_> = all.map(disk).collect();
        disks.sort();
        disks.dedup();
        disks
    }
}

/// Where an image layer is: one part of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlace {
    /// The layer's serial.
    pub layer: String,
    /// The disk's serial.
    pub disk: String,
    /// Where on it the layer begins, bytes.
    pub offset: u64,
    /// How many bytes it is.
    pub length: u64,
}

/// What changes in a container's life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// How far it is.
    pub state: ContainerState,
    /// Nanoseconds since the epoch; 0 if it has not started.
    pub started_at: i64,
    /// Nanoseconds since the epoch; 0 if it has not ended.
    pub finished_at: i64,
    /// Exit code, 128 + signal for a death by signal.
    pub exit_code: i32,
    /// The kernel killed it because it reached its memory limit.
    pub oom_killed: bool,
    /// Why it is as it is, beyond the exit code (a VM that died, a failed start).
    pub message: String,
    /// Resources as last set.
    #[serde(with = "super::proto")]
    pub resources: LinuxContainerResources,
}

impl ContainerStatus {
    /// Its process runs since `at`, nanoseconds since the epoch. Its end may have been recorded
    /// before, and stays.
    pub fn note_start(&mut self, at: i64) {
        self.started_at = at;
        if self.state == ContainerState::Created {
            self.state = ContainerState::Running;
        }
    }
}

/// The life of a container, as CRI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// CreateContainer is at work; not shown in lists.
    Creating,
    /// Built, its process not started.
    Created,
    /// Running.
    Running,
    /// Its process has ended.
    Exited,
    /// Nobody knows: its pod did not answer.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::testing;

    #[test]
    fn a_container_of_an_earlier_release_has_a_disk_for_each_layer() {
        let mut record = serde_json::to_value(testing::container("c", "p")).unwrap();
        record["meta"]["layers"] = serde_json::json!(["lb", "la", "lb"]);
        record["meta"]
            .as_object_mut()
            .unwrap()
            .remove("layer_places");
        let mut record: ContainerRecord = serde_json::from_value(record).unwrap();
        assert_eq!(record.meta.disks(), ["la", "lb"]);
        let meta = Arc::make_mut(&mut record.meta);
        meta.volumes = vec![
            VolumeRecord::Disk {
                serial: "v".to_owned(),
            },
            VolumeRecord::Image {
                holder: "h".to_owned(),
                layers: vec!["lb".to_owned(), "lc".to_owned()],
            },
        ];
        meta.layer_places = ["lb", "lc"]
            .map(|layer| LayerPlace {
                layer: layer.to_owned(),
                disk: "p-0".to_owned(),
                offset: 0,
                length: 4096,
            })
            .into();
        assert_eq!(record.meta.disks(), ["la", "p-0", "v"]);
        let written = serde_json::to_value(&record).unwrap();
        assert_eq!(
            serde_json::from_value::<ContainerRecord>(written).unwrap(),
            record
        );
    }
}
