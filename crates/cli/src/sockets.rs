//! Control sockets: where a new one goes, and which are in use.
//!
//! A new QEMU removes a socket that stands where it wants to listen, also one that another VM listens on.
//! So what a command names is looked up in the kernel's list of listening sockets first:
//!
//! ```text
//! Num       RefCount Protocol Flags    Type St Inode Path
//! 0000000..: 00000002 00000000 00010000 0001 01 20915 /run/user/1000/elision/web.qmp
//!                              ^ SO_ACCEPTCON: it listens
//! ```
//! Nothing is connected to, as that would be seen by the other VM. Limit: a socket bound by a relative path is
//! listed by that path, so it is found only when the command names it in the same way.

use crate::exit::Exit;
use crate::failure::Failure;
use crate::named::candidates;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// `__SO_ACCEPTCON`.
const LISTENS: u64 = 0x1_0000;

/// Where a VM's QMP socket goes when the user does not say: `NAME.qmp` in a folder of the user alone.
pub(crate) fn default_path(name: &str) -> Result<PathBuf, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
        let message = format!("`{}` cannot name a socket", crate::text::printable(name));
        let help = "Use at most 64 letters, digits, `-`, `_` and `.`, or say where by --qmp SOCK";
        return Err(Failure::new(Exit::Usage, message).with_help(help));
    }
    Ok(private_folder()?.join(format!("{name}.qmp")))
}

fn private_folder() -> Result<PathBuf, Failure> {
    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|p| p.is_absolute());
    let folder = match runtime {
        Some(runtime) => runtime.join("elision"),
        None => std::env::temp_dir().join(format!("elision-{user}")),
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Failure::io("create", &folder, &e)),
        _ => {}
    }
    let meta = fs::symlink_metadata(&folder).map_err(|e| Failure::io("look at", &folder, &e))?;
    if meta.is_dir() && meta.uid() == user && meta.mode() & 0o077 == 0 {
        return Ok(folder);
    }
    let message = format!("{} is not a folder that only you can use", folder.display());
    Err(Failure::new(Exit::Failed, message)
        .with_help("Remove it, or say where the socket goes by --qmp SOCK"))
}

/// Refuses a place for a new socket where something stands that is not an unused socket.
pub(crate) fn check_free(path: &Path) -> Result<(), Failure> {
    let help = "Give another path by --qmp SOCK";
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Failure::io("look at", path, &e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            let message = format!("{} exists and is not a socket", path.display());
            Err(Failure::new(Exit::Usage, message).with_help(help))
        }
        Ok(_) if sockets(LISTENS)?.contains(&absolute(path)) => {
            let message = format!("Another program listens on {}", path.display());
            Err(Failure::new(Exit::Usage, message).with_help(help))
        }
        Ok(_) => Ok(()),
    }
}

/// The sockets on which a command would listen and on which somebody listens already.
///
/// A socket that the command only connects to, such as that of a TPM or file system daemon, is no clash.
pub(crate) fn in_use(command: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let listening = sockets(LISTENS)?;
    let mut found = BTreeSet::new();
    let before = std::iter::once("").chain(command.iter().map(String::as_str));
    for (before, word) in before.zip(command) {
        let serves = word.contains("server") || before.trim_start_matches('-') == "vnc";
        if serves {
            let used = |path: &PathBuf| listening.contains(path) || listening.contains(&absolute(path));
            found.extend(candidates(word).into_iter().filter(used));
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether a path is a socket of this user that nobody has any more: neither in this network namespace, nor in another one, where
/// only a try to connect tells.
pub(crate) fn is_left_over(path: &Path) -> Result<bool, Failure> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(false) };
    let is_own = meta.file_type().is_socket() && meta.uid() == rustix::process::geteuid().as_raw();
    if !is_own || sockets(0)?.contains(&absolute(path)) {
        return Ok(false);
    }
    Ok(UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused))
}

/// The paths of the sockets that have these flags.
fn sockets(flags: u64) -> Result<BTreeSet<PathBuf>, Failure> {
    let list = Path::new("/proc/net/unix");
    let text = fs::read(list).map_err(|e| Failure::io("read", list, &e))?;
    Ok(parse(&String::from_utf8_lossy(&text), flags))
}

fn parse(list: &str, wanted: u64) -> BTreeSet<PathBuf> {
    let path = |line: &str| {
        let mut words = line.splitn(8, ' ').filter(|word| !word.is_empty());
        let flags = u64::from_str_radix(words.nth(3)?, 16).ok()?;
        // The inode's column is padded, so what is left begins with it.
        let path = line.find('/').and_then(|at| line.get(at..)).or_else(|| line.split(' ').next_back())?;
        (flags & wanted == wanted).then(|| PathBuf::from(path))
    };
    list.lines().skip(1).filter_map(path).collect()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    #[test]
    fn a_listening_socket_is_found_and_a_left_over_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (live, dead) = (folder.path().join("live,a b"), folder.path().join("dead"));
        let listener = UnixListener::bind(&live).unwrap();
        drop(UnixListener::bind(&dead).unwrap());
        let _connected = UnixStream::connect(&live).unwrap();
        let escaped = live.to_str().unwrap().replace(',', ",,");
        let command =
            [format!("socket,id=a,path={escaped},server=on"), format!("unix:{},server=on", dead.display())];
        assert_eq!(in_use(&command).unwrap(), [live.as_path()]);
        assert_eq!(in_use(&["-vnc".to_owned(), format!("unix:{escaped}")]).unwrap(), [live.as_path()]);
        assert!(in_use(&[format!("socket,id=tpm,path={escaped}")]).unwrap().is_empty(), "it only connects");
        assert!(check_free(&dead).is_ok());
        assert!(check_free(&folder.path().join("new")).is_ok());
        assert_eq!(check_free(&live).unwrap_err().exit(), Exit::Usage);
        assert!(is_left_over(&dead).unwrap());
        for kept in [&live, &folder.path().join("new"), &folder.path().to_owned()] {
            assert!(!is_left_over(kept).unwrap(), "{}", kept.display());
        }
        let datagrams = folder.path().join("datagrams");
        let socket = UnixDatagram::bind(&datagrams).unwrap();
        assert!(!is_left_over(&datagrams).unwrap(), "nobody listens on it, and it is in use");
        drop((listener, socket));
        assert!(check_free(&live).is_ok());
        assert!(is_left_over(&live).unwrap());
    }

    #[test]
    fn a_file_is_not_a_place_for_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "x").unwrap();
        assert_eq!(check_free(&path).unwrap_err().exit(), Exit::Usage);
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["", "../x", "a/b", ".hidden", "a\n"] {
            assert_eq!(default_path(name).unwrap_err().exit(), Exit::Usage, "{name:?}");
        }
    }
}
