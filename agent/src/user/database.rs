//! Lines of /etc/passwd and /etc/group. Pure; lines that are not well-formed are skipped.

/// One user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passwd<'a> {
    /// Login name, empty for a number the file does not have.
    pub name: &'a str,
    /// Number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: &'a str,
}

impl Passwd<'_> {
    /// A user known by number only: group 0, as every runtime takes it.
    pub fn nameless(uid: u32) -> Self {
        Self {
            name: "",
            uid,
            gid: 0,
            home: "",
        }
    }
}

/// One group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group<'a> {
    /// Name.
    pub name: &'a str,
    /// Number.
    pub gid: u32,
    members: &'a str,
}

fn users(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

/// A number. Not the last one, which the identity system calls take as "no change": whoever had it
/// would stay root.
pub fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// The user of a name; the first one counts.
pub fn user_by_name<'a>(text: &'a str, name: &str) -> Option<Passwd<'a>> {
    users(text).find(|user| user.name == name)
}

/// The user of a number; the first one counts.
pub fn user_by_id(text: &str, uid: u32) -> Option<Passwd<'_>> {
    users(text).find(|user| user.uid == uid)
}

/// The group of a name.
pub fn group_by_name<'a>(text: &'a str, name: &str) -> Option<Group<'a>> {
    groups(text).find(|group| group.name == name)
}

/// The groups that list a user as member.
pub fn groups_of<'a>(text: &'a str, user: &'a str) -> impl Iterator<Item = Group<'a>> {
    groups(text).filter(move |group| group.members.split(',').any(|member| member.trim() == user))
}
