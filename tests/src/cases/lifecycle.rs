//! What is told of containers over their lives: image ids, attempts, stop signals, ends.

use bulkhead_proto::cri::{
    ContainerConfig, ContainerState, ImageSpec, ImageStatusRequest, Int64Value,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    ListContainersRequest, ListImagesRequest, Signal,
};
use tonic::Code;

use super::{BUSYBOX, image};
use crate::{
    Outcome, check,
    cri::{pod, script, spec},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!("lifecycle", ids_attempts_signals_and_ends_are_told)]
}

async fn ids_attempts_signals_and_ends_are_told(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let busybox = cri.pull(BUSYBOX).await?;
    let other = image("entrypoint");
    let with_signal = cri.pull(&other).await?;

    // One id for an image, whoever is asked.
    let request = ImageStatusRequest {
        image: Some(spec(BUSYBOX)),
        verbose: false,
    };
    let answer = cri.images.clone().image_status(request).await?;
    let shown = answer.into_inner().image.ok_or("no image")?;
    check!(shown.id == busybox, "{shown:?} against {busybox}");
    check!(shown.repo_tags == [BUSYBOX], "{shown:?}");
    let digests = &shown.repo_digests;
    check!(
        digests
            .iter()
            .all(|digest| digest.starts_with("127.0.0.1:5000/busybox@sha256:"))
            && digests.len() == 1,
        "{shown:?}"
    );
    let mut images = cri.images.clone();
    let listed = images.list_images(ListImagesRequest::default()).await?;
    let listed = listed.into_inner().images;
    check!(listed.iter().any(|image| image.id == busybox), "{listed:?}");

    let config = pod("lifecycle");
    let id = cri.run_pod(config.clone()).await?;
    let by_id = |name: &str, attempt: u32, image: &str, text: &str| {
        let mut config = script(name, image, text);
        config.image = Some(ImageSpec {
            user_specified_image: BUSYBOX.to_owned(),
            ..spec(image)
        });
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt = attempt;
        }
        config
    };
    // A restart is a further attempt of the same name.
    let first = cri
        .run(&id, &config, by_id("again", 0, &busybox, "exit 3"))
        .await?;
    let status = cri.exited(&first).await?;
    check!(
        status.exit_code == 3 && status.reason == "Error",
        "{status:?}"
    );
    let taken = cri
        .create(&id, &config, by_id("again", 0, &busybox, "exit 0"))
        .await;
    let code = taken.as_ref().err().map(tonic::Status::code);
    check!(code == Some(Code::AlreadyExists), "{taken:?}");
    let second = cri
        .run(&id, &config, by_id("again", 1, &busybox, "exit 0"))
        .await?;
    let status = cri.exited(&second).await?;
    let attempt = status.metadata.as_ref().map(|metadata| metadata.attempt);
    check!(
        attempt == Some(1) && status.reason == "Completed",
        "{status:?}"
    );
    let request = ListContainersRequest::default();
    let listed = cri.runtime.clone().list_containers(request).await?;
    for made in listed.into_inner().containers {
        check!(made.image_id == busybox, "{made:?}");
        let status = cri.status(&made.id).await?;
        check!(status.image_id == busybox, "{status:?}");
        let named = status.image.map(|image| image.image);
        check!(named.as_deref() == Some(BUSYBOX), "{named:?}");
    }

    // The signal in force: the request's, the image's, the runtime's.
    let signal = |name: &str, image: &str, signal: Signal| ContainerConfig {
        stop_signal: signal.into(),
        ..by_id(
            name,
            0,
            image,
            "trap 'exit 9' INT; trap 'exit 8' TERM; touch /tmp/ready; while :; do usleep 50000; done",
        )
    };
    for (name, image, asked, told, exit) in [
        ("asked", &busybox, Signal::Sigint, Signal::Sigint, Some(9)),
        (
            "usual",
            &busybox,
            Signal::RuntimeDefault,
            Signal::Sigterm,
            Some(8),
        ),
        (
            "image",
            &with_signal,
            Signal::RuntimeDefault,
            Signal::Sigusr1,
            None,
        ),
    ] {
        let made = cri.create(&id, &config, signal(name, image, asked)).await?;
        let status = cri.status(&made).await?;
        check!(status.stop_signal() == told, "{name}: {status:?}");
        check!(
            status.state() == ContainerState::ContainerCreated,
            "{status:?}"
        );
        if let Some(exit) = exit {
            cri.start(&made).await?;
            let ready = "until [ -e /tmp/ready ]; do usleep 10000; done";
            cri.shell(&made, ready).await?;
            cri.stop(&made, 30).await?;
            let status = cri.status(&made).await?;
            check!(status.exit_code == exit, "{name}: {status:?}");
        }
    }

    // A shell that tells of its command's death by want of memory, and a user whose own the
    // standard streams are.
    let mut hungry = by_id(
        "hungry",
        0,
        &busybox,
        "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?",
    );
    hungry.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            ..LinuxContainerResources::default()
        }),
        ..LinuxContainerConfig::default()
    });
    let hungry = cri.run(&id, &config, hungry).await?;
    let status = cri.exited(&hungry).await?;
    check!(
        status.reason == "OOMKilled" && status.exit_code == 137,
        "{status:?}"
    );
    let mut plain = by_id(
        "plain",
        0,
        &busybox,
        "echo out >/dev/stdout && echo >/dev/stderr",
    );
    plain.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            ..LinuxContainerSecurityContext::default()
        }),
        ..LinuxContainerConfig::default()
    });
    let plain = cri.run(&id, &config, plain).await?;
    let status = cri.exited(&plain).await?;
    check!(
        status.exit_code == 0,
        "its streams are closed to it: {status:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}
