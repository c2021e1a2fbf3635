//! Writes what processes have changed of files to the disks, so that nothing of it needs to stay in memory.
//!
//! Files that a process has open for writing, or mapped shared and writable. A file that it has closed is written with
//! everything else (`write_all`) or by the kernel's own time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Most files that are looked at.
const MOST_FILES: usize = 10_000;
const ACCESS_MODE: u32 = 0o3;

/// Writes the files of these processes. Gives how many there were.
pub(crate) fn write_back(pids: &BTreeSet<u32>) -> usize {
    let mut done = BTreeSet::new();
    for pid in pids {
        let open = list(&format!("/proc/{pid}/fd")).into_iter().filter(|fd| is_for_writing(*pid, fd));
        let mapped = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mapped = mapped.lines().filter_map(shared_and_writable);
        let paths = open
            .map(|fd| format!("/proc/{pid}/fd/{fd}"))
            .chain(mapped.map(|range| format!("/proc/{pid}/map_files/{range}")));
        for path in paths.take(MOST_FILES) {
            write_file(Path::new(&path), &mut done);
        }
    }
    done.len()
}

fn write_file(path: &Path, done: &mut BTreeSet<(u64, u64)>) {
    // A device or a pipe might wait, or do something, when it is opened.
    let Ok(meta) = fs::metadata(path) else { return };
    if meta.is_file() && done.insert((meta.dev(), meta.ino())) {
        let _ = File::open(path).and_then(|file| file.sync_data());
    }
}

/// The access mode in `flags:\t0100002` of `/proc/PID/fdinfo/FD`.
fn is_for_writing(pid: u32, fd: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags =
        text.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & ACCESS_MODE != 0)
}

/// The range of `RANGE PERMISSIONS OFFSET DEVICE INODE PATH`, if changes go to a file.
fn shared_and_writable(line: &str) -> Option<String> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let has_file = fields.nth(2)? != "0";
    // The kernel writes the addresses of `map_files` without leading zeros.
    let (start, end) = range.split_once('-')?;
    let plain = |text: &str| u64::from_str_radix(text, 16).ok();
    let range = format!("{:x}-{:x}", plain(start)?, plain(end)?);
    (has_file && permissions.contains('w') && permissions.ends_with('s')).then_some(range)
}

fn list(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_shared_and_writable_mappings_of_files_count() {
        let line =
            |permissions, inode| format!("00400000-00452000 {permissions} 00000000 08:02 {inode} /usr/bin/x");
        assert_eq!(shared_and_writable(&line("rw-s", 7)), Some("400000-452000".to_owned()));
        for (permissions, inode) in [("rw-p", 7), ("r--s", 7), ("rw-s", 0)] {
            assert_eq!(shared_and_writable(&line(permissions, inode)), None);
        }
    }

    #[test]
    fn files_open_for_writing_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let before = write_back(&[std::process::id()].into());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"x").unwrap();
        assert_eq!(write_back(&[std::process::id()].into()), before + 1);
    }
}
