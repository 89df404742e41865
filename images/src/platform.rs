//! Platforms as image authors write them, and whether one is this node's. Pure.
//!
//! The spellings that count as one are those of containerd's `platforms` package: images made by
//! hand say `x86_64`, or leave out what goes without saying.

use std::fmt;

/// What this node runs.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// An operating system and a processor, normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// In whatever spelling. What is empty is the node's own.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "" => OS.to_owned(),
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.to_ascii_lowercase();
        let (architecture, variant) = match architecture.to_ascii_lowercase().as_str() {
            "" => (ARCHITECTURE.to_owned(), variant),
            "i386" => ("386".to_owned(), String::new()),
            "x86_64" | "x86-64" | "amd64" => (
                "amd64".to_owned(),
                match variant.as_str() {
                    // The baseline.
                    "1" | "v1" => String::new(),
                    "2" | "3" | "4" => format!("v{variant}"),
                    _ => variant,
                },
            ),
            "aarch64" | "arm64" => (
                "arm64".to_owned(),
                match variant.as_str() {
                    "8" | "v8" => String::new(),
                    _ => variant,
                },
            ),
            "armhf" => ("arm".to_owned(), "v7".to_owned()),
            "armel" => ("arm".to_owned(), "v6".to_owned()),
            "arm" => (
                "arm".to_owned(),
                match variant.as_str() {
                    "" | "7" => "v7".to_owned(),
                    "5" | "6" | "8" => format!("v{variant}"),
                    _ => variant,
                },
            ),
            other => (other.to_owned(), variant),
        };
        Self {
            os,
            architecture,
            variant,
        }
    }

    /// Whether the operating system is the node's.
    pub fn is_linux(&self) -> bool {
        self.os == OS
    }

    /// How far from the node's baseline, 0 for that itself; `None` for what does not run here.
    pub fn distance(&self) -> Option<u8> {
        if self.os != OS || self.architecture != ARCHITECTURE {
            return None;
        }
        Some(match self.variant.as_str() {
            "" => 0,
            "v2" => 1,
            "v3" => 2,
            _ => 3,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_spellings_of_one_platform() {
        for (os, architecture, variant, expected) in [
            ("linux", "amd64", "", "linux/amd64"),
            ("", "", "", "linux/amd64"),
            ("Linux", "x86_64", "", "linux/amd64"),
            ("linux", "X86-64", "v1", "linux/amd64"),
            ("linux", "amd64", "3", "linux/amd64/v3"),
            ("linux", "aarch64", "", "linux/arm64"),
            ("linux", "arm64", "v8", "linux/arm64"),
            ("linux", "arm64", "8", "linux/arm64"),
            ("linux", "arm64", "v9", "linux/arm64/v9"),
            ("linux", "arm", "", "linux/arm/v7"),
            ("linux", "arm", "6", "linux/arm/v6"),
            ("linux", "armhf", "", "linux/arm/v7"),
            ("linux", "armel", "", "linux/arm/v6"),
            ("linux", "i386", "x", "linux/386"),
            ("macOS", "arm64", "", "darwin/arm64"),
            ("linux", "riscv64", "", "linux/riscv64"),
        ] {
            let platform = Platform::new(os, architecture, variant);
            assert_eq!(platform.to_string(), expected);
        }
    }

    #[test]
    fn only_the_nodes_own_has_a_distance() {
        let distance = |os, architecture, variant| {
            let platform = Platform::new(os, architecture, variant);
            platform.distance()
        };
        assert_eq!(distance("linux", "x86_64", "v1"), Some(0));
        assert_eq!(distance("", "amd64", "v2"), Some(1));
        assert_eq!(distance("linux", "arm64", ""), None);
        assert_eq!(distance("windows", "amd64", ""), None);
    }
}
