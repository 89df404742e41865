//! Good and bad configuration files.

use std::path::Path;

use super::*;

fn error(text: &str) -> String {
    Config::parse(Path::new("/etc/test.toml"), text)
        .expect_err(text)
        .to_string()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = Config::parse(Path::new("x"), "").unwrap();
    assert_eq!(
        config.paths.socket,
        Path::new("/run/bulkhead/bulkhead.sock")
    );
    assert!(config.sandbox.vcpus >= 1);
    assert_eq!(config.vmm.full_kernel, None);
    assert!(config.boot.parallel >= 2);
    assert!(!config.host.allow_io_uring);
    let allowed = Config::parse(Path::new("x"), "[host]\nallow_io_uring = true\n").unwrap();
    assert!(allowed.host.allow_io_uring);
}

#[test]
fn the_printed_default_file_reads_back_as_the_defaults() {
    let text = raw::default_file();
    let back: raw::Raw = toml::from_str(&text).unwrap();
    assert_eq!(back, raw::Raw::default());
    Config::parse(Path::new("x"), &text).unwrap();
}

#[test]
fn bad_files_name_file_line_key_and_what_is_allowed() {
    let table: &[(&str, &[&str])] = &[
        (
            "[vmm]\nbinry = \"/x\"\n",
            &["/etc/test.toml", "line 2", "binry", "binary"],
        ),
        ("[vm]\n", &["line 1", "vm", "sandbox"]),
        (
            "[vmm]\n\nuid_base = \"x\"",
            &["line 3", "uid_base", "string"],
        ),
        (
            "[vmm]\nuid_base = 7",
            &["line 2", "vmm.uid_base = 7", "65536"],
        ),
        ("[vmm]\nuid_base = -1", &["line 2", "uid_base", "-1"]),
        (
            "[vmm]\nkernel = \"vmlinux\"",
            &["line 2", "vmm.kernel", "absolute"],
        ),
        (
            "[vmm]\nkernel = \"/a/../b\"",
            &["vmm.kernel", "absolute path without"],
        ),
        (
            "[vmm]\nfull_kernel = \"vmlinux-full\"",
            &["line 2", "vmm.full_kernel", "absolute"],
        ),
        ("[vmm]\ncmdline = \"a\\nb\"", &["vmm.cmdline", "printable"]),
        (
            "[vmm]\nvhost_net = \"yes\"",
            &["vmm.vhost_net", "\"auto\", \"always\", \"never\""],
        ),
        (
            "[paths]\nrun_dir = \"/a-very-long-directory-name-that-leaves-no-room-for-sockets\"",
            &["paths.run_dir", "at most 49 bytes"],
        ),
        (
            "[sandbox]\nmemory_mib = 8",
            &["sandbox.memory_mib = 8", "from 80"],
        ),
        (
            "[sandbox]\nmax_vcpus = 2\nvcpus = 3",
            &["line 3", "sandbox.vcpus = 3", "to 2"],
        ),
        // No VM can have more.
        (
            "[sandbox]\nmax_vcpus = 65",
            &["sandbox.max_vcpus = 65", "to 64"],
        ),
        (
            "[sandbox]\nmax_memory_mib = 1048577",
            &["sandbox.max_memory_mib = 1048577", "to 1048576"],
        ),
        (
            "[boot]\ntimeout_secs = 0",
            &["boot.timeout_secs = 0", "from 1"],
        ),
        (
            "[network]\nmode = \"host\"",
            &["network.mode", "\"cni\", \"none\""],
        ),
        (
            "[network]\nnetns_dir = \"netns\"",
            &["network.netns_dir", "absolute"],
        ),
        (
            "[network]\ncni_bin_dirs = [\"/ok\", \"no\"]",
            &["network.cni_bin_dirs", "\"no\""],
        ),
        (
            "[host]\nallow_io_uring = \"yes\"",
            &["line 2", "allow_io_uring", "boolean"],
        ),
        ("[cgroup]\ndriver = \"v1\"", &["cgroup.driver", "systemd"]),
        (
            "[cgroup]\ndriver = \"systemd\"\ndefault_parent = \"/x\"",
            &["cgroup.default_parent", ".slice"],
        ),
        (
            "[registry]\nparallel_layers = 0",
            &["registry.parallel_layers = 0", "from 1 to 64"],
        ),
        (
            "[images]\nmax_layer_gib = 16385",
            &["images.max_layer_gib = 16385", "from 1 to 16384"],
        ),
        (
            "[images]\nmax_image_gib = 0",
            &["images.max_image_gib = 0", "from 1 to 16384"],
        ),
        ("no toml", &["/etc/test.toml", "line 1"]),
    ];
    for (text, wanted) in table {
        let message = error(text);
        for part in *wanted {
            assert!(
                message.contains(part),
                "{text:?} gave {message:?}, without {part:?}"
            );
        }
    }
}

#[test]
fn a_named_file_must_be_there() {
    let missing = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/config.toml"));
}
