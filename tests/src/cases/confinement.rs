//! What confines a container beyond its capabilities: AppArmor profiles of the node in the guest,
//! and a user namespace of the pod's own.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::Command,
};

use bulkhead_proto::cri::{
    Capability, IdMapping, Int64Value, LinuxContainerConfig, LinuxContainerSecurityContext, Mount,
    NamespaceMode, NamespaceOption, PodSandboxConfig, SecurityProfile, UserNamespace,
    security_profile::ProfileType,
};
use tonic::Code;

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("security", apparmor_profiles_of_the_node_hold_in_the_guest),
        test!("security", a_pod_can_have_users_of_its_own),
    ]
}

/// A profile that forbids all writing, as the parser takes it.
fn no_writes(name: &str) -> String {
    format!(
        "profile {name} flags=(attach_disconnected) {{\n  file,\n  capability,\n  network,\n  \
         signal,\n  deny /** w,\n}}\n"
    )
}

/// The text of a profile, gone with the test.
struct Text(String);

impl Text {
    fn write(directory: &str, name: &str) -> Result<Self, Failure> {
        fs::create_dir_all(directory)?;
        let path = format!("{directory}/{name}");
        fs::write(&path, no_writes(name))?;
        Ok(Self(path))
    }

    /// Loads it into the node's kernel, or takes it out again.
    fn parse(&self, action: &str) -> Result<(), Failure> {
        let done = Command::new("apparmor_parser")
            .args([action, "--skip-cache", &self.0])
            .output()?;
        check!(done.status.success(), "apparmor_parser: {done:?}");
        Ok(())
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn apparmor_profiles_of_the_node_hold_in_the_guest(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("apparmor");
    let id = cri.run_pod(config.clone()).await?;
    let confined = |name: &str, security: LinuxContainerSecurityContext| {
        let mut config = script(name, BUSYBOX, "sleep 1000");
        config.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                // So that PID 1 is the container's own.
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                ..security
            }),
            ..LinuxContainerConfig::default()
        });
        config
    };
    let localhost = |profile: &str| LinuxContainerSecurityContext {
        apparmor: Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: format!("localhost/{profile}"),
        }),
        ..LinuxContainerSecurityContext::default()
    };
    // One the node's kernel has loaded, where it has AppArmor; its text is out of the daemon's way.
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let mut profiles = Vec::new();
    let loaded = Text::write("/tmp", "bulkhead-test-loaded")?;
    if enabled.is_ok_and(|text| text.starts_with('Y')) {
        loaded.parse("--replace")?;
        profiles.push(("loaded", localhost("bulkhead-test-loaded")));
    }
    // One that is only a text, by the older field.
    let _written = Text::write("/etc/apparmor.d", "bulkhead-test-written")?;
    #[allow(deprecated)]
    let written = LinuxContainerSecurityContext {
        apparmor_profile: "localhost/bulkhead-test-written".to_owned(),
        ..LinuxContainerSecurityContext::default()
    };
    profiles.push(("written", written));
    for (name, security) in profiles {
        let made = cri.run(&id, &config, confined(name, security)).await?;
        for process in ["1", "self"] {
            let file = format!("/proc/{process}/attr/apparmor/current");
            let current = cri.shell(&made, &format!("cat {file}")).await?;
            let expected = format!("bulkhead-test-{name} (enforce)");
            check!(current.trim() == expected, "{process}: {current}");
        }
        let done = cri.exec(&made, &["/bin/touch", "/tmp/file"]).await?;
        check!(done.exit_code != 0, "{name}: a write was allowed");
    }
    // What cannot be had is refused, and a privileged container has none.
    let missing = cri.create(
        &id,
        &config,
        confined("missing", localhost("bulkhead-test-none")),
    );
    let refused = missing.await.err().map(|status| status.code());
    check!(refused == Some(Code::NotFound), "{refused:?}");
    let mut privileged_pod = config.clone();
    let linux = privileged_pod.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let privileged = LinuxContainerSecurityContext {
        privileged: true,
        ..localhost("bulkhead-test-none")
    };
    let made = cri
        .run(&id, &privileged_pod, confined("privileged", privileged))
        .await?;
    cri.shell(&made, "touch /tmp/file").await?;
    if Path::new("/sys/kernel/security/apparmor/.remove").exists() {
        loaded.parse("--remove")?;
    }
    Ok(cri.remove_pod(&id).await?)
}

fn users(mode: NamespaceMode, mappings: &[(u32, u32, u32)]) -> NamespaceOption {
    let mappings: Vec<_> = mappings
        .iter()
        .map(|&(container_id, host_id, length)| IdMapping {
            host_id,
            container_id,
            length,
        })
        .collect();
    NamespaceOption {
        userns_options: Some(UserNamespace {
            mode: mode.into(),
            uids: mappings.clone(),
            gids: mappings,
        }),
        ..NamespaceOption::default()
    }
}

fn with_users(name: &str, options: &NamespaceOption) -> PodSandboxConfig {
    let mut config = pod(name);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options = Some(options.clone());
    config
}

async fn a_pod_can_have_users_of_its_own(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    for bad in [
        users(NamespaceMode::Pod, &[(0, 1000, 10), (0, 2000, 10)]),
        users(NamespaceMode::Pod, &[(1, 1000, 10)]),
        users(NamespaceMode::Container, &[]),
        users(NamespaceMode::Target, &[]),
    ] {
        let refused = cri.run_pod(with_users("bad-users", &bad)).await;
        let code = refused.as_ref().err().map(tonic::Status::code);
        check!(code == Some(Code::InvalidArgument), "{bad:?}: {refused:?}");
    }

    cri.pull(BUSYBOX).await?;
    let options = users(NamespaceMode::Pod, &[(0, 200_000, 65_536)]);
    let config = with_users("users", &options);
    let id = cri.run_pod(config.clone()).await?;
    let made = |name: &str, pid: NamespaceMode, user: i64, capabilities: &[&str]| {
        let mut config = script(name, BUSYBOX, "echo hello >/dev/stdout; sleep 1000");
        config.working_dir = "/srv/made".to_owned();
        config.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: pid.into(),
                    ..options.clone()
                }),
                run_as_user: Some(Int64Value { value: user }),
                supplemental_groups: vec![1234],
                capabilities: Some(Capability {
                    add_capabilities: capabilities.iter().map(|&name| name.to_owned()).collect(),
                    ..Capability::default()
                }),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        });
        config
    };
    let mut root = made("root", NamespaceMode::Pod, 0, &["SYS_ADMIN", "NET_ADMIN"]);
    let volume = Path::new("/tmp").join(format!("users-volume-{}", std::process::id()));
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("given"), "")?;
    chown(volume.join("given"), Some(5), Some(6))?;
    root.mounts = vec![
        Mount {
            container_path: "/volume".to_owned(),
            host_path: volume.display().to_string(),
            ..Mount::default()
        },
        Mount {
            container_path: "/image".to_owned(),
            readonly: true,
            image: Some(crate::cri::spec(BUSYBOX)),
            ..Mount::default()
        },
    ];
    let root = cri.run(&id, &config, root).await?;
    let shown = cri
        .shell(
            &root,
            "stat -c %u:%g /volume/given /image/bin/busybox; touch /volume/new; stat -c %u /volume/new",
        )
        .await?;
    check!(shown == "5:6\n0:0\n0\n", "owners in volumes: {shown}");
    let owner = fs::metadata(volume.join("new"))?.uid();
    check!(owner == 0, "on the node it belongs to {owner}");
    fs::remove_dir_all(&volume)?;
    let shown = cri
        .shell(
            &root,
            "set -e; cat /proc/self/uid_map /proc/1/gid_map; id -u; stat -c %u /bin/busybox . /etc/hosts; \
             touch /made; stat -c %u /made; chown 7:8 /made; stat -c %u:%g /made; mount -t tmpfs none /mnt 2>/dev/null || { mkdir /mnt; mount -t tmpfs none /mnt; }; \
             echo 1 >/dev/shm/x; echo >>/etc/hosts; ls /sys/class/net /dev/mqueue /sys/fs/cgroup >/dev/null",
        )
        .await?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let expected = "0 200000 65536 0 200000 65536 0 0 0 0 0 7:8";
    check!(words.join(" ") == expected, "{shown}");
    // Root in there is nobody to the guest's kernel.
    let done = cri.exec(&root, &["/bin/hostname", "changed"]).await?;
    check!(done.exit_code != 0, "the guest's host name was changed");
    // The pod's network belongs to the guest.
    for change in ["ip link set lo down", "brctl addbr br0"] {
        let done = cri.exec(&root, &["/bin/sh", "-c", change]).await?;
        check!(done.exit_code != 0, "{change} was allowed");
    }
    let user = cri.status(&root).await?.user.and_then(|user| user.linux);
    let user = user.unwrap_or_default();
    check!(
        user.uid == 0 && user.supplemental_groups.contains(&1234),
        "{user:?}"
    );

    let mut plain = made("plain", NamespaceMode::Container, 1000, &[]);
    plain.tty = true;
    let plain = cri.run(&id, &config, plain).await?;
    let shown = cri
        .shell(
            &plain,
            "cat /proc/self/uid_map; id -u; id -G; echo $$ >/proc/self/fd/1; cat /proc/1/cmdline | tr '\\0' ' '; \
             timeout 2 nc -l -p 80 </dev/null; [ $? -ne 1 ] && echo bound",
        )
        .await?;
    check!(
        shown.contains("200000") && shown.contains("1234"),
        "{shown}"
    );
    check!(
        ["bound", "sleep 1000"]
            .iter()
            .all(|word| shown.contains(word)),
        "{shown}"
    );

    // Processes are seen as asked, and an id that does not exist is refused.
    let peer = made("peer", NamespaceMode::Pod, 0, &[]);
    let peer = cri.run(&id, &config, peer).await?;
    let seen = cri.shell(&peer, "ps | grep -c 'sleep 100[0]'").await?;
    check!(
        seen.trim() == "2",
        "the other container is not seen: {seen}"
    );
    let mut target = made("target", NamespaceMode::Target, 0, &[]);
    if let Some(options) = target
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|context| context.namespace_options.as_mut())
    {
        options.target_id.clone_from(&plain);
    }
    let target = cri.run(&id, &config, target).await?;
    let seen = cri.shell(&target, "ps | grep -c 'sleep 100[0]'").await?;
    check!(seen.trim() == "2", "the target is not seen: {seen}");
    let nobody = made("nobody", NamespaceMode::Pod, 70_000, &[]);
    let nobody = cri.create(&id, &config, nobody).await?;
    let refused = cri.start(&nobody).await;
    let code = refused.as_ref().err().map(tonic::Status::code);
    check!(code == Some(Code::InvalidArgument), "{refused:?}");
    Ok(cri.remove_pod(&id).await?)
}
