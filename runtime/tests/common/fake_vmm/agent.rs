//! The agent of the fake guest: the pod's calls are answered and written down (`calls` in the
//! VMM's directory), containers are not there.

use std::{fmt::Debug, io::Write as _, path::PathBuf, pin::Pin};

use bulkhead_proto::agent::{
    self as v1,
    agent_server::{Agent, AgentServer},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Debug)]
pub struct Fake {
    root: PathBuf,
    mode: String,
}

impl Fake {
    pub fn new(root: PathBuf, mode: String) -> Self {
        Self { root, mode }
    }

    pub fn service(self) -> AgentServer<Self> {
        AgentServer::new(self)
    }

    fn note(&self, request: &impl Debug) {
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.root.join("calls"))
            .unwrap();
        writeln!(file, "{request:?}").unwrap();
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("the fake agent runs no containers"))
}

#[tonic::async_trait]
impl Agent for Fake {
    async fn hello(&self, _: Request<v1::HelloRequest>) -> Answer<v1::HelloResponse> {
        let version = "fake".to_owned();
        Ok(Response::new(v1::HelloResponse {
            version,
            ..Default::default()
        }))
    }

    async fn setup_sandbox(
        &self,
        request: Request<v1::SetupSandboxRequest>,
    ) -> Answer<v1::SetupSandboxResponse> {
        self.note(request.get_ref());
        match self.mode.as_str() {
            "setup-fails" => Err(Status::invalid_argument("there is no such sysctl")),
            "setup-dies" => {
                std::process::exit(7);
            }
            _ => Ok(Response::new(v1::SetupSandboxResponse {})),
        }
    }

    async fn power_off(&self, _: Request<v1::PowerOffRequest>) -> Answer<v1::PowerOffResponse> {
        Err(Status::unimplemented("the daemon stops the VMM"))
    }

    async fn list_containers(
        &self,
        _: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn stats(&self, _: Request<v1::StatsRequest>) -> Answer<v1::StatsResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn resize_guest(
        &self,
        _: Request<v1::ResizeGuestRequest>,
    ) -> Answer<v1::ResizeGuestResponse> {
        absent()
    }

    type EventsStream = Answers<v1::Event>;

    async fn events(&self, _: Request<v1::EventsRequest>) -> Answer<Self::EventsStream> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn configure_network(
        &self,
        _: Request<v1::ConfigureNetworkRequest>,
    ) -> Answer<v1::ConfigureNetworkResponse> {
        absent()
    }

    async fn add_disks(&self, _: Request<v1::AddDisksRequest>) -> Answer<v1::AddDisksResponse> {
        absent()
    }

    async fn remove_disks(
        &self,
        _: Request<v1::RemoveDisksRequest>,
    ) -> Answer<v1::RemoveDisksResponse> {
        absent()
    }

    async fn create_container(
        &self,
        _: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        absent()
    }

    async fn start_container(
        &self,
        _: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        absent()
    }

    async fn signal_process(
        &self,
        _: Request<v1::SignalProcessRequest>,
    ) -> Answer<v1::SignalProcessResponse> {
        absent()
    }

    async fn delete_container(
        &self,
        _: Request<v1::DeleteContainerRequest>,
    ) -> Answer<v1::DeleteContainerResponse> {
        absent()
    }

    async fn update_container(
        &self,
        _: Request<v1::UpdateContainerRequest>,
    ) -> Answer<v1::UpdateContainerResponse> {
        absent()
    }

    async fn resize_terminal(
        &self,
        _: Request<v1::ResizeTerminalRequest>,
    ) -> Answer<v1::ResizeTerminalResponse> {
        absent()
    }

    async fn put_volume(
        &self,
        _: Request<Streaming<v1::PutVolumeRequest>>,
    ) -> Answer<v1::PutVolumeResponse> {
        absent()
    }

    async fn sync_volumes(
        &self,
        _: Request<v1::SyncVolumesRequest>,
    ) -> Answer<v1::SyncVolumesResponse> {
        absent()
    }
}
