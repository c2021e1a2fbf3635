//! Programs of the guest's owner, run before and after a save, and after a restore.
//!
//! Every executable file of the folder is run, in the order of the names, with the event as its only argument. It has a
//! time limit, and is killed with its children when that is over. What it prints goes to the agent's log.
//! Run are only files of root that nobody else may change.

use rustix::process::{Pid, Signal, kill_process_group};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most hooks that are run.
const MOST: usize = 64;
/// Between two looks whether a hook has ended.
const BREAK: Duration = Duration::from_millis(5);
const OTHERS_MAY_WRITE: u32 = 0o022;
const EXECUTABLE: u32 = 0o111;

/// When hooks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    BeforeSave,
    AfterSave,
    AfterRestore,
    /// A restored guest's network cards have new addresses. This comes after [`Event::AfterRestore`], which waits for no host.
    NewAddress,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::BeforeSave => "before-save",
            Self::AfterSave => "after-save",
            Self::AfterRestore => "after-restore",
            Self::NewAddress => "new-address",
        }
    }
}

/// What came of the hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How many ended well.
    pub(crate) well: u32,
    /// What the others did, in words.
    pub(crate) notes: Vec<String>,
}

/// Runs all hooks; each has `limit`, and together they have the time until `until`.
pub(crate) fn run(folder: &Path, event: Event, limit: Duration, until: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    for hook in hooks(folder, rustix::process::geteuid().as_raw()) {
        let name = hook.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match run_one(&hook, event, (Instant::now() + limit).min(until)) {
            Ok(()) => outcome.well += 1,
            Err(why) => outcome.notes.push(format!("hook {name} {}: {why}", event.name())),
        }
    }
    outcome
}

/// The hooks, in order.
fn hooks(folder: &Path, owner: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| {
        fs::metadata(path).is_ok_and(|meta| {
            let mode = meta.mode();
            meta.is_file() && meta.uid() == owner && mode & EXECUTABLE != 0 && mode & OTHERS_MAY_WRITE == 0
        })
    });
    found.sort();
    found.truncate(MOST);
    found
}

fn run_one(hook: &Path, event: Event, until: Instant) -> Result<(), String> {
    run_until(Command::new(hook).arg(event.name()), until)
}

/// Runs a program; when the time is over, it is killed with its children. Says what was wrong.
pub(crate) fn run_until(command: &mut Command, until: Instant) -> Result<(), String> {
    command.stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|e| format!("it cannot be started: {e}"))?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("it ended with {status}")),
            Ok(None) if Instant::now() < until => std::thread::sleep(BREAK),
            Ok(None) => {
                end(&mut child);
                return Err("it took too long and was killed".to_owned());
            }
            Err(e) => return Err(format!("it cannot be waited for: {e}")),
        }
    }
}

fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn hooks_run_in_order_within_their_time_and_only_safe_ones() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let say = |what: &str| format!("echo {what} $1 >> {}", log.display());
        write(folder.path(), "20-b", &say("b"), 0o755);
        write(folder.path(), "10-a", &say("a"), 0o700);
        write(folder.path(), "30-open", &say("open"), 0o777);
        write(folder.path(), "40-plain", &say("plain"), 0o644);
        write(folder.path(), "50-slow", "sleep 60", 0o755);
        write(folder.path(), "60-bad", "exit 3", 0o755);
        let begin = Instant::now();
        let until = begin + Duration::from_secs(30);
        let outcome = run(folder.path(), Event::BeforeSave, Duration::from_millis(500), until);
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert_eq!(fs::read_to_string(&log).unwrap(), "a before-save\nb before-save\n");
        assert_eq!((outcome.well, outcome.notes.len()), (2, 2), "{:?}", outcome.notes);
        assert!(outcome.notes[0].contains("50-slow") && outcome.notes[1].contains("60-bad"));
    }
}
