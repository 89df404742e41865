//! A pod's mounts and its working directory: paths in every form, sources that are not there, and
//! what the node's own agents mount.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use bulkhead_proto::cri::ContainerConfig;
use tonic::Code;

use super::{
    super::{
        BUSYBOX,
        volumes::{Scratch, mount, read_only, with},
    },
    support::{HANDLERS, secured},
};
use crate::{
    Failure, Outcome, check,
    cri::{pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("image_config", a_working_directory_is_made, LIMIT * 2),
        test!("image_config", mount_paths_are_cleaned, LIMIT * 2),
        test!("image_config", a_missing_host_path_is_made, LIMIT * 2),
        test!("image_config", the_nodes_dev_stays_as_it_is),
        test!(
            "image_config",
            proc_and_sys_of_the_node_are_read_in_full,
            LIMIT * 2
        ),
    ]
}

async fn a_working_directory_is_made(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("workdir")?;
    for handler in HANDLERS {
        let data = scratch.dir(handler)?;
        let config = pod(&format!("workdir-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = ContainerConfig {
            working_dir: "/data/a/b".to_owned(),
            ..with(
                script("main", BUSYBOX, "pwd > here; sleep 1000"),
                vec![mount(&data, "/data")],
            )
        };
        let main = cri.run(&id, &config, main).await?;
        let seen = cri
            .shell(&main, "pwd; stat -c %a /data/a /data/a/b .")
            .await?;
        check!(seen == "/data/a/b\n755\n755\n755\n", "{handler}: {seen:?}");
        cri.remove_pod(&id).await?;
        let here = fs::read_to_string(data.join("a/b/here"))?;
        check!(here == "/data/a/b\n", "{handler}: {here:?}");
    }
    Ok(())
}

async fn mount_paths_are_cleaned(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("paths")?;
    let source = |name: &str| {
        let path = scratch.dir(name)?;
        fs::write(path.join("name"), name)?;
        Ok::<_, Failure>(path)
    };
    let (one, two, three) = (source("one")?, source("two")?, source("three")?);
    for handler in HANDLERS {
        let config = pod(&format!("paths-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let mounts = vec![
            mount(&one, "/data"),
            mount(&two, "/a/../b"),
            mount(&one, "relative"),
            mount(&three, "/data/"),
            mount(&scratch.0.join("one/../two"), "//x/.//y/"),
        ];
        let main = with(script("main", BUSYBOX, "sleep 1000"), mounts.clone());
        let main = cri.run(&id, &config, main).await?;
        let seen = cri
            .shell(
                &main,
                "for at in /data /b /relative /x/y; do cat $at/name; echo; done; test ! -e /a",
            )
            .await?;
        check!(seen == "three\ntwo\none\ntwo\n", "{handler}: {seen:?}");
        check!(
            cri.status(&main).await?.mounts == mounts,
            "{handler}: the mounts as told"
        );
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn a_missing_host_path_is_made(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("missing")?;
    symlink("nowhere", scratch.0.join("broken"))?;
    fs::write(scratch.0.join("file"), "")?;
    for handler in HANDLERS {
        let config = pod(&format!("missing-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let missing = scratch.0.join(handler).join("cni/bin");
        let main = with(
            script("main", BUSYBOX, "sleep 1000"),
            vec![mount(&missing, "/host/bin")],
        );
        let main = cri.run(&id, &config, main).await?;
        cri.shell(&main, "echo installed > /host/bin/plugin")
            .await?;
        for path in [missing.as_path(), missing.parent().unwrap_or(&missing)] {
            let meta = fs::metadata(path)?;
            let (mode, owner) = (meta.permissions().mode() & 0o7777, (meta.uid(), meta.gid()));
            check!(
                meta.is_dir() && mode == 0o755 && owner == (0, 0),
                "{handler}: {path:?} {mode:o} {owner:?}"
            );
        }
        for (bad, code) in [
            ("broken", Code::NotFound),
            ("broken/below", Code::NotFound),
            ("file/below", Code::InvalidArgument),
        ] {
            let bad = with(
                script("bad", BUSYBOX, "true"),
                vec![mount(&scratch.0.join(bad), "/x")],
            );
            let refused = cri.create(&id, &config, bad).await;
            let is_it = |error: &tonic::Status| error.code() == code;
            check!(refused.as_ref().is_err_and(is_it), "{handler}: {refused:?}");
        }
        check!(!scratch.0.join("nowhere").exists(), "a link was followed");
        cri.remove_pod(&id).await?;
        // As on containerd, it stays.
        let left = fs::read_to_string(missing.join("plugin"))?;
        check!(left == "installed\n", "{handler}: {left:?}");
    }
    Ok(())
}

/// Kind, numbers, mode and owner of everything in the node's /dev but terminals.
fn nodes_of_dev() -> Result<Vec<String>, Failure> {
    let mut list = Vec::new();
    let mut dirs = vec![Path::new("/dev").to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            let kind = meta.file_type();
            let target = fs::read_link(&path).unwrap_or_default();
            list.push(format!(
                "{} {:o} {} {}:{} {}",
                path.display(),
                meta.mode(),
                meta.rdev(),
                meta.uid(),
                meta.gid(),
                target.display()
            ));
            let walked = kind.is_dir() && !path.ends_with("pts") && !path.ends_with("shm");
            if walked && !kind.is_block_device() {
                dirs.push(path);
            }
        }
    }
    list.sort();
    Ok(list)
}

/// What a CSI driver's DaemonSet does.
async fn the_nodes_dev_stays_as_it_is(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("nodes-dev");
    let id = cri.run_pod_on("host", config.clone()).await?;
    let before = nodes_of_dev()?;
    let main = with(
        secured(script("main", BUSYBOX, "sleep 1000"), |context| {
            context.privileged = true;
        }),
        vec![mount(Path::new("/dev"), "/dev")],
    );
    let main = cri.run(&id, &config, main).await?;
    let seen = cri
        .shell(
            &main,
            "echo x > /dev/null && head -c 1 /dev/zero | wc -c && ls /dev/kmsg",
        )
        .await?;
    check!(seen.trim() == "1\n/dev/kmsg", "{seen:?}");
    let during = nodes_of_dev()?;
    check!(before == during, "{before:?}\nthen\n{during:?}");
    cri.stop(&main, 0).await?;
    cri.remove(&main).await?;
    cri.remove_pod(&id).await?;
    let after = nodes_of_dev()?;
    check!(before == after, "{before:?}\nthen\n{after:?}");
    Ok(())
}

/// Their files say that they have no byte, or a page.
async fn proc_and_sys_of_the_node_are_read_in_full(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    for handler in HANDLERS {
        let config = pod(&format!("agent-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = with(
            script("main", BUSYBOX, "sleep 1000"),
            vec![
                read_only(mount(Path::new("/proc"), "/host/proc")),
                read_only(mount(Path::new("/sys"), "/host/sys")),
                read_only(mount(Path::new("/sys/fs/cgroup"), "/host/cgroup")),
            ],
        );
        let main = cri.run(&id, &config, main).await?;
        for path in [
            "/proc/version",
            "/proc/cmdline",
            "/proc/sys/kernel/osrelease",
            "/proc/filesystems",
            "/sys/devices/system/cpu/online",
            "/sys/fs/cgroup/cgroup.controllers",
        ] {
            let expected = fs::read_to_string(path)?;
            let inside = match path.strip_prefix("/sys/fs/cgroup/") {
                Some(name) => format!("/host/cgroup/{name}"),
                None => format!("/host{path}"),
            };
            let seen = cri.shell(&main, &format!("cat {inside}")).await?;
            check!(
                seen == expected,
                "{handler}: {path}: {seen:?}, not {expected:?}"
            );
            // By one who reads no more than the size says, too.
            let copied = format!("cp {inside} /tmp/copy && cat /tmp/copy");
            let seen = cri.shell(&main, &copied).await?;
            check!(seen == expected, "{handler}: a copy of {path}: {seen:?}");
        }
        // More than a page, which comes in several reads.
        let symbols = fs::read_to_string("/proc/kallsyms")?;
        let names = symbols.lines().take(500);
        let names: String = names
            .filter_map(|line| line.split(' ').nth(2))
            .map(|name| format!("{name}\n"))
            .collect();
        let seen = cri
            .shell(&main, "head -n 500 /host/proc/kallsyms | cut -d' ' -f3")
            .await?;
        check!(
            seen == names,
            "{handler}: {} of {} bytes",
            seen.len(),
            names.len()
        );
        cri.remove_pod(&id).await?;
    }
    Ok(())
}
