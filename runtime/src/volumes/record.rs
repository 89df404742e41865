//! What a container's record keeps of its volumes: all that is on the host and has to be given back,
//! and what the daemon takes up again after a restart.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{share::MountOptions, token::Token};

/// One thing a container holds for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VolumeRecord {
    /// A mount in the pod's share.
    Share {
        /// Its entry.
        name: String,
        /// The source, without links.
        path: PathBuf,
        /// The source's device.
        device: u64,
        /// The source's inode.
        inode: u64,
        /// How it is mounted.
        #[serde(rename = "manner")]
        options: MountOptions,
    },
    /// A copy that follows the source.
    Copy {
        /// Its name in the guest.
        name: String,
        /// The source, without links.
        path: PathBuf,
    },
    /// A volume in the guest's memory whose size follows the kubelet's own.
    Memory {
        /// Its name in the guest.
        name: String,
        /// The kubelet's file system, whose size it has.
        path: PathBuf,
        /// That file system's device.
        device: u64,
    },
    /// A socket of the host that the guest can reach.
    Socket {
        /// Its name in the guest.
        name: String,
        /// The socket, without links.
        path: PathBuf,
        /// The vsock port it is reached by.
        port: u32,
        /// What the agent says there first. None for an agent from before there were tokens.
        #[serde(default)]
        token: Option<Token>,
    },
    /// A block device that is a disk of the guest.
    Disk {
        /// Its serial.
        serial: String,
    },
    /// An image volume.
    Image {
        /// In whose name the image is held.
        holder: String,
        /// Serials of its layers.
        layers: Vec<String>,
    },
}

impl VolumeRecord {
    /// Serials of the disks of the VM that it needs.
    pub fn disks(&self) -> Vec<String> {
        match self {
            Self::Disk { serial } => vec![serial.clone()],
            Self::Image { layers, .. } => layers.clone(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_an_earlier_release_is_read_and_written_as_it_was() {
        let old = r#"{"kind":"share","name":"n","path":"/s","device":1,"inode":2,"manner":{"read_only":"top","follows_host":true,"returns":false}}"#;
        let record: VolumeRecord = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), old);
    }

    #[test]
    fn a_socket_keeps_its_token_and_an_old_record_is_read() {
        let old = r#"{"kind":"socket","name":"n","path":"/s","port":7}"#;
        let mut record: VolumeRecord = serde_json::from_str(old).unwrap();
        assert!(matches!(record, VolumeRecord::Socket { token: None, .. }));
        if let VolumeRecord::Socket { token, .. } = &mut record {
            *token = Some(Token::new().unwrap());
        }
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<VolumeRecord>(&text).unwrap(), record);
    }
}
