//! Where the sources are: the workspace's root, and the root file of each crate of its members.

use std::path::{Path, PathBuf};

use crate::tree;

/// Why the circles cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No `Cargo.toml` with `[workspace]` from here up to the root directory.
    #[error("no workspace around {0}: call this in the checkout, or give its directory")]
    NoWorkspace(PathBuf),
    /// The manifest has no list of members.
    #[error("{0} has no `members = [\"…\"]`")]
    NoMembers(PathBuf),
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A crate's sources do not make a tree of modules.
    #[error(transparent)]
    Tree(#[from] tree::Error),
}

/// The directory of the workspace that `start` lies in.
pub(crate) fn root(start: &Path) -> Result<PathBuf, Error> {
    let start = start.canonicalize().map_err(|source| Error::Read {
        path: start.into(),
        source,
    })?;
    start
        .ancestors()
        .find(|directory| {
            std::fs::read_to_string(directory.join("Cargo.toml"))
                .is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]"))
        })
        .map(Path::to_path_buf)
        .ok_or(Error::NoWorkspace(start))
}

/// The root file of every library and program of the workspace's members, from its root.
pub(crate) fn roots(workspace: &Path) -> Result<Vec<PathBuf>, Error> {
    let manifest = workspace.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).map_err(|source| Error::Read {
        path: manifest.clone(),
        source,
    })?;
    let members = members(&text).ok_or(Error::NoMembers(manifest))?;
    let mut roots = Vec::new();
    for member in members {
        let source = Path::new(&member).join("src");
        let mut candidates = vec![source.join("lib.rs"), source.join("main.rs")];
        let programs = source.join("bin");
        if workspace.join(&programs).is_dir() {
            let unread = |error| Error::Read {
                path: programs.clone(),
                source: error,
            };
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(workspace.join(&programs)).map_err(unread)? {
                entries.push(programs.join(entry.map_err(unread)?.file_name()));
            }
            entries.sort();
            for entry in entries {
                candidates.push(if entry.extension().is_some_and(|end| end == "rs") {
                    entry
                } else {
                    entry.join("main.rs")
                });
            }
        }
        roots.extend(
            candidates
                .into_iter()
                .filter(|file| workspace.join(file).is_file()),
        );
    }
    Ok(roots)
}

/// What stands in `members = […]` of a manifest.
fn members(manifest: &str) -> Option<Vec<String>> {
    let lines: Vec<&str> = manifest
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect();
    let start = lines.iter().position(|line| {
        line.trim_start()
            .strip_prefix("members")
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    })?;
    let text = lines.get(start..)?.join("\n");
    let list = text.split_once('[')?.1.split_once(']')?.0;
    Some(
        list.split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_from_one_line_and_from_several() {
        let expected = Some(vec!["a".to_owned(), "b/c".to_owned()]);
        assert_eq!(
            members("[workspace]\nmembers = [\"a\", \"b/c\"]\ndefault-members = [\"a\"]"),
            expected
        );
        assert_eq!(
            members("members=[ # all\n  \"a\",\n  # \"not this\"\n  \"b/c\",\n]\n"),
            expected
        );
        assert_eq!(members("default-members = [\"a\"]"), None);
    }

    #[test]
    fn this_workspace_has_this_crate() {
        let workspace = root(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let roots = roots(&workspace).unwrap();
        for file in [
            "tests/circles/src/main.rs",
            "runtime/src/lib.rs",
            "tests/src/bin/e2e.rs",
        ] {
            assert!(roots.contains(&PathBuf::from(file)), "{file}: {roots:?}");
        }
    }
}
