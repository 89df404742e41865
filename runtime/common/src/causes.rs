//! An error with its causes, as one line.

use std::error::Error;

/// The text of an error and its causes, `outer: inner: innermost`. A cause whose text stands in
/// the outer one already is not repeated.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_part_of_the_text_once() {
        let outer = Outer(std::io::Error::other("no disk"));
        assert_eq!(chain(&outer), "cannot start: no disk");
    }
}
