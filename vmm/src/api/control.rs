//! Whether a control request makes sense. The messages themselves are the contract's.

use bulkhead_contract::vmm::Request;

use super::config::{ConfigError, valid_disk};

/// Parses a request and validates it.
///
/// # Errors
/// What is wrong.
pub fn parse(json: &[u8]) -> Result<Request, ConfigError> {
    let request: Request = serde_json::from_slice(json)?;
    if let Request::Attach { disk } = &request {
        valid_disk(&disk.id, disk.queues)?;
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
        for bad in [
            &br#"{"explode": {}}"#[..],
            br#"{"boot": {"now": true}}"#,
            br#"{"boot": {}, "stop": {}}"#,
            br#"{"attach": {"disk": {"id": "rng", "read_only": true, "queues": 1}}}"#,
            br#"{"attach": {"disk": {"id": "a", "read_only": true, "queues": 17}}}"#,
            br#"[]"#,
            b"",
            b"\xff",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
