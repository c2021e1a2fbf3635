//! Where the testbed keeps its files.

use crate::error::{Context, Error};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Root of the repository.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Downloads that are kept: `ELISION_CACHE`, or `.cache` in the repository.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("ELISION_CACHE").map_or_else(|| repository().join(".cache"), PathBuf::from)
}

/// What the testbed builds for the guest.
pub(crate) fn built() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    repository().join(target).join("actor")
}

const PREFIX: &str = "elision-testbed-";

/// A new folder for the sockets, logs and RAM of one guest, in memory where possible.
pub(crate) fn new_guest_folder() -> Result<PathBuf, Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    sweep(&base);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = base.join(format!("{PREFIX}{}-{n}", std::process::id()));
    std::fs::create_dir_all(&folder).context("create", &folder)?;
    Ok(folder)
}

/// Removes what test processes left that are gone.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|p| p.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
