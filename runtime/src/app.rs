//! The state all RPCs share: one [`App`] per daemon, handed around as `Arc<App>`.

use std::sync::{Arc, Mutex};

use bulkhead_common::lock;
use bulkhead_images::{Images, ImagesError, PullSettings, RetryPolicy, Settings, layer::Limits};
use bulkhead_records::RecordsError;
use bulkhead_streaming::Urls;

use crate::{
    config::Config, container::Containers, events::Events, machine::host::DefaultProfile,
    network::PodNetwork, records::Records, sandbox::Pods,
};

/// Everything the daemon holds. Parts have their own locks; there is none over the whole.
#[derive(Debug)]
pub struct App {
    /// The configuration, fixed at start.
    pub config: Config,
    /// What must survive the daemon.
    pub records: Records,
    /// Handles of the running pods.
    pub pods: Pods,
    /// How pods get their network.
    pub network: PodNetwork,
    /// The image store.
    pub images: Images,
    /// What the container module keeps in memory.
    pub containers: Containers,
    /// Who wants to know what happens.
    pub events: Events,
    /// URLs of the streaming server.
    pub streaming: Arc<Urls>,
    /// The AppArmor profile of pods on the host.
    pub host_profile: DefaultProfile,
    pod_cidr: Mutex<String>,
}

/// The daemon's state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The image store.
    #[error("cannot open the image store")]
    Images(#[from] ImagesError),
}

impl App {
    /// Opens records and image store below the configured directories, which exist. Blocks.
    pub fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        let records = Records::open(&config.paths.database())?;
        let images = Images::open(image_settings(&config), records.database())?;
        Ok(Arc::new(Self {
            pods: Pods::new(&config),
            network: PodNetwork::new(&config),
            containers: Containers::new(&config),
            events: Events::default(),
            streaming: Arc::default(),
            host_profile: DefaultProfile::default(),
            images,
            records,
            config,
            pod_cidr: Mutex::default(),
        }))
    }

    /// The pod CIDR the kubelet last sent (UpdateRuntimeConfig), empty if none.
    pub fn pod_cidr(&self) -> String {
        lock(&self.pod_cidr).clone()
    }

    /// Keeps the pod CIDR the kubelet sent.
    pub fn set_pod_cidr(&self, cidr: String) {
        *lock(&self.pod_cidr) = cidr;
    }
}

fn image_settings(config: &Config) -> Settings {
    Settings {
        layers_dir: config.paths.layers(),
        pods_dir: config.paths.state_dir.join("pods"),
        hosts_dir: config.registry.config_dir.clone(),
        retry: RetryPolicy {
            stall_timeout: config.registry.stall_timeout,
            ..RetryPolicy::default()
        },
        pull: PullSettings {
            parallel_layers: config.registry.parallel_layers,
            max_image_bytes: config.images.max_image_bytes,
            layer_limits: Limits {
                max_layer_bytes: config.images.max_layer_bytes,
                max_entries: config.images.max_layer_entries,
                max_memory_bytes: config.images.max_layer_memory,
                ..Limits::default()
            },
            keep_parts: config.images.keep_unfinished,
            ..PullSettings::default()
        },
    }
}
