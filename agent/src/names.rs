//! Names that come from outside and become part of paths.

/// Whether a text is a name: 1 to `longest` characters of A-Z a-z 0-9 . _ -, and not only dots.
pub fn is_name(text: &str, longest: usize) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=longest).contains(&text.len()) && text.chars().all(good) && !text.chars().all(|c| c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "...",
            "a/b",
            "a b",
            "a\0",
            "äöü",
            &"x".repeat(65),
        ] {
            assert!(!is_name(bad, 64), "{bad:?}");
        }
        for good in ["12ab-0", "a.b-c_d", &"x".repeat(64)] {
            assert!(is_name(good, 64), "{good:?}");
        }
    }
}
