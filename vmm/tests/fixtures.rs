//! The contract with the daemon, as the files both sides parse in their tests: what is read is
//! written again the same.
#![allow(missing_docs, clippy::unwrap_used)]

use bulkhead_vmm::api::{Answer, Config, ExitReport, Request, Started};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn same<T: DeserializeOwned + Serialize>(text: &str) -> Vec<T> {
    let values: Vec<Value> = serde_json::from_str(text).unwrap();
    let parsed: Vec<T> = values
        .iter()
        .map(|v| serde_json::from_value(v.clone()).unwrap())
        .collect();
    for (value, parsed) in values.iter().zip(&parsed) {
        assert_eq!(&serde_json::to_value(parsed).unwrap(), value);
    }
    parsed
}

#[test]
fn configurations_are_read_and_written_alike() {
    for text in [
        include_str!("fixtures/config-boot.json"),
        include_str!("fixtures/config-restore.json"),
    ] {
        let config = Config::parse(text.as_bytes()).unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&config).unwrap(), value);
    }
}

#[test]
fn requests_are_read_and_written_alike() {
    let requests: Vec<Request> = same(include_str!("fixtures/requests.json"));
    assert_eq!(requests.len(), 10, "each kind is there");
    for request in requests {
        Request::parse(&serde_json::to_vec(&request).unwrap()).unwrap();
    }
}

#[test]
fn answers_and_reports_are_read_and_written_alike() {
    same::<Answer>(include_str!("fixtures/answers.json"));
    same::<Started>(include_str!("fixtures/started.json"));
    same::<ExitReport>(include_str!("fixtures/exit.json"));
}
