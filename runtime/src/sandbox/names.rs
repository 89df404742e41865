//! What only one pod at a time may have: its name and its VMM's user id.

use std::collections::HashMap;

use bulkhead_proto::cri::PodSandboxMetadata;

use super::SandboxError;
use crate::records::SandboxRecord;

/// The names and user ids in use.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    names: HashMap<String, String>,
    uids: HashMap<u32, String>,
}

/// A pod's name as CRI makes it unique: name, namespace, uid and attempt.
pub(super) fn name_of(metadata: &PodSandboxMetadata) -> String {
    let PodSandboxMetadata {
        name,
        uid,
        namespace,
        attempt,
    } = metadata;
    format!("{namespace}/{name} (uid {uid}, attempt {attempt})")
}

/// The name a record reserves.
pub(super) fn of_record(record: &SandboxRecord) -> String {
    name_of(&record.config.metadata.clone().unwrap_or_default())
}

impl Reserved {
    /// Takes a name for a pod.
    pub(super) fn take_name(&mut self, name: &str, id: &str) -> Result<(), SandboxError> {
        if let Some(other) = self.names.get(name) {
            return Err(SandboxError::NameTaken {
                name: name.to_owned(),
                id: other.clone(),
            });
        }
        self.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    /// The pod that has a name.
    pub(super) fn holder(&self, name: &str) -> Option<String> {
        self.names.get(name).cloned()
    }

    /// Gives a name back, if it is this pod's.
    pub(super) fn free_name(&mut self, name: &str, id: &str) {
        if self.names.get(name).is_some_and(|owner| owner == id) {
            self.names.remove(name);
        }
    }

    /// Takes the lowest free user id of the range for a pod.
    pub(super) fn take_uid(
        &mut self,
        base: u32,
        count: u32,
        id: &str,
    ) -> Result<u32, SandboxError> {
        let free = (base..base.saturating_add(count)).find(|uid| !self.uids.contains_key(uid));
        let uid = free.ok_or(SandboxError::NoUid { base, count })?;
        self.keep_uid(uid, id);
        Ok(uid)
    }

    /// Counts a user id of an earlier daemon's pod as taken.
    pub(super) fn keep_uid(&mut self, uid: u32, id: &str) {
        self.uids.insert(uid, id.to_owned());
    }

    /// Gives a user id back, if it is this pod's.
    pub(super) fn free_uid(&mut self, uid: u32, id: &str) {
        if self.uids.get(&uid).is_some_and(|owner| owner == id) {
            self.uids.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_user_ids_are_taken_once_and_come_back() {
        let mut all = Reserved::default();
        all.take_name("a", "1").unwrap();
        assert!(matches!(
            all.take_name("a", "2"),
            Err(SandboxError::NameTaken { .. })
        ));
        all.free_name("a", "2");
        assert!(all.take_name("a", "2").is_err(), "another pod freed it");
        all.free_name("a", "1");
        all.take_name("a", "2").unwrap();

        all.keep_uid(10, "1");
        assert_eq!(all.take_uid(10, 3, "2").unwrap(), 11);
        assert_eq!(all.take_uid(10, 3, "3").unwrap(), 12);
        assert!(matches!(
            all.take_uid(10, 3, "4"),
            Err(SandboxError::NoUid { .. })
        ));
        all.free_uid(11, "1");
        assert!(all.take_uid(10, 3, "4").is_err(), "another pod freed it");
        all.free_uid(11, "2");
        assert_eq!(all.take_uid(10, 3, "4").unwrap(), 11);
    }
}
