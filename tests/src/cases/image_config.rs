//! What an image's configuration and a pod's manifest say, against what containerd and Docker make
//! of it: each test is named after what users report of other runtimes.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use bulkhead_proto::cri::{
    ContainerConfig, ContainerState, ContainerStatus, KeyValue, LinuxContainerSecurityContext,
    PodSandboxConfig,
};
use tonic::Code;

use super::{
    BUSYBOX, image, logs,
    volumes::{Scratch, mount, read_only, with},
};
use crate::{
    Failure, Outcome, check,
    cri::{Cri, container, pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

/// Where pods run.
const HANDLERS: [&str; 2] = ["kvm", "host"];

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("image_config", an_empty_entrypoint_is_none),
        test!("image_config", an_image_that_says_arm64_is_run),
        test!("image_config", environments_odd_and_large, LIMIT * 2),
        test!("image_config", volumes_of_the_image_are_there, LIMIT * 2),
        test!("image_config", dangling_links_in_the_image, LIMIT * 2),
        test!(
            "image_config",
            a_container_that_cannot_start_says_why,
            LIMIT * 2
        ),
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

fn secured(
    mut config: ContainerConfig,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    change(linux.security_context.get_or_insert_default());
    config
}

fn env(name: &str, value: impl Into<Vec<u8>>) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: value.into(),
    }
}

/// Runs a container to its end, and gives its status and what it said.
async fn said(
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

async fn an_empty_entrypoint_is_none(context: &mut Context) -> Outcome {
    let name = image("empty-entrypoint");
    context.cri.pull(&name).await?;
    let (config, dir) = logs::logging_pod(context, "entrypoint");
    let id = context.cri.run_pod(config.clone()).await?;
    let with_args = ContainerConfig {
        args: vec!["echo".to_owned(), "of the pod".to_owned()],
        ..container("args", &name, &[])
    };
    for (made, expected) in [
        (container("cmd", &name, &[]), "hi\n"),
        (with_args, "of the pod\n"),
        (container("command", &name, &["echo", "own"]), "own\n"),
    ] {
        let (status, text) = said(context, (&id, &config, &dir), made).await?;
        check!(
            status.exit_code == 0 && text == expected,
            "{text:?} {status:?}"
        );
    }
    Ok(context.cri.remove_pod(&id).await?)
}

async fn an_image_that_says_arm64_is_run(context: &mut Context) -> Outcome {
    let name = image("says-arm64");
    context.cri.pull(&name).await?;
    let log = fs::read_to_string(context.host.log())?;
    let warned = |line: &str| line.contains("WARN") && line.contains("linux/arm64");
    check!(log.lines().any(warned), "no warning in the log");
    let (config, dir) = logs::logging_pod(context, "arm64");
    let id = context.cri.run_pod(config.clone()).await?;
    let made = container("main", &name, &[]);
    let (status, text) = said(context, (&id, &config, &dir), made).await?;
    check!(
        status.exit_code == 0 && text == "runs\n",
        "{text:?} {status:?}"
    );
    Ok(context.cri.remove_pod(&id).await?)
}

/// A hundred kB in one value, about 2 MB in all, and more than the kernel takes.
async fn environments_odd_and_large(context: &mut Context) -> Outcome {
    let name = image("odd-env");
    let cri = &context.cri;
    cri.pull(&name).await?;
    let (config, dir) = logs::logging_pod(context, "env");
    let id = cri.run_pod(config.clone()).await?;
    let mut odd = script(
        "odd",
        &name,
        "echo \"$A|$LINES_OF|$EMPTY|$B|${#LARGE}\"; env | grep -c '^A='; env | grep -c '^='",
    );
    odd.envs = vec![
        env("B", "1"),
        env("B", "x=\ny\n"),
        env("LARGE", vec![b'x'; 100_000]),
    ];
    let (_, text) = said(context, (&id, &config, &dir), odd).await?;
    check!(text == "2|a\nb\n||x=\ny\n|100000\n1\n0\n", "{text:?}");

    let large = |name: &str, count: usize| {
        let mut made = script(name, BUSYBOX, "exit ${#E1}");
        let one = |n| env(&format!("E{n}"), vec![b'x'; 100_000]);
        made.envs = (2..=count).map(one).collect();
        made.envs.push(env("E1", "four"));
        made
    };
    cri.pull(BUSYBOX).await?;
    let (status, _) = said(context, (&id, &config, &dir), large("fits", 19)).await?;
    check!(status.exit_code == 4, "{status:?}");
    let made = cri.create(&id, &config, large("more", 25)).await?;
    cannot_start(cri, &made, "argument list too long").await?;
    // What no kernel takes needs no try.
    let refused = cri.create(&id, &config, large("most", 80)).await;
    let told = |error: &tonic::Status| {
        error.code() == Code::InvalidArgument && error.message().contains("argument list too long")
    };
    check!(refused.as_ref().is_err_and(told), "{refused:?}");
    Ok(cri.remove_pod(&id).await?)
}

/// That a start fails with these words, and that the container then looks as it does on containerd.
async fn cannot_start(cri: &Cri, made: &str, words: &str) -> Outcome {
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

async fn volumes_of_the_image_are_there(context: &mut Context) -> Outcome {
    let name = image("volumes");
    let cri = &context.cri;
    cri.pull(&name).await?;
    let scratch = Scratch::new("of-image")?;
    let given = scratch.dir("given")?;
    fs::write(given.join("file"), "of the pod\n")?;
    for handler in HANDLERS {
        let config = pod(&format!("volumes-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = secured(script("main", &name, "sleep 1000"), |context| {
            context.readonly_rootfs = true;
        });
        let main = cri.run(&id, &config, main).await?;
        let seen = cri
            .shell(
                &main,
                "touch /x 2>/dev/null && echo the root is writable; \
                 echo 1 > /data/x && echo 2 > /cleaned/x && cat /data/x /cleaned/x; \
                 stat -c '%u %g %a' /filled /filled/given; cat /filled/link; \
                 echo more >> /filled/given; touch /filled/own; stat -c '%g' /filled/own; \
                 grep -q '^proc' /proc/mounts && stat -f -c %T /data",
            )
            .await?;
        let expected = "1\n2\n33 33 2770\n33 33 640\nof the image\n33\n";
        let kind = seen
            .strip_prefix(expected)
            .unwrap_or(&seen)
            .trim()
            .to_owned();
        check!(seen.starts_with(expected), "{handler}: {seen:?}");
        check!(!kind.contains("overlay"), "{handler}: on {kind}");

        // A second container begins with what the image has, not with what the first wrote.
        let covered = with(
            secured(script("second", &name, "sleep 1000"), |context| {
                context.privileged = true;
            }),
            vec![mount(&given, "/data/")],
        );
        let second = cri.run(&id, &config, covered).await?;
        let seen = cri
            .shell(&second, "cat /data/file /filled/given; ls /filled /cleaned")
            .await?;
        check!(
            seen == "of the pod\nof the image\n/cleaned:\n\n/filled:\ngiven\nlink\n",
            "{handler}: {seen:?}"
        );
        if handler == "kvm" {
            // As dockerd does below /var/lib/docker.
            let stacked = cri
                .shell(
                    &second,
                    "cd /cleaned && mkdir lower upper work top && echo below > lower/file && \
                     mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none top && \
                     echo above >> top/file && cat upper/file && umount top",
                )
                .await?;
            check!(stacked == "below\nabove\n", "{stacked:?}");
        }
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn dangling_links_in_the_image(context: &mut Context) -> Outcome {
    let name = image("dangling");
    let cri = &context.cri;
    cri.pull(&name).await?;
    let scratch = Scratch::new("dangling")?;
    let token = scratch.dir("token")?;
    fs::write(token.join("token"), "secret\n")?;
    let hosts = scratch.0.join("hosts");
    fs::write(&hosts, "10.9.8.7 by-the-kubelet\n")?;
    let zone = scratch.0.join("zone");
    fs::write(&zone, "the zone\n")?;
    for handler in HANDLERS {
        let config = pod(&format!("dangling-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = with(
            script("main", &name, "sleep 1000"),
            vec![
                mount(&hosts, "/etc/hosts"),
                mount(&zone, "/etc/localtime"),
                read_only(mount(
                    &token,
                    "/var/run/secrets/kubernetes.io/serviceaccount",
                )),
                mount(&token, "/tmp/x"),
                mount(&hosts, "/tmp/x/below/file"),
                mount(&hosts, "/etc/passwd"),
            ],
        );
        let main = cri.run(&id, &config, main).await?;
        let seen = cri
            .shell(
                &main,
                "cat /etc/hosts /etc/localtime /etc/hostname; test -e /etc/resolv.conf && \
                 cat /run/secrets/kubernetes.io/serviceaccount/token /var/tmp/x/token \
                 /tmp/x/below/file /etc/passwd",
            )
            .await?;
        let by_kubelet = "10.9.8.7 by-the-kubelet\n";
        let expected = format!(
            "{by_kubelet}the zone\ndangling-{handler}\nsecret\nsecret\n{by_kubelet}{by_kubelet}"
        );
        check!(seen == expected, "{handler}: {seen:?}");
        cri.remove_pod(&id).await?;
    }
    for path in ["/nowhere", "/run/nowhere"] {
        check!(!Path::new(path).exists(), "{path} was made on the node");
    }
    Ok(())
}

async fn a_container_that_cannot_start_says_why(context: &mut Context) -> Outcome {
    let name = image("commands");
    let cri = &context.cri;
    cri.pull(&name).await?;
    cri.pull(&image("user-missing")).await?;
    let scratch = Scratch::new("commands")?;
    let empty = scratch.dir("empty")?;
    for handler in HANDLERS {
        let config = pod(&format!("commands-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let of = |command: &str| container("bad", &name, &[command]);
        let not_found = r#"exec: "nosuch": executable file not found in $PATH"#;
        for (made, words) in [
            (of("nosuch"), not_found),
            (of(""), r#"exec: "": executable file not found in $PATH"#),
            (of("/no/such"), r#"exec: "/no/such": "#),
            (of("/no/such"), "no such file or directory"),
            (of("/cmd/no-interpreter"), "no such file or directory"),
            (of("/cmd/plain"), r#"exec: "/cmd/plain": permission denied"#),
            (of("/cmd/directory"), r#"exec: "/cmd/directory": "#),
            (of("/cmd/arm64"), "exec format error"),
            (
                ContainerConfig {
                    working_dir: "/etc/passwd/below".to_owned(),
                    ..container("bad", &name, &["true"])
                },
                "not a directory",
            ),
            (
                container("bad", &image("user-missing"), &["true"]),
                "nosuchuser",
            ),
        ] {
            let made = cri.create(&id, &config, made).await?;
            let status = cri.status(&made).await?;
            check!(
                status.state() == ContainerState::ContainerCreated,
                "{handler}: {words:?}: {status:?}"
            );
            cannot_start(cri, &made, words).await?;
        }
        // Found by the PATH of the container, and by no other.
        let mut elsewhere = with(
            container("path", &name, &["true"]),
            vec![mount(&empty, "/empty")],
        );
        elsewhere.envs = vec![env("PATH", "/empty")];
        let made = cri.create(&id, &config, elsewhere).await?;
        cannot_start(
            cri,
            &made,
            r#"exec: "true": executable file not found in $PATH"#,
        )
        .await?;
        // Nothing at all is told at once: there is nothing to make a container of.
        let nothing = ContainerConfig {
            command: Vec::new(),
            ..container("none", &image("bulk"), &[])
        };
        cri.pull(&image("bulk")).await?;
        let refused = cri.create(&id, &config, nothing).await;
        let told = |error: &tonic::Status| error.message().contains("no command specified");
        check!(refused.as_ref().is_err_and(told), "{refused:?}");
        cri.remove_pod(&id).await?;
    }
    Ok(())
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
