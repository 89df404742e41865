//! The CRI v1 services. [`Server`] is the table of RPCs; each RPC's function is in a file of its
//! own, named after it: `async fn(Arc<App>, Request) -> Result<Response, impl Grpc>`.
//! Not here: what the RPCs do, which is in `sandbox`, `container`, `stats` and the images crate.

mod attach;
mod container_stats;
mod container_status;
mod create_container;
mod deadline;
mod exec;
mod exec_sync;
mod get_container_events;
mod image_error;
mod image_fs_info;
mod image_status;
mod list_container_stats;
mod list_containers;
mod list_images;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod pull_image;
mod remove_container;
mod remove_image;
mod remove_pod_sandbox;
mod reopen_container_log;
mod response;
mod run_pod_sandbox;
mod runtime_config;
mod server;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod stream_container_stats;
mod stream_containers;
mod stream_images;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

pub use deadline::Deadlines;
pub use server::Server;
