//! The options of a mount, as fstab and the OCI runtime spec write them: attributes of the mount,
//! its propagation, and what is left for the file system. Pure.

use crate::mount_attr::{
    ATIME, Change, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, RDONLY, RELATIME,
    STRICTATIME,
};

/// linux/mount.h
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;

/// A mount's options, taken apart.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// It shows a directory or file that is there.
    pub bind: bool,
    /// With what is mounted below.
    pub recursive: bool,
    /// Attributes of this mount alone.
    pub own: Change,
    /// Attributes of this mount and of those below: the options with an r before.
    pub all: Change,
    /// MS_SHARED and the like, 0 if nothing was said.
    pub propagation: u64,
    /// Whether propagation concerns those below as well.
    pub propagation_recursive: bool,
    /// Options for the file system itself: `key` or `key=value`.
    pub data: Vec<String>,
}

/// Takes options apart. The last word counts where two contradict each other.
pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Options {
    let mut parsed = Options::default();
    for option in options {
        if let Some((change, recursive)) = attribute(option) {
            let own = if recursive {
                &mut parsed.all
            } else {
                &mut parsed.own
            };
            own.set = (own.set & !change.clear & !change.set) | change.set;
            own.clear = (own.clear & !change.set) | change.clear;
            continue;
        }
        if let Some((propagation, recursive)) = propagation(option) {
            parsed.propagation = propagation;
            parsed.propagation_recursive = recursive;
            continue;
        }
        match option {
            "bind" => parsed.bind = true,
            "rbind" => {
                parsed.bind = true;
                parsed.recursive = true;
            }
            // The defaults of a mount, and options for mount(8) alone.
            "defaults" | "" | "async" | "auto" | "noauto" | "nouser" | "_netdev" => {}
            data => parsed.data.push(data.to_owned()),
        }
    }
    parsed.all.recursive = true;
    parsed
}

/// An attribute, and whether it holds for the mounts below, too.
fn attribute(option: &str) -> Option<(Change, bool)> {
    let set = |bits| Change {
        set: bits,
        ..Change::default()
    };
    let clear = |bits| Change {
        clear: bits,
        ..Change::default()
    };
    let access = |bits| Change {
        set: bits,
        clear: ATIME,
        ..Change::default()
    };
    let plain = |option: &str| {
        Some(match option {
            "ro" => set(RDONLY),
            "rw" => clear(RDONLY),
            "nosuid" => set(NOSUID),
            "suid" => clear(NOSUID),
            "nodev" => set(NODEV),
            "dev" => clear(NODEV),
            "noexec" => set(NOEXEC),
            "exec" => clear(NOEXEC),
            "noatime" => access(NOATIME),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => access(RELATIME),
            "strictatime" => access(STRICTATIME),
            "nodiratime" => set(NODIRATIME),
            "diratime" => clear(NODIRATIME),
            "nosymfollow" => set(NOSYMFOLLOW),
            "symfollow" => clear(NOSYMFOLLOW),
            _ => return None,
        })
    };
    if let Some(change) = plain(option) {
        return Some((change, false));
    }
    // "relatime" and "rw" are names of their own; those with an r before are what is left.
    let rest = option.strip_prefix('r')?;
    plain(rest).map(|change| (change, true))
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    let plain = |option: &str| {
        Some(match option {
            "private" => MS_PRIVATE,
            "slave" => MS_SLAVE,
            "shared" => MS_SHARED,
            "unbindable" => MS_UNBINDABLE,
            _ => return None,
        })
    };
    match plain(option) {
        Some(bits) => Some((bits, false)),
        None => plain(option.strip_prefix('r')?).map(|bits| (bits, true)),
    }
}

impl Options {
    /// What is done to the mount, in this order. A mount about which nothing is said stays private
    /// to the container, but for what its source gives it.
    pub fn changes(&self) -> impl Iterator<Item = Change> {
        let propagation = Change {
            propagation: match self.propagation {
                0 => MS_SLAVE,
                bits => bits,
            },
            recursive: self.propagation == 0 || self.propagation_recursive,
            ..Change::default()
        };
        let attributes = [self.own, self.all]
            .into_iter()
            .filter(|change| change.set != 0 || change.clear != 0);
        attributes.chain([propagation])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_are_split_into_attributes_propagation_and_data() {
        let all = [
            "rbind",
            "ro",
            "rnosuid",
            "noexec",
            "exec",
            "rslave",
            "size=64k",
            "newinstance",
        ];
        let parsed = parse(all);
        assert!(parsed.bind && parsed.recursive && parsed.propagation_recursive);
        assert_eq!((parsed.own.set, parsed.own.clear), (RDONLY, NOEXEC));
        assert_eq!((parsed.all.set, parsed.all.recursive), (NOSUID, true));
        assert_eq!(parsed.propagation, MS_SLAVE);
        assert_eq!(parsed.data, ["size=64k", "newinstance"]);
    }

    #[test]
    fn the_last_of_contradicting_options_wins() {
        assert_eq!(parse(["ro", "rw"]).own.set, 0);
        assert_eq!(parse(["rw", "ro"]).own, parse(["ro"]).own);
        let access = parse(["noatime", "strictatime"]).own;
        assert_eq!((access.set, access.clear), (STRICTATIME, ATIME));
        assert_eq!(parse(["rro"]).all.set, RDONLY);
        assert_eq!(parse(["relatime"]).own.clear, ATIME);
        assert_eq!(parse(["rrelatime"]).all.clear, ATIME);
    }

    proptest! {
        #[test]
        fn no_attribute_is_set_and_cleared_unless_it_is_access_times(
            options in prop::collection::vec("r?(no)?(suid|dev|exec|atime|diratime|ro|rw|x=1)", 0..12)
        ) {
            let parsed = parse(options.iter().map(String::as_str));
            for change in [parsed.own, parsed.all] {
                prop_assert_eq!(change.set & change.clear & !ATIME, 0);
                // The kernel takes a change of access times only as a whole.
                prop_assert!(change.set & ATIME == 0 || change.clear & ATIME == ATIME);
            }
        }
    }
}
