//! The pod's hostname, hosts and resolv.conf files, which every container binds. Written in place:
//! a bind mount follows the file, not its name.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use bulkhead_proto::agent::Dns;

use super::NetError;

fn write(path: &Path, text: &str) -> Result<(), NetError> {
    let attempt = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // Truncates and writes the same file.
        File::create(path)?.write_all(text.as_bytes())
    };
    attempt().map_err(|error| NetError::File {
        path: path.to_owned(),
        error,
    })
}

/// Refuses what would become a second line of the file.
fn one_line<'a>(field: &'static str, text: &'a str) -> Result<&'a str, NetError> {
    if text.chars().any(char::is_control) {
        return Err(NetError::Invalid {
            field,
            value: text.to_owned(),
            expected: "one line without control characters",
        });
    }
    Ok(text)
}

/// The text of resolv.conf, in the order in which containerd writes it.
///
/// # Errors
/// For entries with line breaks.
pub fn resolv_conf(dns: &Dns) -> Result<String, NetError> {
    let mut text = String::new();
    list("search", &dns.searches, &mut text)?;
    for server in &dns.servers {
        text.push_str(&format!("nameserver {}\n", one_line("DNS server", server)?));
    }
    list("options", &dns.options, &mut text)?;
    Ok(text)
}

/// A line of several items, where there are any.
fn list(word: &str, items: &[String], text: &mut String) -> Result<(), NetError> {
    if items.is_empty() {
        return Ok(());
    }
    text.push_str(word);
    for item in items {
        text.push(' ');
        text.push_str(one_line("DNS", item)?);
    }
    text.push('\n');
    Ok(())
}

/// The text of hosts: localhost, and the pod under each of its addresses.
///
/// # Errors
/// For a hostname with line breaks.
pub fn hosts(hostname: &str, addresses: &[IpAddr]) -> Result<String, NetError> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        let hostname = one_line("hostname", hostname)?;
        for address in addresses {
            text.push_str(&format!("{address}\t{hostname}\n"));
        }
    }
    Ok(text)
}

/// Writes resolv.conf.
///
/// # Errors
/// For bad entries, or when the guest's memory is full.
pub fn write_resolv_conf(directory: &Path, dns: &Dns) -> Result<(), NetError> {
    write(&directory.join("resolv.conf"), &resolv_conf(dns)?)
}

/// Writes hosts.
///
/// # Errors
/// For a bad hostname, or when the guest's memory is full.
pub fn write_hosts(directory: &Path, hostname: &str, addresses: &[IpAddr]) -> Result<(), NetError> {
    write(&directory.join("hosts"), &hosts(hostname, addresses)?)
}

/// Copies the host's own file: that of pods in the host's network. A host without one has an empty
/// one.
///
/// # Errors
/// If it cannot be read or written.
pub fn copy_hosts(from: &Path, directory: &Path) -> Result<(), NetError> {
    let text = match fs::read_to_string(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(|error| NetError::File {
            path: from.to_owned(),
            error,
        })?,
    };
    write(&directory.join("hosts"), &text)
}

/// Writes hostname.
///
/// # Errors
/// For a bad name, or when the guest's memory is full.
pub fn write_hostname(directory: &Path, hostname: &str) -> Result<(), NetError> {
    write(
        &directory.join("hostname"),
        &format!("{}\n", one_line("hostname", hostname)?),
    )
}

/// Writes the guest's machine id.
///
/// # Errors
/// For anything but 32 hexadecimal digits.
pub fn write_machine_id(path: &Path, id: &str) -> Result<(), NetError> {
    let good = id.len() == 32
        && id
            .chars()
            .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    if !good {
        return Err(NetError::Invalid {
            field: "machine_id",
            value: id.to_owned(),
            expected: "32 lower-case hexadecimal digits",
        });
    }
    write(path, &format!("{id}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_what_was_given_and_nothing_else() {
        let dns = Dns {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "search default.svc svc\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        let bad = Dns {
            servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()],
            ..Dns::default()
        };
        assert!(resolv_conf(&bad).is_err());
        let hosts = hosts("pod", &["10.0.0.5".parse().unwrap()]).unwrap();
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.ends_with("10.0.0.5\tpod\n"));
    }

    #[test]
    fn a_file_is_rewritten_in_place() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let inode = || {
            std::fs::metadata(directory.path().join("hostname"))
                .unwrap()
                .ino()
        };
        write_hostname(directory.path(), "a-long-name").unwrap();
        let first = inode();
        write_hostname(directory.path(), "b").unwrap();
        assert_eq!(inode(), first);
        assert_eq!(
            std::fs::read_to_string(directory.path().join("hostname")).unwrap(),
            "b\n"
        );
    }
}
