//! Every document that was ever released is still read. What this release writes is what the newest
//! directory has: a change there is a change of the contract, and gets a directory of its own.
#![allow(missing_docs, clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_contract::exit::Report;
use bulkhead_contract::host::Pod;
use bulkhead_contract::vmm::{Answer, Config, Request, Started};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The release whose documents are written as they are read.
const NEWEST: &str = "0.1";

fn versions() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut all: Vec<_> = fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort();
    assert!(all.iter().any(|path| path.ends_with(NEWEST)));
    all
}

/// Reads all documents of a kind, whatever the release, and gives how many the newest has.
fn read_all<T: DeserializeOwned + Serialize>(names: &[&str]) -> usize {
    let mut newest = 0;
    for version in versions() {
        for name in names {
            let path = version.join(name);
            let Ok(text) = fs::read_to_string(&path) else {
                // A kind that this release did not have.
                assert!(!version.ends_with(NEWEST), "{} is missing", path.display());
                continue;
            };
            let documents = match serde_json::from_str(&text).unwrap() {
                Value::Array(list) => list,
                one => vec![one],
            };
            for document in documents {
                let read: T = serde_json::from_value(document.clone())
                    .unwrap_or_else(|error| panic!("{}: {error}: {document}", path.display()));
                if version.ends_with(NEWEST) {
                    assert_eq!(serde_json::to_value(&read).unwrap(), document);
                    newest += 1;
                }
            }
        }
    }
    newest
}

/// The documents of one file of the newest release.
fn documents(name: &str) -> Vec<Value> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = fs::read_to_string(golden.join(NEWEST).join(name)).unwrap();
    match serde_json::from_str(&text).unwrap() {
        Value::Array(list) => list,
        one => vec![one],
    }
}

fn newest<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let read = |document| serde_json::from_value(document).unwrap();
    documents(name).into_iter().map(read).collect()
}

#[test]
fn configurations_of_a_vmm() {
    assert_eq!(
        read_all::<Config>(&["config-boot.json", "config-restore.json"]),
        2
    );
}

#[test]
fn requests_to_a_vmm() {
    assert!(read_all::<Request>(&["requests.json"]) > 0);
    let mut kinds: Vec<_> = newest::<Request>("requests.json")
        .iter()
        .map(|request| match request {
            // One that is added here is added to the documents.
            Request::Boot {} => "boot",
            Request::Pause {} => "pause",
            Request::Resume {} => "resume",
            Request::Snapshot {} => "snapshot",
            Request::Attach { .. } => "attach",
            Request::AttachNet { .. } => "attach_net",
            Request::Detach { .. } => "detach",
            Request::Metrics {} => "metrics",
            Request::Resize(_) => "resize",
            Request::Pin(_) => "pin",
            Request::Stop {} => "stop",
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), 11, "{kinds:?}");
}

/// With a key in every object that no release has.
fn with_more(document: &Value) -> Value {
    match document {
        Value::Object(map) => {
            let mut more: serde_json::Map<_, _> = map
                .iter()
                .map(|(key, value)| (key.clone(), with_more(value)))
                .collect();
            more.insert("of_a_later_release".to_owned(), Value::Bool(true));
            Value::Object(more)
        }
        other => other.clone(),
    }
}

#[test]
fn keys_of_a_later_release_are_passed_over_by_the_daemon_alone() {
    fn reads<T: DeserializeOwned>(document: &Value) -> bool {
        serde_json::from_value::<T>(with_more(document)).is_ok()
    }
    for document in documents("answers.json") {
        // One more beside "ok" or "error" is another answer.
        for (kind, content) in document.as_object().unwrap() {
            let document = serde_json::json!({ kind: with_more(content) });
            assert!(serde_json::from_value::<Answer>(document).is_ok());
        }
    }
    for document in documents("exit.json") {
        assert!(reads::<Report>(&document), "{document}");
    }
    for document in documents("started.json") {
        assert!(reads::<Started>(&document), "{document}");
    }
    for document in documents("config-boot.json") {
        assert!(!reads::<Config>(&document), "{document}");
    }
    for document in documents("requests.json") {
        assert!(!reads::<Request>(&document), "{document}");
    }
    for document in documents("host.json") {
        assert!(!reads::<Pod>(&document), "{document}");
    }
}

#[test]
fn what_a_vmm_says() {
    assert!(read_all::<Answer>(&["answers.json"]) > 0);
    assert!(read_all::<Started>(&["started.json"]) > 0);
    assert!(read_all::<Report>(&["exit.json"]) > 0);
}

#[test]
fn pods_on_the_host() {
    assert_eq!(read_all::<Pod>(&["host.json"]), 3, "each kind of network");
}
