//! What keeps a container on the handler `host` from the node: the default AppArmor profile, no
//! io_uring, limits that hold, and images and volumes that try to lead the runtime elsewhere.

mod attacks;
mod default_profile;
mod devices;
mod limits;
mod support;

use std::{fs, process::Command};

use bulkhead_proto::cri::{
    LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, SecurityProfile,
    security_profile::ProfileType,
};
use tonic::Code;

use self::support::{HOST, in_namespaces, privileged_pod};
use super::{
    BUSYBOX,
    contexts::{capabilities, profile, with},
    image,
};
use crate::{
    Failure, Outcome, check,
    cri::{Cri, pod, script},
    host::{Host, Options},
    suite::{Context, Skip, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    let own = vec![
        test!("host_walls", the_default_apparmor_profile_confines),
        test!("host_walls", io_uring_without_a_profile_is_refused),
    ];
    [
        own,
        default_profile::tests(),
        limits::tests(),
        attacks::tests(),
        devices::tests(),
    ]
    .concat()
}

const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PROFILE: &str = "bulkhead-default";

async fn the_default_apparmor_profile_confines(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.starts_with('Y')) {
        return Err(Skip("the node's kernel has no AppArmor".to_owned()).into());
    }
    let told = Command::new(context.host.bulkhead())
        .args(["check", "--config"])
        .arg(context.host.config_file())
        .output()?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let line = told.lines().find(|line| line.contains("AppArmor"));
    check!(line.is_some_and(|line| line.starts_with("ok")), "{told}");
    cri.pull(BUSYBOX).await?;
    let config = pod("apparmor-host");
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    // What can mount, and write where the kernel is steered, but for the profile.
    let strong = |apparmor| LinuxContainerSecurityContext {
        capabilities: capabilities(&["SYS_ADMIN"], &[]),
        apparmor,
        ..LinuxContainerSecurityContext::default()
    };
    let sleep = |name: &str| {
        let text = "cat /proc/self/attr/current >/began; sleep 1000";
        script(name, BUSYBOX, text)
    };
    let levers = [
        "mkdir -p /mnt && mount -t tmpfs none /mnt",
        "echo h >/proc/sysrq-trigger",
        "cat /proc/sys/kernel/printk >/proc/sys/kernel/printk",
    ];
    for (name, asked) in [
        ("none-said", None),
        ("default", profile(ProfileType::RuntimeDefault)),
    ] {
        let made = cri
            .run(&id, &config, with(sleep(name), strong(asked)))
            .await?;
        // Of the container's own process, and of an exec.
        let began = "until [ -s /began ]; do usleep 10000; done; cat /began";
        for read in [began, "cat /proc/self/attr/current"] {
            let current = cri.shell(&made, read).await?;
            check!(
                current.trim() == format!("{PROFILE} (enforce)"),
                "{name}, {read}: {current}"
            );
        }
        for lever in levers {
            let done = cri.exec(&made, &["/bin/sh", "-c", lever]).await?;
            check!(done.exit_code != 0, "{name}: {lever} was allowed");
        }
        // What programs do all the time.
        cri.shell(
            &made,
            "set -e; cat /proc/meminfo /proc/1/status /proc/self/mountinfo >/dev/null; \
             echo 500 >/proc/self/oom_score_adj; echo other >/proc/self/comm; \
             echo x >/tmp/x; ln /tmp/x /tmp/y; chmod 600 /tmp/y; rm /tmp/x; \
             sleep 100 & kill -9 $!; nc -l -p 4321 </dev/null >/dev/null & kill $!",
        )
        .await?;
    }
    let made = cri
        .run(
            &id,
            &config,
            with(
                sleep("unconfined"),
                strong(profile(ProfileType::Unconfined)),
            ),
        )
        .await?;
    let of_privileged = LinuxContainerSecurityContext {
        privileged: true,
        ..strong(profile(ProfileType::RuntimeDefault))
    };
    let privileged = cri
        .run(
            &id,
            &privileged_pod(&config),
            with(sleep("privileged"), of_privileged),
        )
        .await?;
    // A profile by name is one that the node's kernel has, and none is loaded into it for a pod.
    let local = |name: &str| {
        Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: name.to_owned(),
        })
    };
    let absent = with(sleep("absent"), strong(local("nowhere-loaded")));
    let refused = cri.create(&id, &config, absent).await;
    check!(
        refused.as_ref().is_err_and(|error| {
            error.code() == Code::InvalidArgument && error.message().contains("nowhere-loaded")
        }),
        "{refused:?}"
    );
    let there = with(sleep("there"), strong(local(PROFILE)));
    let there = cri.run(&id, &config, there).await?;
    let current = cri.shell(&there, "cat /proc/self/attr/current").await?;
    check!(
        current.trim() == format!("{PROFILE} (enforce)"),
        "{current}"
    );
    for made in [made, privileged] {
        let current = cri.shell(&made, "cat /proc/self/attr/current").await?;
        check!(current.trim() == "unconfined", "{current}");
        for lever in levers {
            cri.shell(&made, lever).await?;
        }
    }
    cri.remove_pod(&id).await?;

    // What takes unknown profiles out of the kernel does not leave later containers without.
    fs::write("/sys/kernel/security/apparmor/.remove", PROFILE)?;
    check!(
        !fs::read_to_string(LOADED)?.contains(PROFILE),
        "it is still loaded"
    );
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let made = cri.run(&id, &config, sleep("again")).await?;
    let current = cri.shell(&made, "cat /proc/self/attr/current").await?;
    check!(current.starts_with(PROFILE), "{current}");
    Ok(cri.remove_pod(&id).await?)
}

/// `io_uring_setup(1, NULL)`: EFAULT where it is allowed, EPERM where it is not.
const SETUP: [&str; 4] = ["/tools/system-call", "425", "1", "0"];

async fn io_uring(cri: &Cri, id: &str) -> Result<String, Failure> {
    let done = cri.exec(id, &SETUP).await?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

async fn io_uring_without_a_profile_is_refused(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let walls = image("walls");
    cri.pull(&walls).await?;
    let sleep = |name: &str| script(name, &walls, "sleep 1000");
    let config = pod("io-uring");
    let asked = |seccomp| LinuxContainerSecurityContext {
        seccomp,
        ..LinuxContainerSecurityContext::default()
    };
    let privileged = LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    };
    for (handler, without) in [("kvm", "-14"), (HOST, "-1")] {
        let id = cri.run_pod_on(handler, config.clone()).await?;
        for (name, security, expected) in [
            ("none-said", asked(None), without),
            (
                "unconfined",
                asked(profile(ProfileType::Unconfined)),
                without,
            ),
            ("default", asked(profile(ProfileType::RuntimeDefault)), "-1"),
            ("privileged", privileged.clone(), "-14"),
        ] {
            let made = cri
                .run(&id, &privileged_pod(&config), with(sleep(name), security))
                .await?;
            let told = io_uring(cri, &made).await?;
            check!(told == expected, "{handler}, {name}: {told}");
            // Nothing else is refused in its place: move_pages of no page.
            let done = cri
                .exec(&made, &["/tools/system-call", "279", "0", "0"])
                .await?;
            let told = String::from_utf8_lossy(&done.stdout).trim().to_owned();
            check!(
                (told == "-1") == (name == "default"),
                "{handler}, {name}: move_pages {told}"
            );
        }
        cri.remove_pod(&id).await?;
    }
    let options = Options {
        sections: "[host]\nallow_io_uring = true\n".to_owned(),
        ..Options::default()
    };
    let mut host = Host::start("iouring", &context.results, options).await?;
    let cri = host.cri().await?;
    cri.pull(&walls).await?;
    // Without a network of this second node's.
    let config = in_namespaces(
        "io-uring-allowed",
        NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        },
    );
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let made = cri.run(&id, &config, sleep("allowed")).await?;
    let told = io_uring(&cri, &made).await?;
    check!(told == "-14", "allowed by the configuration: {told}");
    cri.remove_pod(&id).await?;
    host.stop_daemon().await
}
