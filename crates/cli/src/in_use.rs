//! Files that another program has open.
//!
//! ```text
//! /proc/PID/fd/N -> file          /proc/PID/fdinfo/N    flags: 0100002   (octal; the last digit: 1, 2 may write)
//! ```
//! QEMU locks disk images of most formats by itself, but not what it writes text to, and not on every file
//! system. Limit: of processes of other users nothing is seen without privileges.

use crate::named::candidates;
use std::collections::BTreeMap;
use std::fs::{self, DirEntry, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// `O_ACCMODE`.
const ACCESS: u32 = 0o3;

/// The files that a command names and that another program may write, but for one.
pub(crate) fn written_by_others(command: &[String], but: &Path) -> Vec<PathBuf> {
    let but = identity_of(but);
    // The first word is the program itself. What stands in `/proc` is this process's, not QEMU's.
    let paths = command.iter().skip(1).flat_map(|word| candidates(word)).filter(|p| !p.starts_with("/proc"));
    written(paths.filter(|path| identity_of(path) != but))
}

/// Those of some files and disks that another program may write.
pub(crate) fn written(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut named = BTreeMap::new();
    for path in paths {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_file() || meta.file_type().is_block_device() {
            named.entry(identity(&meta)).or_insert(path);
        }
    }
    if named.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (_, process) in others() {
        for fd in entries(&process.path().join("fd")) {
            let Ok(meta) = fs::metadata(fd.path()) else { continue };
            if named.contains_key(&identity(&meta)) && may_write(&process, &fd) {
                found.extend(named.remove(&identity(&meta)));
            }
        }
    }
    found
}

/// The VMs that run from an image's RAM file, by their process ids. QEMU keeps the file of its RAM open: that file, or
/// the one of a server that has that file open.
pub(crate) fn vms_of(ram: &Path) -> Vec<u32> {
    let mut vms = Vec::new();
    for user in users_of(ram) {
        let served = users_of_server(user);
        if served.is_empty() { vms.push(user) } else { vms.extend(served) }
    }
    vms
}

/// The processes that have a server's file open, but for the server itself. The file has no place in the file system, so
/// it is known by its name; asking for more could make the server answer.
fn users_of_server(server: u32) -> Vec<u32> {
    let name = elision_serve::file_name(server);
    let has_it = |process: &DirEntry| {
        let folder = process.path().join("fd");
        let mut links = entries(&folder).filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|link| link.file_name() == Some(&name))
    };
    let others = others().filter(|(pid, process)| *pid != server && has_it(process));
    let mut users: Vec<_> = others.map(|(pid, _)| pid).collect();
    users.sort_unstable();
    users
}

/// The processes that have a file open, by their ids.
fn users_of(file: &Path) -> Vec<u32> {
    let Some(sought) = identity_of(file) else { return Vec::new() };
    let has_it = |process: &DirEntry| {
        let folder = process.path().join("fd");
        let mut files = entries(&folder).filter_map(|fd| fs::metadata(fd.path()).ok());
        files.any(|meta| identity(&meta) == sought)
    };
    let mut users: Vec<_> = others().filter(|(_, process)| has_it(process)).map(|(pid, _)| pid).collect();
    users.sort_unstable();
    users
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| identity(&meta))
}

/// Device and inode.
fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// All processes but this one.
fn others() -> impl Iterator<Item = (u32, DirEntry)> {
    let own = std::process::id();
    let processes = entries(Path::new("/proc")).filter_map(|entry| Some((pid_of(&entry)?, entry)));
    processes.filter(move |(pid, _)| *pid != own)
}

fn pid_of(entry: &DirEntry) -> Option<u32> {
    entry.file_name().to_str()?.parse().ok()
}

fn entries(folder: &Path) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

fn may_write(process: &DirEntry, fd: &DirEntry) -> bool {
    let info = fs::read_to_string(process.path().join("fdinfo").join(fd.file_name())).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).is_some_and(|flags| flags & ACCESS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::process::{Command, Stdio};

    #[test]
    fn a_file_that_another_process_writes_is_found_and_one_that_it_reads_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (written, read) = (folder.path().join("console.log"), folder.path().join("disk.img"));
        fs::write(&written, "x").unwrap();
        fs::write(&read, "x").unwrap();
        let command = [
            "qemu".to_owned(),
            format!("file:{}", written.display()),
            format!("file={},if=virtio", read.display()),
        ];
        let mut other = Command::new("sleep")
            .arg("60")
            .stdin(fs::File::open(&read).unwrap())
            .stdout(OpenOptions::new().append(true).open(&written).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let found = written_by_others(&command, Path::new("/nothing"));
        let without = written_by_others(&command, &written);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(found, [written]);
        assert!(without.is_empty());
        assert!(written_by_others(&command, Path::new("/nothing")).is_empty(), "nobody writes any more");
    }
}
