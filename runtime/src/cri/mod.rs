//! The CRI v1 services. [`Server`] is the table of RPCs; each RPC's function is in a file of its
//! own and has the form `async fn(Arc<App>, Request) -> Result<Response, impl Grpc>`.

mod attach;
mod container_create;
mod container_events;
mod container_exec;
mod container_list;
mod container_log;
mod container_remove;
mod container_start;
mod container_stats;
mod container_status;
mod container_stop;
mod container_update;
mod exec;
mod image_error;
mod image_fs;
mod image_list;
mod image_pull;
mod image_remove;
mod image_status;
mod port_forward;
mod runtime_config;
mod sandbox_list;
mod sandbox_metrics;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_stats;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod server;
mod status;
mod streams;
mod version;

pub use server::Server;
