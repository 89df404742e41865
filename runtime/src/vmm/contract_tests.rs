//! The documents of docs/vmm-api.md as the VMM's own tests have them: both sides read the same
//! files, so that they cannot drift apart.

use serde_json::Value;

use super::{
    config::VmmConfig,
    control::{Answer, DiskSpec, Request, Resize},
    exit::Written,
    spawn::outcome,
};

macro_rules! fixture {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!("../../../vmm/tests/fixtures/", $name)))
            .unwrap()
    };
}

#[test]
fn a_configuration_is_written_as_it_is_read() {
    for text in [
        fixture!("config-boot.json"),
        fixture!("config-restore.json"),
    ] {
        let config: VmmConfig = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), text);
    }
}

#[test]
fn requests_are_among_those_the_vmm_takes() {
    let fixtures = fixture!("requests.json");
    let disk = DiskSpec {
        id: "l0123456789abcdef012".to_owned(),
        read_only: true,
        queues: 1,
    };
    let ours = [
        Request::Attach { disk: &disk },
        Request::Detach { id: &disk.id },
        Request::Metrics {},
        Request::Resize(Resize {
            vcpus: Some(4),
            memory_mib: Some(512),
            wait_ms: Some(30_000),
        }),
        Request::Resize(Resize {
            memory_mib: Some(512),
            ..Resize::default()
        }),
        Request::Stop {},
    ];
    for request in ours {
        let request = serde_json::to_value(&request).unwrap();
        assert!(fixtures.as_array().unwrap().contains(&request), "{request}");
    }
}

#[test]
fn all_answers_are_understood() {
    for text in fixture!("answers.json").as_array().unwrap() {
        let answer: Answer = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(matches!(answer, Answer::Ok(_)), text.get("ok").is_some());
    }
    for text in fixture!("started.json").as_array().unwrap() {
        let outcome = outcome(text.to_string().as_bytes());
        assert_eq!(outcome.is_ok(), text.get("pid").is_some(), "{outcome:?}");
    }
    for text in fixture!("exit.json").as_array().unwrap() {
        let _exit: Written = serde_json::from_value(text.clone()).unwrap();
    }
}
