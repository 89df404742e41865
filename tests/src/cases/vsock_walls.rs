//! vsock leads from a guest to its agent and to the daemon. No container gets that far: a socket of
//! that family is refused by whatever way it is asked for, and a privileged container, which may
//! have one, finds nobody to talk to.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
};

use bulkhead_proto::cri::{
    ContainerConfig, Int64Value, LinuxContainerSecurityContext, Mount,
    security_profile::ProfileType,
};

use super::{
    contexts::{capabilities, profile},
    image,
};
use crate::{
    Failure, Outcome, check,
    cri::{pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(
            "security",
            a_container_cannot_reach_its_guests_agent_by_vsock,
            LIMIT * 2
        ),
        test!(
            "security",
            a_bridged_socket_is_open_to_its_mounts_holders_alone,
            LIMIT * 2
        ),
    ]
}

const TOOL: &str = "/tools/vsock-walls";
/// Where the ports of bridged sockets begin.
const FIRST_PORT: u32 = 0x4000_0000;

fn with(name: &str, security: LinuxContainerSecurityContext) -> ContainerConfig {
    let mut made = script(name, &image("volume-tools"), "sleep 1000");
    made.linux.get_or_insert_default().security_context = Some(LinuxContainerSecurityContext {
        // No filter is in the way: the wall is another one.
        seccomp: profile(ProfileType::Unconfined),
        ..security
    });
    made
}

fn privileged(name: &str) -> ContainerConfig {
    with(
        name,
        LinuxContainerSecurityContext {
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        },
    )
}

/// The results of the tool's lines that begin with a word.
fn results<'a>(text: &'a str, way: &str) -> Vec<&'a str> {
    let lines = text.lines().filter(|line| line.starts_with(way));
    lines.filter_map(|line| line.split(' ').nth(2)).collect()
}

async fn a_container_cannot_reach_its_guests_agent_by_vsock(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(&image("volume-tools")).await?;
    let mut config = pod("vsock");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let id = cri.run_pod(config.clone()).await?;
    let none = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: 1000 }),
        no_new_privs: true,
        capabilities: capabilities(&[], &["ALL"]),
        ..LinuxContainerSecurityContext::default()
    };
    let all = LinuxContainerSecurityContext {
        capabilities: capabilities(&["ALL"], &[]),
        ..LinuxContainerSecurityContext::default()
    };
    for (name, security) in [
        ("nobody", none),
        ("root", LinuxContainerSecurityContext::default()),
        ("capable", all),
    ] {
        let made = cri.run(&id, &config, with(name, security)).await?;
        let tried = cri.shell(&made, &format!("{TOOL} make")).await?;
        let vsock = results(&tried, "vsock-");
        check!(
            vsock.len() == 15 && vsock.iter().all(|result| *result == "EPERM"),
            "{name}: {tried}"
        );
        // The ways are there: it is the family that is refused.
        for way in ["socket", "io_uring", "socketcall", "socket32"] {
            let inet = results(&tried, &format!("inet-{way} 1 "));
            check!(inet == ["made"], "{name}: {way}: {tried}");
        }
        let attempt = format!(
            "for cid in 1 2 3; do for port in 1024 1025; do {TOOL} talk $cid $port; done; done"
        );
        let tried = cri.shell(&made, &attempt).await?;
        check!(tried == "talk socket EPERM\n".repeat(6), "{name}: {tried}");
        if name == "root" {
            let node = "test ! -e /dev/vsock && \
                        minor=$(grep ' vsock$' /proc/misc | tr -dc 0-9) && \
                        mknod /tmp/vsock c 10 $minor && ";
            let tried = cri
                .shell(&made, &format!("{node} {TOOL} open /tmp/vsock"))
                .await?;
            check!(tried == "open 0 EPERM\n", "/dev/vsock: {tried}");
        }
        if name == "capable" {
            // A cgroup below its own, where no program says anything.
            let below = "mount -o remount,rw /sys/fs/cgroup && mkdir /sys/fs/cgroup/below && \
                         echo $$ >/sys/fs/cgroup/below/cgroup.procs && cat /proc/self/cgroup && ";
            let tried = cri.shell(&made, &format!("{below} {TOOL} make")).await?;
            check!(tried.starts_with("0::/below\n"), "{tried}");
            let vsock = results(&tried, "vsock-");
            check!(
                vsock.len() == 15 && vsock.iter().all(|result| *result == "EPERM"),
                "below: {tried}"
            );
        }
    }

    // A privileged one may have the socket. Its guest's own addresses lead nowhere, and on the host
    // nobody waits for a second report.
    let made = cri.run(&id, &config, privileged("privileged")).await?;
    let tried = cri.shell(&made, &format!("{TOOL} make")).await?;
    for way in ["socket", "io_uring", "socketcall", "socket32"] {
        let vsock = results(&tried, &format!("vsock-{way} 1 "));
        check!(vsock == ["made"], "privileged: {way}: {tried}");
    }
    for (context, port) in [(1, 1024), (3, 1024), (2, 1024), (2, 1025)] {
        let tried = cri
            .shell(&made, &format!("{TOOL} talk {context} {port}"))
            .await?;
        check!(
            tried.starts_with("talk connect E"),
            "{context}:{port}: {tried}"
        );
    }
    Ok(cri.remove_pod(&id).await?)
}

/// Answers as many connections as there are questions, and gives what it was asked.
fn echo(
    listener: &UnixListener,
    questions: usize,
) -> Result<std::thread::JoinHandle<std::io::Result<Vec<String>>>, Failure> {
    let listener = listener.try_clone()?;
    Ok(std::thread::spawn(move || {
        let mut heard = Vec::new();
        for _ in 0..questions {
            let (mut stream, _) = listener.accept()?;
            let mut question = String::new();
            stream.read_to_string(&mut question)?;
            stream.write_all(format!("the host heard {question}").as_bytes())?;
            heard.push(question);
        }
        Ok(heard)
    }))
}

async fn a_bridged_socket_is_open_to_its_mounts_holders_alone(context: &mut Context) -> Outcome {
    context.cri.pull(&image("volume-tools")).await?;
    let socket = context.host.test_socket();
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let asked = echo(&listener, 3)?;
    let mut config = pod("bridged");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let id = context.cri.run_pod(config.clone()).await?;
    let mounted = || Mount {
        container_path: "/run/host.sock".to_owned(),
        host_path: socket.display().to_string(),
        ..Mount::default()
    };
    let holder = |name: &str| {
        let mut made = with(name, LinuxContainerSecurityContext::default());
        made.mounts = vec![mounted()];
        made
    };
    let first = context.cri.run(&id, &config, holder("first")).await?;
    let other = context.cri.run(&id, &config, privileged("other")).await?;

    // Its port, of which a program of the pod may have heard.
    let jail = context.host.run_dir().join("pods").join(&id).join("vm");
    let mut ports = Vec::new();
    for entry in fs::read_dir(&jail)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let port: Option<u32> = name.rsplit('_').next().and_then(|port| port.parse().ok());
        ports.extend(port.filter(|port| *port >= FIRST_PORT));
    }
    let [port] = ports.as_slice() else {
        return Err(format!("ports of sockets in {}: {ports:?}", jail.display()).into());
    };
    let talk = format!("{TOOL} talk 2 {port}");
    let ask = |what: &str| format!("/tools/unix-talk /run/host.sock {what}");
    let tried = context.cri.shell(&other, &talk).await?;
    check!(tried == "talk heard 0\n", "without the token: {tried}");
    let tried = context.cri.shell(&first, &talk).await?;
    check!(tried == "talk socket EPERM\n", "by vsock: {tried}");
    let answer = context.cri.shell(&first, &ask("one")).await?;
    check!(answer == "the host heard one", "{answer:?}");

    // The token is the pod's as long as it uses the socket, and outlives the daemon.
    context.host.kill_daemon()?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    let cri = &context.cri;
    let answer = cri.shell(&first, &ask("two")).await?;
    check!(answer == "the host heard two", "{answer:?}");
    // A new one after that.
    cri.remove(&first).await?;
    let second = cri.run(&id, &config, holder("second")).await?;
    let answer = cri.shell(&second, &ask("three")).await?;
    check!(answer == "the host heard three", "{answer:?}");
    let tried = cri.shell(&other, &talk).await?;
    check!(tried == "talk heard 0\n", "without the token: {tried}");
    // Of all that was said, the socket has heard its holders' words alone.
    let heard = asked.join().map_err(|_| "the echo ended badly")??;
    check!(heard == ["one", "two", "three"], "{heard:?}");
    listener.set_nonblocking(true)?;
    let waiting = listener.accept();
    check!(waiting.is_err(), "somebody else connected: {waiting:?}");
    cri.remove_pod(&id).await?;
    Ok(fs::remove_file(&socket)?)
}
