//! What an ADD ran with and gave, one file per pod: DEL must run with the same, though the
//! configuration may have changed since (CNI spec 1.1, "prevResult" for DEL).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    conf::{self, NetworkConf},
    exec::Attachment,
};
use crate::{durable, listing::file_names, network::NetworkError, task::blocking};

/// The directory of the files.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// One pod's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cached {
    version: String,
    pub(super) name: String,
    #[serde(default)]
    disable_check: bool,
    plugins: Vec<Map<String, Value>>,
    netns: PathBuf,
    pub(super) arguments: Map<String, Value>,
    /// The answer of the last plugin, if ADD came to its end.
    pub(super) result: Option<Value>,
}

impl Cached {
    pub(super) fn new(
        conf: &NetworkConf,
        attachment: &Attachment,
        arguments: Map<String, Value>,
    ) -> Self {
        Self {
            version: conf.version.clone(),
            name: conf.name.clone(),
            disable_check: conf.disable_check,
            plugins: conf
                .plugins
                .iter()
                .map(|plugin| plugin.object.clone())
                .collect(),
            netns: attachment.netns.clone(),
            arguments,
            result: None,
        }
    }

    /// The configuration of then, checked as one read from a file.
    pub(super) fn conf(&self) -> Result<NetworkConf, NetworkError> {
        let text = serde_json::json!({
            "cniVersion": self.version, "name": self.name, "plugins": self.plugins,
            "disableCheck": self.disable_check, "loadOnlyInlinedPlugins": true,
        });
        conf::parse(Path::new("kept for DEL"), text.to_string().as_bytes())
    }
}

impl Cache {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A pod's file. Its id is the daemon's own word: no path can be in it.
    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Keeps a pod's, in place of what was kept for it. Written beside and renamed: a crash leaves
    /// the old or the new.
    pub(super) async fn put(&self, id: &str, cached: &Cached) -> Result<(), NetworkError> {
        let path = self.path(id);
        let text = serde_json::to_vec(cached).map_err(|error| NetworkError::Cache {
            what: "keep",
            path: path.clone(),
            source: error.into(),
        })?;
        let dir = self.dir.clone();
        blocking(move || {
            let write = || {
                fs::create_dir_all(&dir)?;
                durable::replace(&path, &text)
            };
            write().map_err(|source| NetworkError::Cache {
                what: "keep",
                path: path.clone(),
                source,
            })
        })
        .await
    }

    /// What is kept for a pod.
    pub(super) async fn get(&self, id: &str) -> Result<Option<Cached>, NetworkError> {
        let path = self.path(id);
        blocking(move || {
            let failed = |source| NetworkError::Cache {
                what: "read",
                path: path.clone(),
                source,
            };
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                text => serde_json::from_slice(&text.map_err(failed)?)
                    .map(Some)
                    .map_err(|error| failed(error.into())),
            }
        })
        .await
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), NetworkError> {
        let path = self.path(id);
        blocking(move || match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetworkError::Cache {
                what: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        })
        .await
    }

    pub(super) async fn ids(&self) -> Result<Vec<String>, NetworkError> {
        let dir = self.dir.clone();
        blocking(move || {
            let failed = |source| NetworkError::Cache {
                what: "list",
                path: dir.clone(),
                source,
            };
            let mut ids = Vec::new();
            for name in file_names(&dir).map_err(failed)? {
                let path = Path::new(&name);
                if path.extension().is_some_and(|ending| ending == "json")
                    && let Some(id) = path.file_stem().and_then(|stem| stem.to_str())
                {
                    ids.push(id.to_owned());
                }
            }
            Ok(ids)
        })
        .await
    }
}
