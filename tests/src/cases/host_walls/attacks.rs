//! Images and volumes whose links lead to the node: what the runtime does with their paths stays in
//! the container.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use bulkhead_proto::cri::{
    Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
};

use super::{HOST, bind, capabilities, in_namespaces, with};
use crate::{
    Failure, Outcome,
    cases::{BUSYBOX, image, logs},
    check,
    cri::{pod, script},
    images::recipes::{LINKS, VICTIM},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("host_walls", images_with_links_do_not_touch_the_node),
        test!(
            "host_walls",
            a_working_directory_does_not_leave_the_container
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
                Err(status) if status.message().contains(&format!("/{place}")) => {}
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
