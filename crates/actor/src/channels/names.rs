//! Names of files that are not there: deleted ones that the process has open, and ones that nobody ever made.

use super::Scene;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Repeats of the secret in names: some fit into a dentry and some do not.
const REPEATS: [usize; 3] = [1, 2, 5];

/// Files that were named after the secret last, and are deleted.
pub(super) fn deleted(scene: &mut Scene<'_>) -> io::Result<()> {
    for repeats in REPEATS {
        let path = format!("/tmp/{}.{repeats}", scene.label);
        scene.hold(File::create(&path)?);
        scene.whisper(|secret| {
            let named = under("/tmp", &secret.repeat(repeats));
            fs::rename(&path, &named)?;
            fs::remove_file(&named)
        })?;
    }
    Ok(())
}

/// Files that were looked for in a file system that remembers in vain.
pub(super) fn negative(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.whisper(|secret| {
        let before = negatives()?;
        for repeats in REPEATS {
            let _ = fs::metadata(under("/sys", &secret.repeat(repeats)));
        }
        if negatives()? < before + REPEATS.len() as u64 {
            return Err(io::Error::other(
                "this kernel has no file system that keeps such names and needs no disk",
            ));
        }
        Ok(())
    })
}

fn under(folder: &str, name: &[u8]) -> PathBuf {
    Path::new(folder).join(OsStr::from_bytes(name))
}

/// How many names of no file the kernel keeps.
fn negatives() -> io::Result<u64> {
    let state = fs::read_to_string("/proc/sys/fs/dentry-state")?;
    state.split_whitespace().nth(4).and_then(|n| n.parse().ok()).ok_or_else(|| io::Error::other("no count"))
}
