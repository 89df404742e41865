//! The documents of the contract are ones that make sense to the VMM.
#![allow(missing_docs, clippy::unwrap_used)]

use bulkhead_vmm::api::{parse_config, parse_request};
use serde_json::Value;

#[test]
fn configurations_are_possible() {
    for text in [
        include_str!("../../contract/tests/golden/0.1/config-boot.json"),
        include_str!("../../contract/tests/golden/0.1/config-restore.json"),
    ] {
        parse_config(text.as_bytes()).unwrap();
    }
}

#[test]
fn requests_are_possible() {
    let text = include_str!("../../contract/tests/golden/0.1/requests.json");
    let requests: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(!requests.is_empty());
    for request in requests {
        parse_request(request.to_string().as_bytes()).unwrap();
    }
}
