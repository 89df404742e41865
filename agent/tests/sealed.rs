//! The agent of a pod on the host runs from a copy of its program that cannot be written.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;

const AGENT: &str = env!("CARGO_BIN_EXE_bulkhead-agent");

fn start(environment: &[(&str, &str)]) -> Child {
    Command::new(AGENT)
        .arg("--host")
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The words on standard error of an agent that ends.
fn end(mut child: Child) -> String {
    drop(child.stdin.take());
    let mut text = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert!(!child.wait().unwrap().success());
    text
}

fn of(child: &Child, file: &str) -> PathBuf {
    format!("/proc/{}/{file}", child.id()).into()
}

/// Waits until the agent waits for its configuration: it has taken the part of it that does not fit
/// into the pipe.
fn wait_for_configuration(child: &mut Child) {
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![b' '; 60 << 10]).unwrap();
    rustix::pipe::fcntl_setpipe_size(&stdin, 64 << 10).unwrap();
    stdin.write_all(&vec![b' '; 32 << 10]).unwrap();
    child.stdin = Some(stdin);
}

#[test]
fn the_program_of_an_agent_on_the_host_cannot_be_overwritten() {
    let before = fs::read(AGENT).unwrap();
    let mut child = start(&[("KEPT", "1")]);
    wait_for_configuration(&mut child);

    let exe = fs::read_link(of(&child, "exe")).unwrap();
    assert_eq!(exe.to_str(), Some("/memfd:bulkhead-agent (deleted)"));
    let comm = fs::read_to_string(of(&child, "comm")).unwrap();
    assert_eq!(comm, "bulkhead-agent\n");
    let command = fs::read(of(&child, "cmdline")).unwrap();
    assert_eq!(command, format!("{AGENT}\0--host\0").into_bytes());
    let environment = fs::read(of(&child, "environ")).unwrap();
    assert!(environment.starts_with(b"KEPT=1\0"));

    // While it runs.
    let error = OpenOptions::new().write(true).open(of(&child, "exe"));
    let error = error.unwrap_err().raw_os_error();
    assert_eq!(error, Some(Errno::TXTBSY.raw_os_error()));
    // By one who waits for its end, as the attack does.
    let held = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(of(&child, "exe"))
        .unwrap();
    assert_ne!(
        held.metadata().unwrap().ino(),
        fs::metadata(AGENT).unwrap().ino()
    );
    end(child);
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let written = OpenOptions::new()
        .write(true)
        .open(&again)
        .and_then(|file: File| file.write_at(b"#!/bin/sh\n", 0));
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert!(
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&again)
            .is_err()
    );
    assert!(fs::read(AGENT).unwrap() == before);
}

#[test]
fn the_standard_streams_stay_and_the_configuration_is_read_once() {
    let mut child = start(&[]);
    let stdin = child.stdin.take().unwrap();
    (&stdin).write_all(b"{ \"id\": 5 }").unwrap();
    drop(stdin);
    let words = end(child);
    // Of the configuration, and not of an empty one.
    assert!(words.contains("invalid type: integer `5`"), "{words}");
}

#[test]
fn an_agent_that_is_not_sealed_does_not_start() {
    // As if the copy had been executed without being one.
    let words = end(start(&[("BULKHEAD_AGENT_SEALED", "1")]));
    assert!(words.contains("/proc/self/exe is not one"), "{words}");
    // Too little memory for a copy.
    let mut command = Command::new(AGENT);
    let limited = {
        use std::os::unix::process::CommandExt;
        command
            .arg("--host")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: between fork and execve only async-signal-safe calls are allowed; signal(2) and
        // setrlimit(2) are, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: 1 << 20,
                    rlim_max: 1 << 20,
                };
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command.spawn().unwrap()
    };
    let words = end(limited);
    assert!(
        words.contains("sealing the agent's program: copying it"),
        "{words}"
    );
}
