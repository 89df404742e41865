//! The CRI services on the wire: each RPC is one line of a table that names the function that
//! answers it. What has no function is answered with UNIMPLEMENTED, by name.

use std::{fmt, pin::Pin, sync::Arc, time::Instant};

use bulkhead_proto::cri::{
    self as v1, image_service_server::ImageService, runtime_service_server::RuntimeService,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use super::{
    attach, container_create, container_events, container_exec, container_list, container_log,
    container_remove, container_start, container_stats, container_status, container_stop,
    container_update, exec, image_fs, image_list, image_pull, image_remove, image_status,
    port_forward, runtime_config, sandbox_list, sandbox_metrics, sandbox_remove, sandbox_run,
    sandbox_stats, sandbox_status, sandbox_stop, sandbox_update, status, streams, version,
};
use crate::{
    app::App,
    error::{Grpc, Unimplemented},
};

/// Answers both CRI services.
#[derive(Debug, Clone)]
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// Over this state.
    pub fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `unary METHOD(Request) -> Response = function;` `absent METHOD(…) -> … = "Name";`
/// `stream METHOD(…) -> … as AssociatedType = function;`
macro_rules! service {
    ($service:ident {
        $( unary $method:ident($request:ident) -> $response:ident = $answer:path; )*
        $( absent $a_method:ident($a_request:ident) -> $a_response:ident = $a_name:literal; )*
        $( stream $s_method:ident($s_request:ident) -> $s_response:ident as $s_type:ident = $s_answer:path; )*
    }) => {
        #[tonic::async_trait]
        impl $service for Server {
            $(
                async fn $method(
                    &self,
                    request: Request<v1::$request>,
                ) -> Result<Response<v1::$response>, Status> {
                    let answer = $answer(Arc::clone(&self.app), request.into_inner());
                    respond(stringify!($method), answer).await
                }
            )*
            $(
                async fn $a_method(
                    &self,
                    _request: Request<v1::$a_request>,
                ) -> Result<Response<v1::$a_response>, Status> {
                    Err(Unimplemented { what: $a_name }.status())
                }
            )*
            $(
                type $s_type = Answers<v1::$s_response>;

                async fn $s_method(
                    &self,
                    request: Request<v1::$s_request>,
                ) -> Result<Response<Self::$s_type>, Status> {
                    let answer = $s_answer(Arc::clone(&self.app), request.into_inner());
                    respond(stringify!($s_method), answer).await
                }
            )*
        }
    };
}

service! { RuntimeService {
    unary version(VersionRequest) -> VersionResponse = version::version;
    unary run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse = sandbox_run::run_pod_sandbox;
    unary stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse = sandbox_stop::stop_pod_sandbox;
    unary remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse = sandbox_remove::remove_pod_sandbox;
    unary pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse = sandbox_status::pod_sandbox_status;
    unary list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse = sandbox_list::list_pod_sandbox;
    unary create_container(CreateContainerRequest) -> CreateContainerResponse = container_create::create_container;
    unary start_container(StartContainerRequest) -> StartContainerResponse = container_start::start_container;
    unary stop_container(StopContainerRequest) -> StopContainerResponse = container_stop::stop_container;
    unary remove_container(RemoveContainerRequest) -> RemoveContainerResponse = container_remove::remove_container;
    unary list_containers(ListContainersRequest) -> ListContainersResponse = container_list::list_containers;
    unary container_status(ContainerStatusRequest) -> ContainerStatusResponse = container_status::container_status;
    unary update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse = container_update::update_container_resources;
    unary reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse = container_log::reopen_container_log;
    unary exec_sync(ExecSyncRequest) -> ExecSyncResponse = container_exec::exec_sync;
    unary container_stats(ContainerStatsRequest) -> ContainerStatsResponse = container_stats::container_stats;
    unary list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse = container_stats::list_container_stats;
    unary update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse = runtime_config::update_runtime_config;
    unary status(StatusRequest) -> StatusResponse = status::status;
    unary runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse = runtime_config::runtime_config;
    unary exec(ExecRequest) -> ExecResponse = exec::exec;
    unary attach(AttachRequest) -> AttachResponse = attach::attach;
    unary port_forward(PortForwardRequest) -> PortForwardResponse = port_forward::port_forward;
    unary pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse = sandbox_stats::pod_sandbox_stats;
    unary list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse = sandbox_stats::list_pod_sandbox_stats;
    unary list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse = sandbox_metrics::list_metric_descriptors;
    unary list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse = sandbox_metrics::list_pod_sandbox_metrics;
    unary update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse = sandbox_update::update_pod_sandbox_resources;
    absent checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse = "CheckpointContainer";
    absent checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse = "CheckpointPod";
    absent restore_pod(RestorePodRequest) -> RestorePodResponse = "RestorePod";
    stream stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse as StreamPodSandboxesStream = streams::stream_pod_sandboxes;
    stream stream_containers(StreamContainersRequest) -> StreamContainersResponse as StreamContainersStream = streams::stream_containers;
    stream stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse as StreamContainerStatsStream = streams::stream_container_stats;
    stream stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse as StreamPodSandboxStatsStream = streams::stream_pod_sandbox_stats;
    stream get_container_events(GetEventsRequest) -> ContainerEventResponse as GetContainerEventsStream = container_events::get_container_events;
    stream stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse as StreamPodSandboxMetricsStream = streams::stream_pod_sandbox_metrics;
}}

service! { ImageService {
    unary list_images(ListImagesRequest) -> ListImagesResponse = image_list::list_images;
    unary image_status(ImageStatusRequest) -> ImageStatusResponse = image_status::image_status;
    unary pull_image(PullImageRequest) -> PullImageResponse = image_pull::pull_image;
    unary remove_image(RemoveImageRequest) -> RemoveImageResponse = image_remove::remove_image;
    unary image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse = image_fs::image_fs_info;
    stream stream_images(StreamImagesRequest) -> StreamImagesResponse as StreamImagesStream = streams::stream_images;
}}

/// Runs one RPC: its answer or its error as a status, and a line in the log.
async fn respond<T, E>(
    name: &'static str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<Response<T>, Status>
where
    E: Grpc + fmt::Debug,
{
    let start = Instant::now();
    let result = answer.await;
    let ms = start.elapsed().as_secs_f64() * 1e3;
    match result {
        Ok(value) => {
            tracing::debug!(rpc = name, ms, "answered");
            Ok(Response::new(value))
        }
        Err(error) => {
            let status = error.status();
            match status.code() {
                // What a kubelet asks as a matter of course.
                Code::NotFound | Code::Unimplemented => {
                    tracing::debug!(rpc = name, ms, code = ?status.code(), "{}", status.message());
                }
                code => tracing::warn!(rpc = name, ms, ?code, "{}", status.message()),
            }
            Err(status)
        }
    }
}
