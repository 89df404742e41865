//! Which namespaces are pods' of this daemon. They lie where CNI daemons look for them
//! (`network.netns_dir`), beside others': by name alone it would not be known whose one is, as there may be
//! more than one daemon. So each is noted in the daemon's own run-time directory, by a link of the pod's id
//! to it: made before it, removed after it. A reboot takes both.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{NetworkError, netns};
use crate::{
    id::is_id,
    listing::file_names,
    task::{TaskError, blocking},
};

/// What comes before a pod's id in the name of its namespace.
const PREFIX: &str = "bulkhead-";

/// The directory of the namespaces, and that of the links.
#[derive(Debug, Clone)]
pub struct Namespaces {
    dir: PathBuf,
    links: PathBuf,
}

impl Namespaces {
    /// Namespaces in `dir`, links in `links`.
    pub fn new(dir: PathBuf, links: PathBuf) -> Self {
        Self { dir, links }
    }

    /// The file of a pod's namespace.
    pub fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{PREFIX}{id}"))
    }

    fn link(&self, id: &str) -> PathBuf {
        self.links.join(id)
    }

    /// Makes a pod's namespace.
    ///
    /// # Errors
    /// If it is there, or the kernel refuses; then [`remove`](Self::remove) takes away what was made.
    pub async fn create(&self, id: &str) -> Result<(), NetworkError> {
        let (path, link) = (self.path(id), self.link(id));
        blocking(move || {
            note(&path, &link).map_err(|source| NetworkError::Namespace {
                what: "note the pod of",
                path: path.clone(),
                source,
            })?;
            netns::create(&path)
        })
        .await
    }

    /// Whether there is a namespace at `path`.
    pub async fn exists(&self, path: &Path) -> bool {
        let target = path.to_owned();
        let found: Result<bool, TaskError> = blocking(move || Ok(netns::exists(&target))).await;
        found.unwrap_or(false)
    }

    /// Removes a pod's namespace, which is at `path`, and its link. Repeatable.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove(&self, id: &str, path: &Path) -> Result<(), NetworkError> {
        let (target, link) = (path.to_owned(), self.link(id));
        blocking(move || {
            netns::remove(&target)?;
            match fs::remove_file(&link) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(NetworkError::Namespace {
                        what: "remove the link to",
                        path: target,
                        source,
                    })
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// The pods that have a namespace here, or had one.
    ///
    /// # Errors
    /// If the links cannot be listed.
    pub async fn ids(&self) -> Result<Vec<String>, NetworkError> {
        let dir = self.links.clone();
        blocking(move || {
            let failed = |source| NetworkError::Namespace {
                what: "list those below",
                path: dir.clone(),
                source,
            };
            let names = file_names(&dir).map_err(failed)?.into_iter();
            let names = names.filter_map(|name| name.into_string().ok());
            Ok(names.filter(|name| is_id(name)).collect())
        })
        .await
    }

    /// Where a pod's namespace was made, though the configuration may name another directory now.
    pub fn noted(&self, id: &str) -> PathBuf {
        let link = self.link(id);
        match fs::read_link(&link) {
            Ok(path) if path.ends_with(format!("{PREFIX}{id}")) => path,
            Ok(_) => self.path(id),
            // Until November 2026 the namespace itself was there.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => link,
            Err(_) => self.path(id),
        }
    }
}

fn note(path: &Path, link: &Path) -> io::Result<()> {
    if let Some(dir) = link.parent() {
        fs::create_dir_all(dir)?;
    }
    symlink(path, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0badcafe00112233445566778899aabb";

    #[tokio::test]
    async fn only_its_own_are_listed_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let namespaces = Namespaces::new(at("netns"), at("links"));
        assert!(namespaces.ids().await.unwrap().is_empty());
        fs::create_dir(at("netns")).unwrap();
        fs::create_dir(at("links")).unwrap();
        // Another daemon's pod, another runtime's, and what is no pod's.
        for name in [
            "bulkhead-00112233445566778899aabbccddeeff",
            "cni-1234",
            "blue",
        ] {
            fs::write(at("netns").join(name), "").unwrap();
        }
        fs::write(at("links/README"), "").unwrap();
        note(&namespaces.path(ID), &namespaces.link(ID)).unwrap();
        assert_eq!(namespaces.ids().await.unwrap(), [ID]);
        assert_eq!(
            namespaces.noted(ID),
            at("netns").join(format!("bulkhead-{ID}"))
        );
        for _ in 0..2 {
            namespaces.remove(ID, &namespaces.path(ID)).await.unwrap();
        }
        assert!(namespaces.ids().await.unwrap().is_empty());
        assert_eq!(fs::read_dir(at("netns")).unwrap().count(), 3);
    }

    #[tokio::test]
    async fn a_namespace_is_found_where_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let before = Namespaces::new(at("before"), at("links"));
        let namespaces = Namespaces::new(at("now"), at("links"));
        note(&before.path(ID), &before.link(ID)).unwrap();
        assert_eq!(namespaces.noted(ID), before.path(ID));
        // A link that leads to what is not the pod's is not followed.
        fs::remove_file(before.link(ID)).unwrap();
        symlink("/etc/passwd", before.link(ID)).unwrap();
        assert_eq!(namespaces.noted(ID), namespaces.path(ID));
        // As earlier daemons had it.
        fs::remove_file(before.link(ID)).unwrap();
        fs::write(before.link(ID), "").unwrap();
        assert_eq!(namespaces.noted(ID), at("links").join(ID));
        namespaces.remove(ID, &namespaces.noted(ID)).await.unwrap();
        assert!(namespaces.ids().await.unwrap().is_empty());
    }
}
