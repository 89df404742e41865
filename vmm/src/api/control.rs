//! Whether a control request makes sense. The messages themselves are the contract's.

use bulkhead_contract::vmm::Request;

use super::config::{ConfigError, valid_disk, valid_later_net};

/// Parses a request and validates it.
///
/// # Errors
/// What is wrong.
pub fn parse(json: &[u8]) -> Result<Request, ConfigError> {
    let request: Request = serde_json::from_slice(json)?;
    match &request {
        Request::Attach { disk } => valid_disk(disk)?,
        Request::AttachNet { net } => valid_later_net(net)?,
        _ => {}
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_contract_says() {
        assert_eq!(parse(br#"{"boot": {}}"#).unwrap(), Request::Boot {});
        assert_eq!(
            parse(br#"{"detach": {"id": "a"}}"#).unwrap(),
            Request::Detach { id: "a".into() }
        );
        let net = br#"{"attach_net": {"net": {"id": "net1", "mac": "02:00:00:00:00:01", "mtu": 1500, "queue_size": 256}}}"#;
        assert!(matches!(parse(net).unwrap(), Request::AttachNet { net } if net.id == "net1"));
        for bad in [
            &br#"{"explode": {}}"#[..],
            br#"{"attach_net": {"net": {"id": "fs", "mac": "02:00:00:00:00:01", "mtu": 1500, "queue_size": 256}}}"#,
            br#"{"attach_net": {"net": {"id": "a", "mac": "03:00:00:00:00:01", "mtu": 1500, "queue_size": 256}}}"#,
            br#"{"attach_net": {"net": {"id": "a", "mac": "02:00:00:00:00:01", "mtu": 67, "queue_size": 256}}}"#,
            br#"{"attach_net": {"net": {"id": "a", "mac": "02:00:00:00:00:01", "mtu": 1500, "queue_size": 100}}}"#,
            br#"{"boot": {"now": true}}"#,
            br#"{"boot": {}, "stop": {}}"#,
            br#"{"attach": {"disk": {"id": "rng", "read_only": true, "queues": 1}}}"#,
            br#"{"attach": {"disk": {"id": "a", "read_only": true, "queues": 17}}}"#,
            br#"{"attach": {"disk": {"id": "a", "read_only": true, "queues": 1, "parts": [4096, 0]}}}"#,
            br#"{"attach": {"disk": {"id": "a", "read_only": true, "queues": 1, "parts": [4095]}}}"#,
            br#"{"attach": {"disk": {"id": "a", "read_only": true, "queues": 1, "parts": [-4096]}}}"#,
            br#"{"attach": {"disk": {"id": "a", "read_only": false, "queues": 1, "parts": [4096]}}}"#,
            br#"[]"#,
            b"",
            b"\xff",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
