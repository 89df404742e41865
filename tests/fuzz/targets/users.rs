//! The users and groups of an image: whoever is found has the numbers of a line of its files or of
//! what was asked for, and never the one that means "no change".
#![no_main]

use bulkhead_agent::user::resolve_in;
use bulkhead_proto::agent::User;
use libfuzzer_sys::fuzz_target;

type Asked<'a> = (&'a str, Option<u32>, Option<u32>, Vec<u32>, bool);

fuzz_target!(|input: (Asked<'_>, &str, &str)| {
    let ((name, uid, gid, supplemental_gids, strict_groups), passwd, group) = input;
    // The fuzzer should not have to find that number.
    let text = |raw: &str| raw.replace('^', "4294967295");
    let (name, passwd, group) = (text(name), text(passwd), text(group));
    let user = User {
        name: name.clone(),
        uid,
        gid,
        supplemental_gids,
        strict_groups,
    };
    let Ok(identity) = resolve_in(&user, &passwd, &group) else {
        return;
    };
    let found = &identity.user;
    if let Some(uid) = user.uid {
        assert_eq!(found.uid, uid);
    }
    if let Some(gid) = user.gid {
        assert_eq!(found.gid, gid);
    }
    assert_eq!(found.gids.first(), Some(&found.gid));
    assert!(
        user.supplemental_gids
            .iter()
            .all(|gid| found.gids.contains(gid))
    );
    for (at, gid) in found.gids.iter().enumerate() {
        assert!(!found.gids[..at].contains(gid), "{gid} stands there twice");
    }
    if user.strict_groups {
        assert!(found.gids.len() <= 1 + user.supplemental_gids.len());
    }
    // setresuid(2) and its like take it as "leave it as it is", which is root.
    let asked = |id: Option<u32>| id == Some(u32::MAX);
    assert!(found.uid != u32::MAX || asked(user.uid));
    assert!(found.gid != u32::MAX || asked(user.gid));
    let extra = found.gids.iter().skip(1);
    for gid in extra.filter(|gid| **gid == u32::MAX) {
        assert!(user.supplemental_gids.contains(gid));
    }
    if user.uid.is_none() && user.name.is_empty() {
        assert_eq!(found.uid, 0);
    }
});
