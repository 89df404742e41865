//! Images and volumes whose links lead to the node: what the runtime does with their paths stays in
//! the container.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use bulkhead_proto::cri::{
    ContainerState, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
};

use super::{
    super::contexts::{capabilities, with},
    support::{HOST, bind, in_namespaces},
};
use crate::{
    Failure, Outcome,
    cases::{BUSYBOX, image, logs},
    check,
    cri::{pod, script},
    images::recipes::{LINKS, VICTIM},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("host_walls", images_with_links_do_not_touch_the_node),
        test!(
            "host_walls",
            a_working_directory_does_not_leave_the_container
        ),
        test!(
            "host_walls",
            a_mount_point_swapped_while_it_is_made_stays_inside,
            LIMIT * 2
        ),
    ]
}

/// A directory with all that can be told of what is in it.
fn told(dir: &Path, into: &mut Vec<String>) -> Result<(), Failure> {
    let meta = fs::symlink_metadata(dir)?;
    let content = if meta.is_file() {
        String::from_utf8_lossy(&fs::read(dir)?).into_owned()
    } else {
        String::new()
    };
    into.push(format!(
        "{} {:o} {}:{} {} {}.{} {} {content:?}",
        dir.display(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.ino(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.rdev(),
    ));
    if meta.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(dir)?.flatten().map(|e| e.path()).collect();
        entries.sort();
        for entry in entries {
            told(&entry, into)?;
        }
    }
    Ok(())
}

async fn images_with_links_do_not_touch_the_node(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let victim = Path::new(VICTIM);
    for dir in ["shm", "pts", "fs/cgroup", "mqueue", "x"] {
        fs::create_dir_all(victim.join(dir))?;
    }
    for file in [
        "ptmx",
        "null",
        "hosts",
        "hostname",
        "resolv.conf",
        "passwd",
        "x/file",
    ] {
        fs::write(victim.join(file), "the node's\n")?;
    }
    let snapshot = || -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        told(victim, &mut all)?;
        Ok(all)
    };
    let volume = context.host.dir().join("links");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("mine"), "mine\n")?;
    let before = snapshot()?;
    // All of them are tried, so that a fault shows how far it reaches.
    let mut wrong = Vec::new();
    for handler in [HOST, "kvm"] {
        let config = pod(&format!("links-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        for (name, place, _) in LINKS {
            cri.pull(&image(name)).await?;
            let mut made = script(name, &image(name), "sleep 1000");
            let with_volume = matches!(place, "etc" | "tmp" | "var/run");
            if with_volume {
                made.mounts = vec![bind(&volume, &format!("/{place}/x"), false)];
            }
            let what = format!("{name} on {handler}");
            match cri.create(&id, &config, made).await {
                Ok(_) if matches!(place, "proc" | "sys") => {
                    wrong.push(format!("{what} is accepted"));
                }
                Ok(made) => {
                    if let Err(status) = cri.start(&made).await {
                        wrong.push(format!("{what} does not start: {status:?}"));
                    } else {
                        let read = format!("cat /{place}/x/mine");
                        let read = if with_volume { &read } else { "echo mine" };
                        let seen = cri.shell(&made, read).await;
                        if !seen.as_ref().is_ok_and(|text| text == "mine\n") {
                            wrong.push(format!("{what} does not see its volume: {seen:?}"));
                        }
                        // What the container writes there stays in it.
                        let write = format!("echo x >/{place}/new");
                        cri.exec(&made, &["/bin/sh", "-c", &write]).await?;
                        cri.stop(&made, 0).await?;
                    }
                    cri.remove(&made).await?;
                }
                // Through a link, what is hidden there could be shown again.
                Err(status)
                    if matches!(place, "proc" | "sys")
                        && status.message().contains("must be a plain directory") => {}
                Err(status)
                    if !matches!(place, "proc" | "sys")
                        && status.message().contains(&format!("/{place}")) => {}
                Err(status) => {
                    wrong.push(format!("{what} is refused, and not by name: {status:?}"));
                }
            }
            let now = snapshot()?;
            if now != before {
                wrong.push(format!("{what} changed the node: {now:#?}"));
                break;
            }
        }
        cri.remove_pod(&id).await?;
    }
    check!(snapshot()? == before, "the node: {before:#?}, {wrong:#?}");
    check!(wrong.is_empty(), "{wrong:#?}");
    Ok(fs::remove_dir_all(victim)?)
}

/// A container of the pod makes a name on a shared volume a directory and a link to the node in turn,
/// while others are created whose mounts and working directory lie below that name.
async fn a_mount_point_swapped_while_it_is_made_stays_inside(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("volume-tools");
    cri.pull(&tools).await?;
    let victim = Path::new(VICTIM);
    fs::create_dir_all(victim)?;
    fs::write(victim.join("file"), "the node's\n")?;
    let mut before = Vec::new();
    told(victim, &mut before)?;
    let other = context.host.dir().join("swapped-other");
    fs::create_dir_all(&other)?;
    fs::write(other.join("mine"), "mine\n")?;
    for handler in [HOST, "kvm"] {
        let volume = context.host.dir().join(format!("swapped-{handler}"));
        fs::create_dir_all(volume.join("x"))?;
        let config = pod(&format!("swapped-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let text = format!(
            "ln -s ../../../../../..{VICTIM} /data/y && exec /tools/meddle swap /data/x /data/y"
        );
        let mut attacker = script("attacker", &tools, &text);
        attacker.mounts = vec![bind(&volume, "/data", false)];
        let attacker = cri.run(&id, &config, attacker).await?;
        let mut made = 0;
        for number in 0..12 {
            let mut config_of = script(
                &format!("late{number}"),
                &tools,
                "cat mine && exec sleep 1000",
            );
            config_of.mounts = vec![
                bind(&volume, "/data", false),
                bind(&other, "/data/x/inner", false),
            ];
            config_of.working_dir = "/data/x/inner".to_owned();
            // Whatever the name is at that moment: a mount in the container, or a refusal.
            let late = match cri.create(&id, &config, config_of).await {
                Ok(late) => late,
                Err(status) => {
                    let text = status.message();
                    check!(text.contains("/data/x/inner"), "{handler}: {status:?}");
                    continue;
                }
            };
            if let Err(status) = cri.start(&late).await {
                let text = status.message();
                check!(text.contains("/data/x/inner"), "{handler}: {status:?}");
            } else {
                made += 1;
                let listed = cri.shell(&late, "cat /proc/self/mountinfo").await;
                // Its working directory is by now perhaps another one, and then it is refused.
                if let Ok(listed) = listed {
                    check!(
                        listed.contains("/inner "),
                        "{handler}: the volume is nowhere: {listed}"
                    );
                }
            }
            cri.remove(&late).await?;
            let mut now = Vec::new();
            told(victim, &mut now)?;
            check!(now == before, "{handler} changed the node: {now:#?}");
        }
        let log = cri.status(&attacker).await?;
        check!(
            log.state() == ContainerState::ContainerRunning,
            "{handler}: nobody swapped: {log:?}"
        );
        check!(made > 0, "{handler}: none of the containers began");
        cri.remove_pod(&id).await?;
    }
    Ok(fs::remove_dir_all(victim)?)
}

async fn a_working_directory_does_not_leave_the_container(context: &mut Context) -> Outcome {
    const MARK: &str = "bulkhead-test-of-the-node";
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let volume = context.host.dir().join("empty");
    fs::create_dir_all(volume.join("w"))?;
    for dir in [volume.clone(), volume.join("w")] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
    }
    fs::write(Path::new("/").join(MARK), "")?;
    let node = NamespaceOption {
        pid: NamespaceMode::Node.into(),
        ..NamespaceOption::default()
    };
    let (logging, logs) = logs::logging_pod(context, "working-directory");
    let mut config = in_namespaces("working-directory", node.clone());
    config.log_directory = logging.log_directory;
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let weak = |name: &str| {
        let mut made = with(
            script(name, BUSYBOX, "sleep 1000"),
            LinuxContainerSecurityContext {
                run_as_user: Some(Int64Value { value: 1000 }),
                capabilities: capabilities(&[], &["ALL"]),
                no_new_privs: true,
                namespace_options: Some(node.clone()),
                ..LinuxContainerSecurityContext::default()
            },
        );
        made.working_dir = "/data/w".to_owned();
        made.mounts = vec![bind(&volume, "/data", false)];
        made
    };
    let made = cri.run(&id, &config, weak("attacker")).await?;
    check!(cri.shell(&made, "pwd").await?.trim() == "/data/w", "pwd");
    for (number, target) in [
        "/proc/1/root",
        "/proc/1/cwd",
        "/proc/self/fd/3",
        "../../../..",
    ]
    .into_iter()
    .enumerate()
    {
        fs::remove_file(volume.join("w"))
            .or_else(|_| fs::rename(volume.join("w"), volume.join("was")))?;
        symlink(target, volume.join("w"))?;
        let listed = cri.exec(&made, &["/bin/ls", "-a"]).await;
        if let Ok(done) = &listed {
            let text = String::from_utf8_lossy(&done.stdout);
            check!(
                !text.contains(MARK),
                "an exec in {target} lists the node's root: {text}"
            );
        }
        // The same for a container that begins there.
        let name = format!("late{number}");
        let mut late = weak(&name);
        late.command = ["/bin/ls", "-a"].map(str::to_owned).to_vec();
        late.log_path = format!("{name}.log");
        let Ok(late) = cri.create(&id, &config, late).await else {
            continue;
        };
        if cri.start(&late).await.is_ok() {
            cri.exited(&late).await?;
            let text = fs::read_to_string(logs.join(format!("{name}.log")))?;
            check!(
                !text.contains(MARK),
                "a container that begins in {target} lists the node's root: {text}"
            );
        }
    }
    fs::remove_file(Path::new("/").join(MARK))?;
    Ok(cri.remove_pod(&id).await?)
}
