//! Control groups, version 2: who is in one, and how to freeze and to end one (`Documentation/admin-guide/cgroup-v2.rst`).
//!
//! ```text
//! cgroup.procs     the processes, one a line; one written here moves
//! cgroup.freeze    1: no process in the group and below runs in user mode
//! cgroup.events    "populated 1", "frozen 1"
//! cgroup.kill      1: all processes in the group and below are killed (5.14 and later)
//! cgroup.subtree_control    "+memory": groups right below are charged for memory one by one
//! ```

use crate::error::{AgentError, Context};
use crate::procfs;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// Most groups below one that are looked at.
const MOST_GROUPS: usize = 10_000;
/// Between two looks at a group that changes.
const BREAK: Duration = Duration::from_millis(1);

/// The hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Finds where it is mounted.
    pub(crate) fn find() -> Result<Self, AgentError> {
        let mounts = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(mounts).context("read", mounts)?;
        mounted(&text).map(|root| Self { root }).ok_or(AgentError::NoCgroups)
    }

    /// A tree at any place.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The group with this path, which need not be there.
    pub(crate) fn group(&self, path: &str) -> Result<Group, AgentError> {
        let below = Path::new(path.trim_start_matches('/'));
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if !path.starts_with('/') || !plain || path.contains('\0') {
            return Err(AgentError::Other(format!(
                "`{}` is no path of a control group",
                path.escape_debug()
            )));
        }
        Ok(Group { folder: self.root.join(below), path: path.trim_end_matches('/').to_owned() })
    }
}

/// `ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS... - cgroup2 SOURCE OPTIONS`: the place where all of it is.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    let mut places = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(place))
    });
    places.next()
}

/// One group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    folder: PathBuf,
    /// Its path in the hierarchy; empty for the whole of it.
    path: String,
}

impl Group {
    /// Its path in the hierarchy.
    pub(crate) fn path(&self) -> &str {
        if self.path.is_empty() { "/" } else { &self.path }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// Whether a group's path is this one or below.
    pub(crate) fn holds(&self, path: &str) -> bool {
        self.is_root()
            || path.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// A group below.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self { folder: self.folder.join(name), path: format!("{}/{name}", self.path) }
    }

    pub(crate) fn create(&self) -> Result<(), AgentError> {
        match fs::create_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            done => done.context("create", &self.folder),
        }
    }

    /// Removes it, if nothing is in it.
    pub(crate) fn remove(&self) -> Result<(), AgentError> {
        fs::remove_dir(&self.folder).context("remove", &self.folder)
    }

    /// The processes in the group itself.
    pub(crate) fn processes(&self) -> Result<Vec<u32>, AgentError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// The processes in the group and in those below.
    pub(crate) fn all_processes(&self) -> Result<Vec<u32>, AgentError> {
        let mut found = Vec::new();
        let mut todo = vec![self.clone()];
        let mut left = MOST_GROUPS;
        while let Some(group) = todo.pop() {
            left = left.checked_sub(1).ok_or(AgentError::Late("A look at control groups"))?;
            found.extend(group.processes()?);
            let entries = fs::read_dir(&group.folder).context("list", &group.folder)?.flatten();
            let folders = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            todo.extend(folders.filter_map(|e| Some(group.child(e.file_name().to_str()?))));
        }
        Ok(found)
    }

    /// Has memory charged to the groups right below this one, each by itself.
    pub(crate) fn charge_memory(&self) -> Result<(), AgentError> {
        self.write("cgroup.subtree_control", "+memory")
    }

    /// Moves a process here, unless it has ended.
    pub(crate) fn take(&self, pid: u32) -> Result<(), AgentError> {
        match self.write("cgroup.procs", &pid.to_string()) {
            Err(_) if procfs::stat(pid).is_none() => Ok(()),
            done => done,
        }
    }

    /// Whether somebody wants it frozen.
    pub(crate) fn is_to_freeze(&self) -> bool {
        self.read("cgroup.freeze").is_ok_and(|text| text.trim() == "1")
    }

    /// Begins to freeze it, or to let it run.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), AgentError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Whether no process in it runs in user mode.
    pub(crate) fn is_frozen(&self) -> Result<bool, AgentError> {
        self.event("frozen")
    }

    fn event(&self, name: &str) -> Result<bool, AgentError> {
        let text = self.read("cgroup.events")?;
        Ok(text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest == " 1")))
    }

    /// Kills all processes in it and below, and waits until they have ended. They need not have been reaped. Gives how
    /// many there were.
    pub(crate) fn end(&self, limit: Duration) -> Result<usize, AgentError> {
        let until = Instant::now() + limit;
        let count = self.all_processes()?.len();
        while self.event("populated")? {
            if self.write("cgroup.kill", "1").is_err() {
                for pid in self.all_processes()? {
                    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                        let _ = kill_process(pid, Signal::KILL);
                    }
                }
            }
            if Instant::now() > until {
                return Err(AgentError::Late("The end of a control group"));
            }
            std::thread::sleep(BREAK);
        }
        Ok(count)
    }

    fn read(&self, name: &str) -> Result<String, AgentError> {
        let path = self.folder.join(name);
        fs::read_to_string(&path).context("read", &path)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), AgentError> {
        let path = self.folder.join(name);
        // Never made: a group that is gone must not become a file.
        let file = fs::OpenOptions::new().write(true).open(&path);
        file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .context("write", &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_hierarchy_is_found_among_mounts() {
        let text = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 24 0:27 /a /mnt rw - cgroup2 cgroup2 rw\n\
                    29 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mounted(text), Some("/sys/fs/cgroup".into()));
        assert_eq!(mounted("24 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
    }

    #[test]
    fn a_path_cannot_lead_out_of_the_hierarchy() {
        let tree = Tree::at(Path::new("/sys/fs/cgroup"));
        for wrong in ["", "a", "/../etc", "/a/../../b", "/a\0b"] {
            assert!(tree.group(wrong).is_err(), "{wrong:?}");
        }
        let group = tree.group("/system.slice/vault.service").unwrap();
        assert_eq!(group.folder, Path::new("/sys/fs/cgroup/system.slice/vault.service"));
        assert!(group.holds("/system.slice/vault.service/x") && group.holds("/system.slice/vault.service"));
        assert!(!group.holds("/system.slice/vault.service2") && !group.holds("/system.slice"));
        assert!(tree.group("/").unwrap().is_root());
    }
}
