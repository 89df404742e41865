//! The kernel's answers as users search for them.

use rustix::io::Errno;

/// An answer of the kernel as users search for it: without the number.
pub fn words(error: Errno) -> String {
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
    fn the_kernels_words_are_those_users_know() {
        assert_eq!(words(Errno::NOENT), "no such file or directory");
        assert_eq!(words(Errno::NOTDIR), "not a directory");
        assert_eq!(words(Errno::ACCESS), "permission denied");
        assert_eq!(words(Errno::NOEXEC), "exec format error");
        assert_eq!(words(Errno::TOOBIG), "argument list too long");
    }
}
