//! The folder that an image is written in before it gets its name.
//!
//! ```text
//! create                   finish                           the saver dies
//! .NAME.elision-partial -> rename to NAME (never replaces)   kernel drops the lock; a guardian or
//! locked by flock          then sync the parent              the next run removes the folder
//! ```
//! The lock is on the folder itself, so it goes with it through the rename, and there is no moment
//! at which another run could take a folder that is about to become an image.

use crate::{EXCLUSIONS, INHERITED, ImageError, MANIFEST, PAGE_HASHES, RAM, RAM_PACKED, STATE, WORKING_SET};
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags, fstat, lstat};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What an image's folder holds.
const FILES: [&str; 8] = [MANIFEST, RAM, RAM_PACKED, PAGE_HASHES, STATE, EXCLUSIONS, INHERITED, WORKING_SET];
/// What stands before and behind an image's name in that of its partial folder.
const BEFORE: &str = ".";
const BEHIND: &str = ".elision-partial";
/// How often a folder may vanish between being seen and being locked.
const TRIES: usize = 16;
/// How long a lock is waited for that a guardian is about to give back: a busy disk removes a large file slowly.
const PATIENCE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(10);

/// Where the image `target` is written until it is whole.
pub fn partial_path(target: &Path) -> Result<PathBuf, ImageError> {
    let name = target.file_name().ok_or_else(|| ImageError::BadTarget(target.to_owned()))?;
    let mut partial = std::ffi::OsString::from(BEFORE);
    partial.push(name);
    partial.push(BEHIND);
    Ok(target.with_file_name(partial))
}

/// Removes the partial folder of `target` if its saver is dead. Returns whether there was one.
pub fn remove_stale(target: &Path) -> Result<bool, ImageError> {
    let path = partial_path(target)?;
    match lock(target, &path)? {
        Some(_lock) => remove(&path).map(|()| true),
        None => Ok(false),
    }
}

/// Removes a partial folder, unless a saver is at work in it. Returns whether there was one.
///
/// A guardian calls this at the death of its saver, whose lock ends a moment later than the saver itself.
pub fn remove_unfinished(partial: &Path) -> Result<bool, ImageError> {
    match lock_soon(partial, partial)? {
        Some(_lock) => remove(partial).map(|()| true),
        None => Ok(false),
    }
}

/// The partial folders in `folder`, by their names.
pub fn partial_folders(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |e| ImageError::io("list", folder, e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes().strip_prefix(BEFORE.as_bytes());
        if name.and_then(|name| name.strip_suffix(BEHIND.as_bytes())).is_some_and(|name| !name.is_empty()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// A partial folder whose saver is dead, locked so that no other takes it.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    bytes: u64,
    _lock: File,
}

impl Unfinished {
    /// Locks it; `None` if it is gone. Refused while a saver is at work in it, if it is another user's, and if anything is
    /// in it that is no part of an image.
    pub fn lock(partial: &Path) -> Result<Option<Self>, ImageError> {
        let Some(lock) = lock(partial, partial)? else { return Ok(None) };
        Ok(Some(Self { path: partial.to_owned(), bytes: stored(partial)?, _lock: lock }))
    }

    /// What it takes on the disk, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes it.
    pub fn remove(self) -> Result<(), ImageError> {
        remove(&self.path)
    }
}

/// Removes a whole or damaged image. It is gone at once: what an interruption leaves has the name of an unfinished
/// image. Refused if anything else stands in its folder.
pub fn remove_image(image: &Path) -> Result<(), ImageError> {
    if !image.join(MANIFEST).is_file() {
        return Err(ImageError::NotAnImage(image.to_owned()));
    }
    stored(image)?;
    let partial = partial_path(image)?;
    let Some(_lock) = lock(image, image)? else { return Err(ImageError::NotAnImage(image.to_owned())) };
    remove_stale(image)?;
    fs::rename(image, &partial).map_err(|e| ImageError::io("rename", image, e))?;
    remove(&partial)
}

/// A locked partial folder. Dropping it removes the folder.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    target: PathBuf,
    dir: File,
    renamed: bool,
    /// An image has the name already, and is to lose it.
    replaces: bool,
}

impl Partial {
    /// A new, empty folder for `target`.
    pub(crate) fn create(target: &Path) -> Result<Self, ImageError> {
        partial_path(target)?;
        check_absent(target)?;
        Self::beside(target, false)
    }

    /// The same for a new form of an image.
    pub(crate) fn replacing(target: &Path) -> Result<Self, ImageError> {
        Self::beside(target, true)
    }

    fn beside(target: &Path, replaces: bool) -> Result<Self, ImageError> {
        let path = partial_path(target)?;
        let parent = parent_of(target);
        if !parent.is_dir() {
            return Err(ImageError::NoParent(parent.to_owned()));
        }
        for _ in 0..TRIES {
            // The guardian of a saver that died just now may be removing it.
            if let Some(_lock) = lock_soon(target, &path)? {
                remove(&path)?;
            }
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(ImageError::io("create", &path, e)),
            }
            // Another run may have seen the new folder before it was locked, and removed it as stale.
            if let Some(dir) = lock(target, &path)? {
                return Ok(Self { path, target: target.to_owned(), dir, renamed: false, replaces });
            }
        }
        Err(ImageError::Busy { target: target.to_owned(), partial: path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Gives the folder its final name; everything in it must be synced.
    pub(crate) fn rename(mut self) -> Result<PathBuf, ImageError> {
        self.dir.sync_all().map_err(|e| ImageError::io("sync", &self.path, e))?;
        let cwd = rustix::fs::CWD;
        if self.replaces {
            // What is removed when this is dropped is the old form then.
            return rustix::fs::renameat_with(cwd, &self.path, cwd, &self.target, RenameFlags::EXCHANGE)
                .map_err(|e| ImageError::io("exchange", &self.path, e))
                .and_then(|()| self.sync_parent());
        }
        match rustix::fs::renameat_with(cwd, &self.path, cwd, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(ImageError::Exists(self.target.clone())),
            Err(Errno::INVAL | Errno::NOSYS) => {
                // A file system without this flag: a rename can replace only an empty directory.
                check_absent(&self.target)?;
                fs::rename(&self.path, &self.target).map_err(|e| ImageError::io("rename", &self.path, e))?;
            }
            Err(e) => return Err(ImageError::io("rename", &self.path, e)),
        }
        self.renamed = true;
        self.sync_parent()
    }

    fn sync_parent(&self) -> Result<PathBuf, ImageError> {
        let parent = parent_of(&self.target);
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| ImageError::io("sync", parent, e))?;
        Ok(self.target.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            if let Err(error) = remove(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "cannot remove an unfinished image");
            }
        }
    }
}

/// As [`lock`], but waits a little for one who is about to give the lock back.
fn lock_soon(target: &Path, path: &Path) -> Result<Option<File>, ImageError> {
    let begin = Instant::now();
    loop {
        match lock(target, path) {
            Err(ImageError::Busy { .. }) if begin.elapsed() < PATIENCE => std::thread::sleep(STEP),
            answer => return answer,
        }
    }
}

/// Opens and locks the partial folder, if there is one.
fn lock(target: &Path, path: &Path) -> Result<Option<File>, ImageError> {
    for _ in 0..TRIES {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(ImageError::Foreign(path.to_owned())),
            Err(e) => return Err(ImageError::io("open", path, e)),
        };
        let own = fstat(&dir).map_err(|e| ImageError::io("look at", path, e))?;
        if own.st_uid != rustix::process::geteuid().as_raw() {
            return Err(ImageError::Foreign(path.to_owned()));
        }
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(ImageError::Busy { target: target.to_owned(), partial: path.to_owned() });
            }
            Err(e) => return Err(ImageError::io("lock", path, e)),
        }
        // The folder may have been renamed or removed before it was locked.
        match lstat(path) {
            Ok(now) if (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino) => return Ok(Some(dir)),
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(ImageError::io("look at", path, e)),
        }
    }
    Err(ImageError::Busy { target: target.to_owned(), partial: path.to_owned() })
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Bytes that the files of an image take on the disk. Refused if anything else stands in its folder.
fn stored(image: &Path) -> Result<u64, ImageError> {
    let failed = |e| ImageError::io("list", image, e);
    let mut bytes = 0;
    for entry in fs::read_dir(image).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_ours = entry.file_name().to_str().is_some_and(|name| FILES.contains(&name));
        if !is_ours || entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return Err(ImageError::Stranger { image: image.to_owned(), path: entry.path() });
        }
        // Blocks are of 512 bytes, whatever the file system's are.
        bytes += entry.metadata().map_or(0, |meta| meta.blocks().saturating_mul(512));
    }
    Ok(bytes)
}

fn check_absent(target: &Path) -> Result<(), ImageError> {
    match target.symlink_metadata() {
        Ok(_) => Err(ImageError::Exists(target.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(ImageError::NoParent(parent_of(target).to_owned()))
        }
        Err(e) => Err(ImageError::io("look at", target, e)),
    }
}

fn parent_of(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
