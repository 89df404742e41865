//! The project's own CRI client: both services over the daemon's Unix socket, with the short forms
//! the tests use all the time.

use std::{collections::HashMap, path::Path};

use bulkhead_proto::cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxPodSandboxConfig,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest,
    PullImageRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::Instant};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::Failure;
pub use crate::waiting::{PATIENCE, pause};

/// A connection to a daemon.
#[derive(Debug, Clone)]
pub struct Cri {
    /// `RuntimeService`.
    pub runtime: RuntimeServiceClient<Channel>,
    /// `ImageService`.
    pub images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// If nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, Failure> {
        let socket = socket.to_owned();
        let channel = Endpoint::from_static("http://bulkhead")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            images: ImageServiceClient::new(channel),
        })
    }

    /// Runs a sandbox on the default handler.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run_pod(&self, config: PodSandboxConfig) -> Result<String, Status> {
        self.run_pod_on("", config).await
    }

    /// Runs a sandbox on a handler.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run_pod_on(
        &self,
        handler: &str,
        config: PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.to_owned(),
        };
        let answer = self.runtime.clone().run_pod_sandbox(request).await?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .stop_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// Stops and removes a sandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        self.stop_pod(id).await?;
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .remove_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// A sandbox's status with its verbose information.
    ///
    /// # Errors
    /// The daemon's, or that the answer is empty.
    pub async fn pod_status(
        &self,
        id: &str,
    ) -> Result<(PodSandboxStatus, HashMap<String, String>), Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let answer = self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        let status = answer
            .status
            .ok_or_else(|| Status::data_loss("no status in the answer"))?;
        Ok((status, answer.info))
    }

    /// Creates a container without starting it.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn create(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .start_container(request)
            .await
            .map(drop)
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String, Status> {
        let id = self.create(pod, pod_config, config).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Stops a container.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime
            .clone()
            .remove_container(request)
            .await
            .map(drop)
    }

    /// A container's status.
    ///
    /// # Errors
    /// The daemon's, or that the answer is empty.
    pub async fn status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner();
        answer
            .status
            .ok_or_else(|| Status::data_loss("no status in the answer"))
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn exec(&self, id: &str, cmd: &[&str]) -> Result<ExecSyncResponse, Status> {
        self.exec_for(id, cmd, 60).await
    }

    /// Runs a command with a time limit in seconds.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn exec_for(
        &self,
        id: &str,
        cmd: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// A shell command's standard output; a failure of the command is one of the test.
    ///
    /// # Errors
    /// The daemon's, or what the command said.
    pub async fn shell(&self, id: &str, script: &str) -> Result<String, Failure> {
        let done = self.exec(id, &["/bin/sh", "-c", script]).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if done.exit_code != 0 {
            let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
            let code = done.exit_code;
            return Err(format!("{script:?} exited {code}: {text:?} {complaint:?}").into());
        }
        Ok(text)
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            ..PullImageRequest::default()
        };
        Ok(self
            .images
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// Waits until a container has exited and gives its status.
    ///
    /// # Errors
    /// The daemon's, or that it does not end.
    pub async fn exited(&self, id: &str) -> Result<ContainerStatus, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            pause(
                deadline,
                &format!("container {id} to exit, it is {:?}", status.state()),
            )
            .await?;
        }
    }
}

/// An image by name.
#[must_use]
pub fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    }
}

/// A sandbox's configuration with the least in it; the name also makes the uid.
#[must_use]
pub fn pod(name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    }
}

/// A container's configuration with the least in it.
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(spec(image)),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..ContainerConfig::default()
    }
}

/// A container that runs a shell script.
#[must_use]
pub fn script(name: &str, image: &str, script: &str) -> ContainerConfig {
    container(name, image, &["/bin/sh", "-c", script])
}
