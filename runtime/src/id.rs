//! Ids of pod sandboxes, containers and execs.

/// A new id: 32 random lower-case hexadecimal digits.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn new_id() -> std::io::Result<String> {
    Ok(format!(
        "{:032x}",
        u128::from_ne_bytes(bulkhead_common::random()?)
    ))
}

/// Whether a text has the form of an id.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
