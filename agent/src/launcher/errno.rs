//! The kernel's answers as users search for them.

use rustix::io::Errno;

/// An answer of the kernel as users search for it: without the number.
pub fn errno_text(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_texts_are_those_of_other_runtimes() {
        assert_eq!(errno_text(Errno::NOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::NOTDIR), "not a directory");
        assert_eq!(errno_text(Errno::ACCESS), "permission denied");
        assert_eq!(errno_text(Errno::NOEXEC), "exec format error");
        assert_eq!(errno_text(Errno::TOOBIG), "argument list too long");
    }
}
