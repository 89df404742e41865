//! What an image's configuration and a pod's manifest say, against what containerd and Docker make
//! of it: each test is named after what users report of other runtimes. Here is what is about the
//! image; `mounts` has what is about the pod's mounts and directories, `users` what is about users.

mod mounts;
mod support;
mod users;

use std::{fs, path::Path};

use bulkhead_proto::cri::{ContainerConfig, ContainerState, KeyValue};
use tonic::Code;

use self::support::{HANDLERS, cannot_start, said, secured};
use super::{
    BUSYBOX, image, logs,
    volumes::{Scratch, mount, read_only, with},
};
use crate::{
    Outcome, check,
    cri::{container, pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    let own = vec![
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
    ];
    [own, mounts::tests(), users::tests()].concat()
}

fn env(name: &str, value: impl Into<Vec<u8>>) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: value.into(),
    }
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
