//! What these tests share: starting containers, and what became of them.

use std::path::Path;

use bulkhead_proto::cri::{
    ContainerConfig, ContainerState, ContainerStatus, LinuxContainerSecurityContext,
    PodSandboxConfig,
};

use super::super::logs;
use crate::{Failure, Outcome, check, cri::Cri, suite::Context};

/// Where pods run.
pub(super) const HANDLERS: [&str; 2] = ["kvm", "host"];

pub(super) fn secured(
    mut config: ContainerConfig,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    change(linux.security_context.get_or_insert_default());
    config
}

/// Runs a container to its end, and gives its status and what it said.
pub(super) async fn said(
    context: &Context,
    (id, config, dir): (&str, &PodSandboxConfig, &Path),
    made: ContainerConfig,
) -> Result<(ContainerStatus, String), Failure> {
    let name = made.metadata.clone().unwrap_or_default().name;
    let file = format!("{name}.log");
    let made = context
        .cri
        .run(id, config, logs::logged(made, &file))
        .await?;
    let status = context.cri.exited(&made).await?;
    let text = logs::read(&dir.join(file), "stdout")?;
    Ok((status, String::from_utf8(text)?))
}

/// That a start fails with these words, and that the container then looks as it does on containerd.
pub(super) async fn cannot_start(cri: &Cri, made: &str, words: &str) -> Outcome {
    let answer = cri.start(made).await;
    let told = |error: &tonic::Status| error.message().contains(words);
    check!(answer.as_ref().is_err_and(told), "{words:?}: {answer:?}");
    let status = cri.status(made).await?;
    check!(
        status.state() == ContainerState::ContainerExited
            && (status.exit_code, status.reason.as_str()) == (128, "StartError"),
        "{words:?}: {status:?}"
    );
    check!(status.message.contains(words), "{words:?}: {status:?}");
    check!(
        status.started_at == 0 && status.finished_at > 0,
        "{words:?}: {status:?}"
    );
    Ok(cri.remove(made).await?)
}
