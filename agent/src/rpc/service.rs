//! The service itself: each call reads its request, has the module do it, and answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::agent_server::Agent as Service;
use bulkhead_proto::agent::*;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::agent::Agent;
use super::events::MemoryDemands;
use super::{container, events, sandbox, stats, status, terminal};

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Service for Agent {
    async fn hello(&self, _: Request<HelloRequest>) -> RpcResult<HelloResponse> {
        Ok(Response::new(sandbox::hello()))
    }

    async fn setup_sandbox(
        &self,
        request: Request<SetupSandboxRequest>,
    ) -> RpcResult<SetupSandboxResponse> {
        self.setup(request.into_inner())
            .await
            .map_err(status::of_sandbox)?;
        Ok(Response::new(SetupSandboxResponse {}))
    }

    async fn mount_layers(
        &self,
        request: Request<MountLayersRequest>,
    ) -> RpcResult<MountLayersResponse> {
        let disks = &self.containers().disks;
        for LayerFile { serial, file } in request.into_inner().layers {
            let mounted = disks.mount_layer_file(&serial, file.into()).await;
            mounted.map_err(status::of_disk)?;
        }
        Ok(Response::new(MountLayersResponse {}))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> RpcResult<CreateContainerResponse> {
        let user = self
            .containers()
            .create(request.into_inner())
            .await
            .map_err(status::of_container)?;
        Ok(Response::new(CreateContainerResponse { user }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> RpcResult<StartContainerResponse> {
        let id = request.into_inner().container_id;
        let started_at_unix_ns = self
            .containers()
            .start(&id)
            .await
            .map_err(status::of_container)?;
        Ok(Response::new(StartContainerResponse { started_at_unix_ns }))
    }

    async fn signal_process(
        &self,
        request: Request<SignalProcessRequest>,
    ) -> RpcResult<SignalProcessResponse> {
        let SignalProcessRequest {
            process,
            signal,
            all,
        } = request.into_inner();
        let ProcessRef {
            container_id,
            exec_id,
        } = process.unwrap_or_default();
        self.containers()
            .signal(&container_id, &exec_id, signal, all)
            .map_err(status::of_container)?;
        Ok(Response::new(SignalProcessResponse {}))
    }

    async fn delete_container(
        &self,
        request: Request<DeleteContainerRequest>,
    ) -> RpcResult<DeleteContainerResponse> {
        let DeleteContainerRequest {
            container_id,
            release_disks,
            release_layers,
        } = request.into_inner();
        self.containers()
            .delete(&container_id, &release_layers, &release_disks)
            .await
            .map_err(status::of_container)?;
        Ok(Response::new(DeleteContainerResponse {}))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> RpcResult<ListContainersResponse> {
        let containers = self.containers().all();
        let containers = containers.iter().map(|one| container::state(one)).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn update_container(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> RpcResult<UpdateContainerResponse> {
        let UpdateContainerRequest {
            container_id,
            resources,
        } = request.into_inner();
        container::update(self.containers(), &container_id, &resources)
            .map_err(status::of_container)?;
        Ok(Response::new(UpdateContainerResponse {}))
    }

    async fn put_volume(
        &self,
        request: Request<Streaming<PutVolumeRequest>>,
    ) -> RpcResult<PutVolumeResponse> {
        self.containers()
            .volumes
            .copies
            .put(request.into_inner())
            .await
            .map_err(status::of_volume)?;
        Ok(Response::new(PutVolumeResponse {}))
    }

    async fn resize_volume(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> RpcResult<ResizeVolumeResponse> {
        let ResizeVolumeRequest { name, bytes } = request.into_inner();
        let resized = self.containers().volumes.resize_memory(&name, bytes).await;
        resized.map_err(status::of_volume)?;
        Ok(Response::new(ResizeVolumeResponse {}))
    }

    async fn sync_volumes(&self, _: Request<SyncVolumesRequest>) -> RpcResult<SyncVolumesResponse> {
        let synced = self.containers().volumes.sync().await;
        synced.map_err(status::of_volume)?;
        Ok(Response::new(SyncVolumesResponse {}))
    }

    async fn resize_terminal(
        &self,
        request: Request<ResizeTerminalRequest>,
    ) -> RpcResult<ResizeTerminalResponse> {
        terminal::resize(self.containers(), &request.into_inner()).map_err(status::of_container)?;
        Ok(Response::new(ResizeTerminalResponse {}))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn events(&self, request: Request<EventsRequest>) -> RpcResult<Self::EventsStream> {
        let from = request.into_inner().from_sequence;
        Ok(Response::new(events::events(
            Arc::clone(self.containers()),
            from,
        )))
    }

    async fn stats(&self, request: Request<StatsRequest>) -> RpcResult<StatsResponse> {
        let StatsRequest {
            container_ids,
            detailed,
        } = request.into_inner();
        stats::collect(self.containers(), &self.0.usage, &container_ids, detailed)
            .await
            .map(Response::new)
            .map_err(status::of_container)
    }

    type WatchMemoryStream = MemoryDemands;

    async fn watch_memory(
        &self,
        _: Request<WatchMemoryRequest>,
    ) -> RpcResult<Self::WatchMemoryStream> {
        Ok(Response::new(events::memory_demands(
            self.0.memory.demand(),
        )))
    }

    async fn resize_guest(
        &self,
        request: Request<ResizeGuestRequest>,
    ) -> RpcResult<ResizeGuestResponse> {
        self.resize(request.into_inner())
            .await
            .map(Response::new)
            .map_err(status::of_sandbox)
    }

    async fn adjust_clock(
        &self,
        request: Request<AdjustClockRequest>,
    ) -> RpcResult<AdjustClockResponse> {
        self.adjust_clock(request.into_inner())
            .map(Response::new)
            .map_err(status::of_sandbox)
    }

    async fn power_off(&self, _: Request<PowerOffRequest>) -> RpcResult<PowerOffResponse> {
        self.containers().end_all(Duration::ZERO).await;
        self.0.power_off.notify_one();
        Ok(Response::new(PowerOffResponse {}))
    }
}
