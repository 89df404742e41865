//! What builders of images do on a share: ACLs, file capabilities, overlays.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(path: &str, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c(path), c(name));
    // SAFETY: strings that end in zero, and a value as long as said.
    done(unsafe {
        let (path, name) = (path.as_ptr(), name.as_ptr());
        libc::setxattr(path, name, value.as_ptr().cast(), value.len(), 0)
    })
}

fn get(path: &str, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let (path, name) = (c(path), c(name));
    // SAFETY: strings that end in zero, and a buffer as long as said.
    let length = unsafe {
        let (path, name) = (path.as_ptr(), name.as_ptr());
        libc::getxattr(path, name, value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

fn mknod(path: &str, mode: u32, number: u64) -> io::Result<()> {
    // SAFETY: a string that ends in zero.
    done(unsafe { libc::mknod(c(path).as_ptr(), mode, number) })
}

/// Runs something as user 1000.
fn as_user<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let user = || {
        // SAFETY: no pointers; this thread's own ids, by the bare system call.
        unsafe { libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000) };
        work()
    };
    std::thread::scope(|scope| scope.spawn(user).join().unwrap())
}

/// An ACL: owner rw-, user 1000 as said, group ---, mask rwx, others ---.
fn acl(user: u16) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, permissions, id) in [
        (1u16, 6u16, none),
        (2, user, 1000),
        (4, 0, none),
        (0x10, 7, none),
        (0x20, 0, none),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// All of it, in a directory of its own.
pub(crate) fn check(dir: &str) -> io::Result<String> {
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    if let Err(error) = set(dir, "user.there", b"1") {
        // The host's file system has no attributes.
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        return Ok("no attributes".into());
    }
    acls(&format!("{dir}/acl"))?;
    capabilities(&format!("{dir}/program"))?;
    overlay(&format!("{dir}/overlay"))?;
    Ok("done".into())
}

fn acls(dir: &str) -> io::Result<()> {
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let file = format!("{dir}/file");
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(&file)?.write_all(b"secret")?;
    let reads = || as_user(|| fs::read(&file));
    assert!(reads().is_err());
    set(&file, access, &acl(4))?;
    assert_eq!(fs::metadata(&file)?.mode() & 0o7777, 0o670);
    assert_eq!(reads()?, b"secret");
    assert!(as_user(|| fs::write(&file, "x")).is_err());
    // The mask.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    assert!(reads().is_err());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
    assert_eq!(reads()?, b"secret");
    // A default in place of the umask.
    set(dir, default, &acl(6))?;
    let made = format!("{dir}/made");
    // SAFETY: no pointers; a thread of this command's own.
    let before = unsafe { libc::umask(0o077) };
    let written = fs::write(&made, "first");
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    written?;
    as_user(|| fs::write(&made, "second"))?;
    assert_eq!(fs::read(&made)?, b"second");
    assert_eq!(fs::metadata(&made)?.mode() & 0o7777, 0o660);
    fs::create_dir(format!("{dir}/inner"))?;
    assert_eq!(get(&format!("{dir}/inner"), default)?, acl(6));
    Ok(())
}

fn capabilities(program: &str) -> io::Result<()> {
    // VFS_CAP_REVISION_2, cap_chown=ep.
    let mut value = [0; 20];
    value[..5].copy_from_slice(&[1, 0, 0, 2, 1]);
    fs::write(program, "x")?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o777))?;
    let gone = || {
        let left = get(program, "security.capability");
        left.is_err_and(|error| error.raw_os_error() == Some(libc::ENODATA))
    };
    set(program, "security.capability", &value)?;
    assert_eq!(get(program, "security.capability")?, value);
    as_user(|| {
        let mut file = OpenOptions::new().append(true).open(program)?;
        file.write_all(b"y")
    })?;
    assert!(gone(), "a write");
    set(program, "security.capability", &value)?;
    std::os::unix::fs::chown(program, Some(5), None)?;
    assert!(gone(), "a change of owner");
    set(program, "security.capability", &value)?;
    File::options().write(true).truncate(true).open(program)?;
    assert!(gone(), "a truncation");
    Ok(())
}

fn overlay(dir: &str) -> io::Result<()> {
    let at = |name: &str| format!("{dir}/{name}");
    for name in ["", "lower", "lower/d", "upper", "work", "merged"] {
        fs::create_dir(at(name))?;
    }
    fs::write(at("lower/a"), "low")?;
    fs::write(at("lower/gone"), "")?;
    fs::write(at("lower/d/x"), "")?;
    symlink("a", at("lower/link"))?;
    let mount = || {
        let (lower, upper, work) = (at("lower"), at("upper"), at("work"));
        let options = c(&format!("lowerdir={lower},upperdir={upper},workdir={work}"));
        let (kind, place) = (c("overlay"), c(&at("merged")));
        // SAFETY: strings that end in zero.
        done(unsafe {
            let (kind, data) = (kind.as_ptr(), options.as_ptr().cast());
            libc::mount(kind, place.as_ptr(), kind, 0, data)
        })
    };
    let unmount = || {
        // SAFETY: a string that ends in zero.
        done(unsafe { libc::umount(c(&at("merged")).as_ptr()) })
    };
    mount()?;
    let mut file = OpenOptions::new().append(true).open(at("merged/a"))?;
    file.write_all(b" and up")?;
    drop(file);
    fs::remove_file(at("merged/gone"))?;
    fs::remove_dir_all(at("merged/d"))?;
    fs::create_dir(at("merged/d"))?;
    fs::write(at("merged/d/new"), "")?;
    fs::rename(at("merged/a"), at("merged/b"))?;
    std::os::unix::fs::lchown(at("merged/link"), Some(1000), None)?;
    mknod(&at("merged/null"), libc::S_IFCHR | 0o666, 0x103)?;
    set(&at("merged/b"), "trusted.mine", b"1")?;
    for round in 0..2 {
        let list = |name: &str| -> io::Result<String> {
            let entries = fs::read_dir(at(name))?;
            let mut names: Vec<_> = entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            Ok(names.join(" "))
        };
        assert_eq!(list("merged")?, "b d link null", "round {round}");
        assert_eq!(list("merged/d")?, "new");
        assert_eq!(fs::read(at("merged/b"))?, b"low and up");
        assert_eq!(fs::symlink_metadata(at("merged/link"))?.uid(), 1000);
        fs::write(at("merged/null"), "swallowed")?;
        assert!(
            fs::metadata(at("merged/null"))?
                .file_type()
                .is_char_device()
        );
        assert_eq!(get(&at("merged/b"), "trusted.mine")?, b"1");
        unmount()?;
        if round == 0 {
            mount()?;
        }
    }
    assert_eq!(get(&at("upper/d"), "trusted.overlay.opaque")?, b"y");
    let gone = fs::symlink_metadata(at("upper/gone"))?;
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    Ok(())
}
