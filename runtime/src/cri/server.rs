//! The CRI services on the wire: each RPC is one line of a table. What has no function is answered
//! with UNIMPLEMENTED, by name.

use std::{fmt, sync::Arc, time::Instant};

use bulkhead_proto::cri::{
    self as v1, image_service_server::ImageService, runtime_service_server::RuntimeService,
};
use tonic::{Code, Request, Response, Status};

use super::response::ResponseStream;
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

/// `unary METHOD(Request) -> Response;` `absent METHOD(Request) -> Response = "Name";`
/// `stream METHOD(Request) -> Response as AssociatedType;`
///
/// A method is answered by the function of its name in the file of its name.
macro_rules! service {
    ($service:ident {
        $( unary $method:ident($request:ident) -> $response:ident; )*
        $( absent $a_method:ident($a_request:ident) -> $a_response:ident = $a_name:literal; )*
        $( stream $s_method:ident($s_request:ident) -> $s_response:ident as $s_type:ident; )*
    }) => {
        #[tonic::async_trait]
        impl $service for Server {
            $(
                async fn $method(
                    &self,
                    request: Request<v1::$request>,
                ) -> Result<Response<v1::$response>, Status> {
                    let answer = super::$method::$method(Arc::clone(&self.app), request.into_inner());
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
                type $s_type = ResponseStream<v1::$s_response>;

                async fn $s_method(
                    &self,
                    request: Request<v1::$s_request>,
                ) -> Result<Response<Self::$s_type>, Status> {
                    let answer = super::$s_method::$s_method(Arc::clone(&self.app), request.into_inner());
                    respond(stringify!($s_method), answer).await
                }
            )*
        }
    };
}

service! { RuntimeService {
    unary version(VersionRequest) -> VersionResponse;
    unary run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    unary stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    unary remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    unary pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    unary list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    unary create_container(CreateContainerRequest) -> CreateContainerResponse;
    unary start_container(StartContainerRequest) -> StartContainerResponse;
    unary stop_container(StopContainerRequest) -> StopContainerResponse;
    unary remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    unary list_containers(ListContainersRequest) -> ListContainersResponse;
    unary container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    unary update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    unary reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    unary exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    unary container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    unary list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    unary update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
    unary status(StatusRequest) -> StatusResponse;
    unary runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    unary exec(ExecRequest) -> ExecResponse;
    unary attach(AttachRequest) -> AttachResponse;
    unary port_forward(PortForwardRequest) -> PortForwardResponse;
    unary pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    unary list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    unary list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    unary list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    unary update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    absent checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse = "CheckpointContainer";
    absent checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse = "CheckpointPod";
    absent restore_pod(RestorePodRequest) -> RestorePodResponse = "RestorePod";
    stream stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse as StreamPodSandboxesStream;
    stream stream_containers(StreamContainersRequest) -> StreamContainersResponse as StreamContainersStream;
    stream stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse as StreamContainerStatsStream;
    stream stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse as StreamPodSandboxStatsStream;
    stream get_container_events(GetEventsRequest) -> ContainerEventResponse as GetContainerEventsStream;
    stream stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse as StreamPodSandboxMetricsStream;
}}

service! { ImageService {
    unary list_images(ListImagesRequest) -> ListImagesResponse;
    unary image_status(ImageStatusRequest) -> ImageStatusResponse;
    unary pull_image(PullImageRequest) -> PullImageResponse;
    unary remove_image(RemoveImageRequest) -> RemoveImageResponse;
    unary image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    stream stream_images(StreamImagesRequest) -> StreamImagesResponse as StreamImagesStream;
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
                // Routine for a kubelet.
                Code::NotFound | Code::Unimplemented => {
                    tracing::debug!(rpc = name, ms, code = ?status.code(), "{}", status.message());
                }
                code => tracing::warn!(rpc = name, ms, ?code, "{}", status.message()),
            }
            Err(status)
        }
    }
}
