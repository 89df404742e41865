//! Containers as they are made and started, and what a failure leaves.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Code;

use super::super::*;
use super::*;
use crate::error::Grpc as _;

#[test]
fn from_creation_to_removal() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon
        .create(request("c", "one", &["say", "hello\nthere\n", "3"]))
        .unwrap();
    let created = daemon.status(&id);
    assert_eq!(created.state, cri::ContainerState::ContainerCreated as i32);
    let user = created.user.unwrap().linux.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (5, 6, vec![6, 7])
    );
    assert_eq!(node.guest.parts(), [2], "both layers are one disk");

    daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap();
    let exited = daemon.wait_exited(&id);
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    assert_eq!((exited.started_at, exited.finished_at), (3, 7));
    // Who sees "exited" sees the whole log.
    assert_eq!(node.log("c.log"), "hello\nthere\n");
    let again = daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);

    daemon.remove(&id).unwrap();
    daemon.remove(&id).unwrap();
    daemon.block_on(stop(&daemon.app, &id, 1)).unwrap();
    daemon.assert_clean(&node);
    assert_eq!(
        status(&daemon.app, &id, false).unwrap_err().code(),
        Code::NotFound
    );
    let gone = daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[test]
fn a_pod_is_called_by_the_beginning_of_its_id_if_it_is_the_only_one() {
    let node = Node::new();
    let daemon = node.daemon();
    let mut by_beginning = request("c", "one", &["serve"]);
    by_beginning.pod_sandbox_id = POD[..31].to_owned();
    let made = daemon.block_on(create(Arc::clone(&daemon.app), by_beginning.clone()));
    let record = daemon.app.records.containers.get(&made.unwrap()).unwrap();
    assert_eq!(record.meta.sandbox_id, POD);

    let other = testing::sandbox(&POD.replace('1', "2"));
    daemon
        .block_on(daemon.app.records.sandboxes.insert(other))
        .unwrap();
    by_beginning
        .config
        .as_mut()
        .unwrap()
        .metadata
        .as_mut()
        .unwrap()
        .attempt = 1;
    let refused = daemon
        .block_on(create(Arc::clone(&daemon.app), by_beginning))
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.to_string().contains("more than one"), "{refused}");
    for call in [true, false] {
        let (app, id) = (Arc::clone(&daemon.app), &POD[..31]);
        let answer = match call {
            true => daemon.block_on(crate::sandbox::stop(app, id)),
            false => daemon.block_on(crate::sandbox::remove(app, id)),
        };
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(daemon.app.records.sandboxes.len(), 2);
}

#[test]
fn a_failure_at_any_step_of_a_creation_leaves_nothing() {
    let node = Node::new();
    let daemon = node.daemon();
    let good = || request("c", "one", &["serve"]);
    let with = |change: fn(&mut cri::ContainerConfig)| {
        let mut request = good();
        change(request.config.as_mut().unwrap());
        request
    };
    let mut elsewhere = good();
    elsewhere.pod_sandbox_id = "0".repeat(32);
    let bad = [
        (elsewhere, Code::NotFound),
        (request("c", "none", &[]), Code::NotFound),
        (with(|c| c.metadata = None), Code::InvalidArgument),
        (with(|c| c.image = None), Code::InvalidArgument),
        (
            with(|c| c.mounts = vec![cri::Mount::default()]),
            Code::InvalidArgument,
        ),
        (
            with(|c| {
                c.mounts = vec![cri::Mount {
                    container_path: "/image".to_owned(),
                    readonly: true,
                    image: Some(cri::ImageSpec {
                        image: "none".to_owned(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }];
            }),
            Code::NotFound,
        ),
        (
            with(|c| {
                c.mounts = vec![cri::Mount {
                    container_path: "/data".to_owned(),
                    host_path: "/proc/no/such/path".to_owned(),
                    ..Default::default()
                }];
            }),
            Code::NotFound,
        ),
        (
            with(|c| c.log_path = "../up.log".to_owned()),
            Code::InvalidArgument,
        ),
        (with(|c| c.stop_signal = 99), Code::InvalidArgument),
    ];
    for (request, code) in bad {
        let error = daemon.create(request).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        daemon.assert_clean(&node);
    }
    for (step, injected, code) in [
        ("attach 1", Code::Internal, Code::ResourceExhausted),
        ("attach 2", Code::Internal, Code::ResourceExhausted),
        ("create", Code::InvalidArgument, Code::InvalidArgument),
    ] {
        node.guest.fail(step, injected);
        let error = daemon.create(good()).unwrap_err();
        assert_eq!(error.code(), code, "{step}: {error}");
        daemon.assert_clean(&node);
    }
    // A guest that does not let go at once is asked again.
    node.guest.fail("create", Code::Internal);
    node.guest.fail("delete", Code::FailedPrecondition);
    assert_eq!(daemon.create(good()).unwrap_err().code(), Code::Internal);
    // The next of the same name waits until it has, and works.
    let id = daemon.create(good()).unwrap();
    daemon.remove(&id).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn a_start_that_fails_is_an_exit_with_128() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.create(request("c", "one", &["serve"])).unwrap();
    node.guest.fail("start", Code::Internal);
    daemon
        .block_on(start(Arc::clone(&daemon.app), &id))
        .unwrap_err();
    let status = daemon.status(&id);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );
    assert_eq!(status.message, "told to fail");
    // It never ran, and it is over.
    assert!(
        status.started_at == 0 && status.finished_at > 0,
        "{status:?}"
    );
    daemon.remove(&id).unwrap();
    daemon.assert_clean(&node);
}

/// The words are the agent's, whatever is in them.
#[test]
fn why_a_command_does_not_start_is_told_to_the_letter() {
    let node = Node::new();
    let daemon = node.daemon();
    let long = format!("exec: \"/{}\": file name too long", "é☃".repeat(500));
    for (words, code) in [
        (
            r#"exec: "nosuch": executable file not found in $PATH"#,
            Code::NotFound,
        ),
        (
            "exec: \"/a\nb%20\": permission denied",
            Code::PermissionDenied,
        ),
        (long.as_str(), Code::InvalidArgument),
    ] {
        let id = daemon.create(request("c", "one", &["serve"])).unwrap();
        node.guest
            .fail_with("start", tonic::Status::new(code, words));
        let error = daemon
            .block_on(start(Arc::clone(&daemon.app), &id))
            .unwrap_err()
            .status();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(words), "{error}");
        let status = daemon.status(&id);
        assert_eq!((status.exit_code, status.message.as_str()), (128, words));
        daemon.remove(&id).unwrap();
    }
    daemon.assert_clean(&node);
}

#[test]
fn a_user_nobody_knows_is_shown_as_none() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon
        .create(request("c", "one", &["as-nobody-known"]))
        .unwrap();
    assert_eq!(daemon.status(&id).user, None);
    daemon.remove(&id).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn an_environment_that_no_kernel_passes_is_refused_and_a_large_one_is_not() {
    let node = Node::new();
    let daemon = node.daemon();
    let with = |bytes: usize| {
        let mut request = request("c", "one", &["serve"]);
        let envs = (0..bytes / 100_000).map(|n| cri::KeyValue {
            key: format!("E{n}"),
            // The longest there is in JSON.
            value: vec![1; 100_000],
        });
        request.config.as_mut().unwrap().envs = envs.collect();
        request
    };
    let id = daemon.create(with(2 << 20)).unwrap();
    daemon.remove(&id).unwrap();
    for bytes in [5 << 20, 7 << 20] {
        let error = daemon.create(with(bytes)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        daemon.assert_clean(&node);
    }
}

#[test]
fn a_layer_is_plugged_once_and_its_disk_goes_with_the_last_that_needs_it() {
    let node = Node::new();
    let daemon = node.daemon();
    let one = daemon.create(request("c1", "one", &["serve"])).unwrap();
    let two = daemon.create(request("c2", "two", &["serve"])).unwrap();
    assert_eq!(node.guest.parts(), [1, 2], "the shared one counts once");
    assert_eq!(node.guest.mounted().len(), 3);
    daemon.remove(&one).unwrap();
    assert_eq!(node.guest.parts(), [1, 2], "the shared one is on both's");
    assert_eq!(node.guest.mounted().len(), 2);
    // What is left of the disk is used again.
    let again = daemon.create(request("c3", "one", &["serve"])).unwrap();
    assert_eq!(node.guest.parts(), [1, 2]);
    daemon.remove(&two).unwrap();
    assert_eq!(node.guest.parts(), [2]);
    daemon.remove(&again).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn a_daemon_knows_which_disk_a_layer_is_on_that_its_predecessor_plugged() {
    let node = Node::new();
    let daemon = node.daemon();
    let one = daemon.create(request("c1", "one", &["serve"])).unwrap();
    let two = daemon.create(request("c2", "two", &["serve"])).unwrap();
    daemon.remove(&one).unwrap();
    daemon.die();
    let daemon = node.daemon();
    // The shared layer is on a disk of a container that is gone, the other is plugged again.
    let three = daemon.create(request("c3", "one", &["serve"])).unwrap();
    assert_eq!(node.guest.parts(), [1, 1, 2]);
    daemon.remove(&two).unwrap();
    assert_eq!(node.guest.parts(), [1, 2]);
    daemon.die();
    let daemon = node.daemon();
    daemon.remove(&three).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn containers_made_at_the_same_time_share_their_layers() {
    let node = Node::new();
    let daemon = node.daemon();
    let made: Vec<String> = daemon.block_on(async {
        let creations = (0..8).map(|n| {
            let image = if n % 2 == 0 { "one" } else { "two" };
            create(
                Arc::clone(&daemon.app),
                request(&format!("c{n}"), image, &["serve"]),
            )
        });
        let made = futures::future::join_all(creations).await;
        made.into_iter().map(Result::unwrap).collect()
    });
    assert_eq!(node.guest.parts(), [1, 2]);
    for id in made {
        daemon.remove(&id).unwrap();
    }
    daemon.assert_clean(&node);
}

#[test]
fn a_pod_of_an_older_daemon_has_a_disk_for_each_layer() {
    let node = Node::new();
    let daemon = node.daemon_of(false);
    let one = daemon.create(request("c1", "one", &["serve"])).unwrap();
    let two = daemon.create(request("c2", "two", &["serve"])).unwrap();
    assert_eq!(node.guest.disks().len(), 3, "the shared one counts once");
    assert_eq!(node.guest.parts(), [0_usize; 0]);
    daemon.remove(&one).unwrap();
    assert_eq!(node.guest.disks().len(), 2);
    daemon.die();
    let daemon = node.daemon_of(false);
    node.guest.fail("attach 4", Code::Internal);
    let error = daemon.create(request("c3", "one", &["serve"])).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(node.guest.disks().len(), 2);
    daemon.remove(&two).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn a_name_is_taken_until_its_container_is_gone() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.create(request("c", "one", &["serve"])).unwrap();
    let error = daemon.create(request("c", "two", &["serve"])).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.to_string().contains(&id), "{error}");
    daemon.remove(&id).unwrap();
    daemon.create(request("c", "two", &["serve"])).unwrap();
}
