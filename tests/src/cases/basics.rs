//! The life of pods and containers, as the kubelet drives it.

use std::fs;

use bulkhead_proto::cri::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatsFilter, DnsConfig,
    LinuxContainerConfig, LinuxContainerResources, ListContainerStatsRequest,
    ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, RuntimeConfigRequest, StatusRequest, UpdateContainerResourcesRequest,
    UpdateRuntimeConfigRequest, VersionRequest,
};

use super::BUSYBOX;
use crate::{
    Outcome, check,
    cri::{container, pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("basics", the_runtime_says_who_it_is),
        test!("basics", a_pod_and_its_containers_live_and_die),
        test!(
            "basics",
            two_containers_share_the_pods_network_and_host_name
        ),
        test!("basics", exit_codes_reasons_and_times_are_told),
        test!("basics", an_oom_kill_is_told_apart),
        test!("basics", lists_filter),
        test!("basics", limits_hold_in_the_guest_and_can_be_changed),
        test!("basics", stop_signals_and_grace),
    ]
}

async fn the_runtime_says_who_it_is(context: &mut Context) -> Outcome {
    let mut runtime = context.cri.runtime.clone();
    let version = runtime
        .version(VersionRequest::default())
        .await?
        .into_inner();
    check!(
        version.version == "0.1.0" && version.runtime_name == "bulkhead",
        "{version:?}"
    );
    check!(
        !version.runtime_version.is_empty() && version.runtime_api_version == "v1",
        "{version:?}"
    );
    let status = runtime
        .status(StatusRequest { verbose: true })
        .await?
        .into_inner();
    let conditions = status.status.unwrap_or_default().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        check!(
            conditions.iter().any(|c| c.r#type == kind && c.status),
            "{conditions:?}"
        );
    }
    let handlers: Vec<_> = status
        .runtime_handlers
        .iter()
        .map(|h| h.name.as_str())
        .collect();
    check!(
        ["", "kvm", "host"]
            .iter()
            .all(|name| handlers.contains(name)),
        "{handlers:?}"
    );
    let config = runtime
        .runtime_config(RuntimeConfigRequest {})
        .await?
        .into_inner();
    check!(config.linux.is_some(), "{config:?}");
    runtime
        .update_runtime_config(UpdateRuntimeConfigRequest::default())
        .await?;
    Ok(())
}

async fn a_pod_and_its_containers_live_and_die(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let image_id = cri.pull(BUSYBOX).await?;
    let mut config = pod("life");
    config.labels.insert("app".to_owned(), "life".to_owned());
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["svc.cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    if let Some(linux) = &mut config.linux {
        linux
            .sysctls
            .insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    }
    let id = cri.run_pod(config.clone()).await?;
    let (status, info) = cri.pod_status(&id).await?;
    check!(
        status.state() == PodSandboxState::SandboxReady,
        "{status:?}"
    );
    check!(
        status.metadata == config.metadata && status.labels == config.labels,
        "{status:?}"
    );
    check!(status.created_at > 0, "{status:?}");
    check!(
        info.values().any(|text| text.contains("phases")),
        "no phases of the start: {info:?}"
    );

    let made = cri
        .create(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    check!(
        cri.status(&made).await?.state() == ContainerState::ContainerCreated,
        "not created"
    );
    cri.start(&made).await?;
    let status = cri.status(&made).await?;
    check!(
        status.state() == ContainerState::ContainerRunning,
        "{status:?}"
    );
    check!(
        status.created_at > 0 && status.started_at >= status.created_at,
        "{status:?}"
    );
    check!(
        !status.image_ref.is_empty() && status.image_id == image_id,
        "{status:?}"
    );

    let host_kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let guest_kernel = cri.shell(&made, "uname -r").await?;
    check!(
        host_kernel.trim() != guest_kernel.trim(),
        "the host's kernel: {guest_kernel}"
    );
    check!(
        cri.shell(&made, "hostname").await?.trim() == "life",
        "host name"
    );
    let resolv = cri.shell(&made, "cat /etc/resolv.conf").await?;
    for line in [
        "nameserver 10.96.0.10",
        "search svc.cluster.local",
        "options ndots:5",
    ] {
        check!(
            resolv.lines().any(|l| l == line),
            "{line} is not in {resolv:?}"
        );
    }
    let shm = cri
        .shell(&made, "cat /proc/sys/kernel/shm_rmid_forced")
        .await?;
    check!(shm.trim() == "1", "sysctl: {shm}");
    cri.shell(&made, "echo kept > /root/file && grep kept /root/file")
        .await?;

    cri.stop(&made, 1).await?;
    check!(
        cri.status(&made).await?.state() == ContainerState::ContainerExited,
        "not exited"
    );
    cri.remove(&made).await?;
    cri.stop_pod(&id).await?;
    let (status, _) = cri.pod_status(&id).await?;
    check!(
        status.state() == PodSandboxState::SandboxNotready,
        "{status:?}"
    );
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    cri.remove_pod(&id).await?;
    Ok(())
}

async fn two_containers_share_the_pods_network_and_host_name(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("shared");
    let id = cri.run_pod(config.clone()).await?;
    let serve = "mkdir -p /tmp/www && echo from-a > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    cri.run(&id, &config, script("a", BUSYBOX, serve)).await?;
    let b = cri
        .run(&id, &config, script("b", BUSYBOX, "sleep 1000"))
        .await?;
    let fetch = "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://127.0.0.1:8080/ && exit; usleep 300000; done; exit 1";
    let got = cri.shell(&b, fetch).await?;
    check!(got.trim() == "from-a", "{got}");
    check!(
        cri.shell(&b, "hostname").await?.trim() == "shared",
        "host name"
    );
    let own = cri.shell(&b, "ls /tmp").await?;
    check!(
        !own.contains("www"),
        "the writable layers are not shared: {own}"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn exit_codes_reasons_and_times_are_told(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("exits");
    let id = cri.run_pod(config.clone()).await?;
    for (name, text, code, reason) in [
        ("well", "exit 0", 0, "Completed"),
        ("ill", "exit 42", 42, "Error"),
        ("killed", "kill -9 $$", 137, "Error"),
    ] {
        let made = cri.run(&id, &config, script(name, BUSYBOX, text)).await?;
        let status = cri.exited(&made).await?;
        check!(
            status.exit_code == code && status.reason == reason,
            "{name}: {status:?}"
        );
        check!(
            status.finished_at >= status.started_at,
            "{name}: {status:?}"
        );
    }
    Ok(cri.remove_pod(&id).await?)
}

async fn an_oom_kill_is_told_apart(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("oom");
    let id = cri.run_pod(config.clone()).await?;
    let other = cri
        .run(&id, &config, script("other", BUSYBOX, "sleep 1000"))
        .await?;
    let mut hungry = script(
        "hungry",
        BUSYBOX,
        "dd if=/dev/zero of=/dev/null bs=64M count=1",
    );
    hungry.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            ..LinuxContainerResources::default()
        }),
        ..LinuxContainerConfig::default()
    });
    let made = cri.run(&id, &config, hungry).await?;
    let status = cri.exited(&made).await?;
    check!(
        status.reason == "OOMKilled" && status.exit_code == 137,
        "{status:?}"
    );
    let status = cri.status(&other).await?;
    check!(
        status.state() == ContainerState::ContainerRunning,
        "{status:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn lists_filter(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let mut config = pod("lists");
    config.labels.insert("tier".to_owned(), "front".to_owned());
    let id = cri.run_pod(config.clone()).await?;
    let mut made = Vec::new();
    for name in ["one", "two"] {
        let mut container = script(name, BUSYBOX, "sleep 1000");
        container.labels.insert("name".to_owned(), name.to_owned());
        made.push(cri.create(&id, &config, container).await?);
    }
    cri.start(&made[0]).await?;
    let list = async |filter: ContainerFilter| {
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let answer = cri
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner();
        Ok::<_, tonic::Status>(
            answer
                .containers
                .into_iter()
                .map(|c| c.id)
                .collect::<Vec<_>>(),
        )
    };
    let state = |state: ContainerState| {
        Some(ContainerStateValue {
            state: state.into(),
        })
    };
    let by_state = ContainerFilter {
        state: state(ContainerState::ContainerRunning),
        ..ContainerFilter::default()
    };
    check!(list(by_state).await? == made[..1], "by state");
    let by_label = ContainerFilter {
        label_selector: [("name".to_owned(), "two".to_owned())].into(),
        ..ContainerFilter::default()
    };
    check!(list(by_label).await? == made[1..], "by label");
    let by_pod = ContainerFilter {
        pod_sandbox_id: id.clone(),
        ..ContainerFilter::default()
    };
    check!(list(by_pod).await?.len() == 2, "by pod");
    let other = ContainerFilter {
        pod_sandbox_id: "0".repeat(32),
        ..ContainerFilter::default()
    };
    check!(list(other).await?.is_empty(), "by another pod");

    let filter = PodSandboxFilter {
        state: Some(PodSandboxStateValue {
            state: PodSandboxState::SandboxReady.into(),
        }),
        label_selector: [("tier".to_owned(), "front".to_owned())].into(),
        ..PodSandboxFilter::default()
    };
    let request = ListPodSandboxRequest {
        filter: Some(filter),
    };
    let pods = cri
        .runtime
        .clone()
        .list_pod_sandbox(request)
        .await?
        .into_inner()
        .items;
    check!(pods.len() == 1 && pods[0].id == id, "{pods:?}");

    let filter = ContainerStatsFilter {
        pod_sandbox_id: id.clone(),
        ..ContainerStatsFilter::default()
    };
    let request = ListContainerStatsRequest {
        filter: Some(filter),
    };
    let stats = cri
        .runtime
        .clone()
        .list_container_stats(request)
        .await?
        .into_inner()
        .stats;
    let running = stats
        .iter()
        .find(|s| s.attributes.as_ref().is_some_and(|a| a.id == made[0]));
    let memory = running.and_then(|s| s.memory.as_ref()?.working_set_bytes.as_ref());
    check!(memory.is_some_and(|bytes| bytes.value > 0), "{stats:?}");
    let cpu = running.and_then(|s| s.cpu.as_ref()?.usage_core_nano_seconds.as_ref());
    check!(
        cpu.is_some_and(|nanoseconds| nanoseconds.value > 0),
        "{stats:?}"
    );
    let disk = running.and_then(|s| s.writable_layer.as_ref()?.used_bytes.as_ref());
    check!(disk.is_some(), "{stats:?}");
    Ok(cri.remove_pod(&id).await?)
}

async fn limits_hold_in_the_guest_and_can_be_changed(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("limits");
    let id = cri.run_pod(config.clone()).await?;
    let mut limited = script("limited", BUSYBOX, "sleep 1000");
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    };
    limited.linux = Some(LinuxContainerConfig {
        resources: Some(resources.clone()),
        ..LinuxContainerConfig::default()
    });
    let made = cri.run(&id, &config, limited).await?;
    let read = async |file: &str| {
        cri.shell(&made, &format!("cat /sys/fs/cgroup/{file}"))
            .await
    };
    check!(
        read("memory.max").await?.trim() == (64 << 20).to_string(),
        "memory.max"
    );
    check!(read("cpu.max").await?.trim() == "50000 100000", "cpu.max");
    let told = cri
        .status(&made)
        .await?
        .resources
        .and_then(|r| r.linux)
        .unwrap_or_default();
    check!(
        told.memory_limit_in_bytes == 64 << 20 && told.cpu_quota == 50_000,
        "{told:?}"
    );
    let changed = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_quota: 80_000,
        ..resources
    };
    let request = UpdateContainerResourcesRequest {
        container_id: made.clone(),
        linux: Some(changed),
        ..UpdateContainerResourcesRequest::default()
    };
    cri.runtime
        .clone()
        .update_container_resources(request)
        .await?;
    check!(
        read("memory.max").await?.trim() == (96 << 20).to_string(),
        "memory.max after"
    );
    check!(
        read("cpu.max").await?.trim() == "80000 100000",
        "cpu.max after"
    );
    let told = cri
        .status(&made)
        .await?
        .resources
        .and_then(|r| r.linux)
        .unwrap_or_default();
    check!(told.memory_limit_in_bytes == 96 << 20, "{told:?}");
    Ok(cri.remove_pod(&id).await?)
}

async fn stop_signals_and_grace(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let image = super::image("entrypoint");
    cri.pull(&image).await?;
    let config = pod("signals");
    let id = cri.run_pod(config.clone()).await?;
    // The image's stop signal is SIGUSR1.
    let ready = "until [ -e /tmp/ready ]; do usleep 10000; done";
    let trap = "trap 'exit 7' USR1; touch /tmp/ready; while :; do usleep 100000; done";
    let made = cri.run(&id, &config, script("usr1", &image, trap)).await?;
    cri.shell(&made, ready).await?;
    cri.stop(&made, 30).await?;
    let status = cri.status(&made).await?;
    check!(
        status.exit_code == 7,
        "the stop signal did not arrive: {status:?}"
    );
    let deaf = "trap '' USR1 TERM; touch /tmp/ready; while :; do usleep 100000; done";
    let made = cri.run(&id, &config, script("deaf", &image, deaf)).await?;
    cri.shell(&made, ready).await?;
    cri.stop(&made, 1).await?;
    let status = cri.status(&made).await?;
    check!(status.exit_code == 137, "{status:?}");
    // Entrypoint, command, environment and directory of the image.
    let made = cri
        .run(&id, &config, container("image", &image, &[]))
        .await?;
    check!(
        cri.exited(&made).await?.exit_code == 0,
        "the image's own command"
    );
    let env = script(
        "env",
        &image,
        "[ \"$FROM_IMAGE\" = yes ] && [ \"$(pwd)\" = /srv ]",
    );
    let made = cri.run(&id, &config, env).await?;
    check!(
        cri.exited(&made).await?.exit_code == 0,
        "the image's environment and directory"
    );
    Ok(cri.remove_pod(&id).await?)
}
