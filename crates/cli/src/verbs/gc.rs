//! `elision gc`: removes what ended saves and ended VMs have left in a folder.
//!
//! ```text
//! FOLDER/.NAME.elision-partial     an unfinished image, if nobody has its lock and no VM runs from it
//! FOLDER/NAME.qmp, NAME.agent      a socket of `elision run`, if nobody has it
//! FOLDER/N/SOCKET                  the same of a clone, where FOLDER is one of clones
//! FOLDER/N                         a clone's folder, if nothing is in it
//! FOLDER/IMAGE-clones/N/...        the same
//! ```
//! A clone's disks and logs stay: what the guest has written is its owner's.

use crate::args::GcArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::in_use::vms_of;
use crate::output::Output;
use crate::sockets::is_left_over;
use crate::text::{count, printable, size};
use elision_image::{ImageError, RAM, RAM_PACKED, Unfinished, partial_folders};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What the sockets of `elision run` end with.
const SOCKETS: [&str; 2] = ["qmp", "agent"];
/// What the folder for the clones of an image ends with.
const CLONES: &[u8] = b"-clones";
/// The socket that every clone has.
const QMP: &str = "qmp.sock";

#[derive(Debug, Default, Serialize)]
struct Collected {
    folder: PathBuf,
    dry_run: bool,
    removed: Vec<Removed>,
    /// What looks like a leftover and is none, or could not be removed.
    kept: Vec<Kept>,
    /// What all that was removed took on the disk.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Removed {
    path: PathBuf,
    kind: Kind,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    UnfinishedImage,
    Socket,
    Folder,
}

#[derive(Debug, Serialize)]
struct Kept {
    path: PathBuf,
    reason: String,
}

pub(crate) fn run(args: &GcArgs, out: &mut Output) -> Result<Exit, Failure> {
    let mut collected =
        Collected { folder: args.folder.clone(), dry_run: args.dry_run, ..Collected::default() };
    collected.folder(&args.folder)?;
    out.result(&collected, human)?;
    Ok(Exit::Done)
}

impl Collected {
    fn folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let entries = entries(folder).map_err(|e| e.with_exit(Exit::Usage))?;
        for partial in partial_folders(folder)? {
            self.unfinished(partial);
        }
        for path in &entries {
            if path.extension().is_some_and(|end| SOCKETS.iter().any(|known| end == *known)) {
                self.socket(path)?;
            }
        }
        self.clones(folder, &entries)?;
        for path in entries {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.ends_with(CLONES) && is_folder(&path) {
                let inside = self::entries(&path)?;
                self.clones(&path, &inside)?;
            }
        }
        Ok(())
    }

    fn unfinished(&mut self, path: PathBuf) {
        let unfinished = match Unfinished::lock(&path) {
            Ok(Some(unfinished)) => unfinished,
            Ok(None) => return,
            Err(error) => return self.keep(path, in_words(&error)),
        };
        // An image is renamed before it is removed, also one from which a VM runs.
        if let Some(pid) = [RAM, RAM_PACKED].iter().flat_map(|ram| vms_of(&path.join(ram))).next() {
            return self.keep(path, format!("process {pid} has its memory open"));
        }
        let bytes = unfinished.stored_bytes();
        self.remove(path, Kind::UnfinishedImage, bytes, || unfinished.remove().map_err(|e| in_words(&e)));
    }

    fn socket(&mut self, path: &Path) -> Result<(), Failure> {
        if is_left_over(path)? {
            self.remove(path.to_owned(), Kind::Socket, 0, || {
                fs::remove_file(path).map_err(|e| e.to_string())
            });
        }
        Ok(())
    }

    /// What is left of clones in their common folder.
    fn clones(&mut self, folder: &Path, entries: &[PathBuf]) -> Result<(), Failure> {
        let clones: Vec<_> = entries.iter().filter(|path| is_numbered(path) && is_folder(path)).collect();
        if clones.is_empty() {
            return Ok(());
        }
        let lock = File::open(folder).map_err(|e| Failure::io("open", folder, &e))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            self.keep(folder.to_owned(), "clones are being started in it".to_owned());
            return Ok(());
        }
        for clone in clones {
            let inside = self::entries(clone)?;
            // Others may have folders with numbers too.
            let is_ours = inside.is_empty() && folder_of_clones(folder) || inside.contains(&clone.join(QMP));
            if !is_ours {
                continue;
            }
            let before = self.removed.len();
            inside.iter().try_for_each(|path| self.socket(path))?;
            if self.removed.len() - before == inside.len() {
                let clone = clone.clone();
                let path = clone.clone();
                // Of a folder in which something appears meanwhile this fails.
                self.remove(path, Kind::Folder, 0, || fs::remove_dir(&clone).map_err(|e| e.to_string()));
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: PathBuf, kind: Kind, bytes: u64, how: impl FnOnce() -> Result<(), String>) {
        if !self.dry_run {
            if let Err(reason) = how() {
                return self.keep(path, reason);
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.removed.push(Removed { path, kind, bytes });
    }

    fn keep(&mut self, path: PathBuf, reason: String) {
        self.kept.push(Kept { path, reason });
    }
}

/// What stands in a folder, by the names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |e| Failure::io("list", folder, &e);
    let entries = fs::read_dir(folder).map_err(failed)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn is_numbered(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u16>().is_ok())
}

fn folder_of_clones(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(CLONES))
}

fn in_words(error: &ImageError) -> String {
    match error {
        ImageError::Busy { .. } => "a save, or the removal of an image, is at work in it".to_owned(),
        ImageError::Foreign(_) => "it is no folder of this user".to_owned(),
        ImageError::Stranger { path, .. } => format!("it holds more than an image: {}", path.display()),
        error => error.to_string(),
    }
}

fn human(collected: &Collected) -> String {
    let text = |path: &Path| printable(&path.display().to_string());
    let mut lines = Vec::new();
    for Removed { path, kind, bytes } in &collected.removed {
        let what = match kind {
            Kind::UnfinishedImage => format!("an unfinished image, {}", size(*bytes)),
            Kind::Socket => "a socket that nobody has".to_owned(),
            Kind::Folder => "an empty folder of a clone".to_owned(),
        };
        lines.push(format!("{}: {what}", text(path)));
    }
    for Kept { path, reason } in &collected.kept {
        lines.push(format!("{} stays: {}", text(path), printable(reason)));
    }
    let number = count(collected.removed.len() as u64, "leftover");
    let done = if collected.dry_run { "Would remove" } else { "Removed" };
    lines.push(match collected.removed.is_empty() {
        true => "Nothing is to be removed".to_owned(),
        false => format!("{done} {number}, {}", size(collected.bytes)),
    });
    lines.join("\n")
}
