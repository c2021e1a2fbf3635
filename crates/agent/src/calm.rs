//! Processes that stand still while their VM is saved, by the freezer of cgroup v2.
//!
//! ```text
//! all processes of group G are meant      G is frozen as it is
//! some are meant                          they move to G/elision-calm, which is frozen, and back
//! ```
//! A group below their own is still theirs: systemd sees no service end, and limits hold. What is frozen is written to a
//! file first, so that whoever comes after an agent that died can let it run on ([`release_left_over`]).
//!
//! Limits: a process that sleeps without being woken by signals keeps its group from being frozen; then nothing is. Calls
//! that a signal interrupts (`epoll_wait`, `semop` and others, see signal(7)) end with EINTR, as with SIGSTOP.

use crate::cgroup::{Group, Tree};
use crate::error::{AgentError, Context, chain};
use crate::{generation, procfs};
use elision_wire::{Calm, Done, note};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is frozen, for whoever comes after this agent.
const JOURNAL: &str = "/run/elision-agent/frozen.json";
/// The group for processes that are frozen without those beside them.
const CHILD: &str = "elision-calm";
/// Processes that keep starting others are looked for so often.
const ROUNDS: u32 = 20;
/// Between two looks whether all stands still.
const BREAK: Duration = Duration::from_millis(1);
/// For those that are ending: they count no more, but are on a processor yet, and the agent goes before them.
const SETTLE: Duration = Duration::from_millis(1);
/// How long what a restored copy does not keep may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A group that is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    path: String,
    /// Where its processes came from, if they were moved.
    home: Option<String>,
    /// Whether somebody else had frozen it before.
    was_frozen: bool,
}

/// Processes that stand still.
#[derive(Debug)]
pub(crate) struct Stillness {
    tree: Tree,
    held: Vec<Held>,
    /// When the first of them was to stand still.
    begun: Instant,
    /// When they run on by themselves.
    pub(crate) until: Instant,
    /// How many they are.
    pub(crate) processes: u32,
    /// What is not as it was asked for.
    pub(crate) notes: Vec<String>,
    /// Services that a restored copy has restarted.
    pub(crate) restart: Vec<String>,
}

/// What was ended in a restored copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) groups: u32,
    pub(crate) processes: u32,
    pub(crate) notes: Vec<String>,
}

/// Freezes what is asked for. All of it stands still afterwards, or nothing does.
pub(crate) fn freeze(ask: &Calm, limit: Duration) -> Result<Stillness, AgentError> {
    let tree = Tree::find()?;
    let begun = Instant::now();
    let until = begun + limit;
    let mut still =
        Stillness { tree, held: vec![], begun, until, processes: 0, notes: vec![], restart: vec![] };
    let done = still.gather(ask).and_then(|()| still.wait());
    match done {
        Ok(()) => {
            generation::calm();
            Ok(still)
        }
        Err(error) => {
            release(&still.tree, &still.held);
            forget();
            Err(error)
        }
    }
}

impl Stillness {
    /// Freezes groups until all processes are in one.
    fn gather(&mut self, ask: &Calm) -> Result<(), AgentError> {
        let me = std::process::id();
        let own = procfs::group_of(me).unwrap_or_default();
        let mut whole = Vec::new();
        for path in &ask.groups {
            let group = self.tree.group(path)?;
            if group.is_root() || group.holds(&own) {
                note(&mut self.notes, &format!("{path} is not frozen as a whole: the agent is in it"));
            } else if group.exists() {
                whole.push(group);
            }
        }
        self.hold_whole(&whole)?;
        for _ in 0..ROUNDS {
            let meant = procfs::present(&ask.processes);
            if meant.contains(&me) {
                return Err(AgentError::Other("The agent is itself among the processes".to_owned()));
            }
            let mut by_group: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
            for (pid, path) in meant.iter().filter_map(|pid| Some((*pid, procfs::group_of(*pid)?))) {
                if !self.is_held(&path)? {
                    by_group.entry(path).or_default().insert(pid);
                }
            }
            if by_group.is_empty() {
                return Ok(());
            }
            if Instant::now() > self.until {
                return Err(AgentError::Late("Looking for the processes"));
            }
            for (path, pids) in by_group {
                let group = self.tree.group(&path)?;
                let all = group.all_processes()?;
                if !group.is_root() && !group.holds(&own) && all.iter().all(|pid| meant.contains(pid)) {
                    self.hold_whole(&[group])?;
                } else {
                    self.hold_apart(&group, &pids)?;
                }
            }
        }
        Err(AgentError::Late("Looking for processes that start others"))
    }

    fn is_held(&self, path: &str) -> Result<bool, AgentError> {
        for held in &self.held {
            if self.tree.group(&held.path)?.holds(path) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn hold_whole(&mut self, groups: &[Group]) -> Result<(), AgentError> {
        if groups.is_empty() {
            return Ok(());
        }
        let held = |group: &Group| Held {
            path: group.path().to_owned(),
            home: None,
            was_frozen: group.is_to_freeze(),
        };
        self.remember(groups.iter().map(held))?;
        groups.iter().try_for_each(|group| group.freeze(true))
    }

    fn hold_apart(&mut self, home: &Group, pids: &BTreeSet<u32>) -> Result<(), AgentError> {
        let group = home.child(CHILD);
        let held =
            Held { path: group.path().to_owned(), home: Some(home.path().to_owned()), was_frozen: false };
        if !self.held.contains(&held) {
            self.remember([held])?;
        }
        group.create()?;
        group.freeze(true)?;
        for pid in pids {
            group.take(*pid)?;
        }
        Ok(())
    }

    fn remember(&mut self, held: impl IntoIterator<Item = Held>) -> Result<(), AgentError> {
        self.held.extend(held);
        let path = Path::new(JOURNAL);
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).context("create", folder)?;
        let text = serde_json::to_vec(&self.held).map_err(std::io::Error::from).context("write", path)?;
        fs::write(path, text).context("write", path)
    }

    /// Waits until nothing moves any more.
    fn wait(&mut self) -> Result<(), AgentError> {
        let mut processes = 0;
        for held in &self.held {
            let group = self.tree.group(&held.path)?;
            while !group.is_frozen()? {
                if Instant::now() > self.until {
                    return Err(AgentError::Late("Freezing the processes"));
                }
                std::thread::sleep(BREAK);
            }
            processes += group.all_processes()?.len();
        }
        self.processes = u32::try_from(processes).unwrap_or(u32::MAX);
        std::thread::sleep(SETTLE);
        Ok(())
    }

    /// Lets them run on, unless this is a restored copy: then they stay as they are, and are given back.
    pub(crate) fn thaw(mut self) -> Result<Done, Box<Self>> {
        if !generation::may_run_on() {
            return Err(Box::new(self));
        }
        self.notes.extend(release(&self.tree, &self.held));
        let still_us = u64::try_from(self.begun.elapsed().as_micros()).ok();
        forget();
        Ok(Done { processes: self.processes, still_us, notes: self.notes })
    }

    /// In a restored copy: ends what was frozen, and leaves the groups as they were before.
    pub(crate) fn end(self) -> Ended {
        let mut ended = Ended::default();
        for held in &self.held {
            let done = self.tree.group(&held.path).and_then(|group| group.end(END_LIMIT));
            match done {
                Ok(processes) => {
                    ended.groups += 1;
                    ended.processes += u32::try_from(processes).unwrap_or(u32::MAX);
                }
                Err(error) => note(&mut ended.notes, &chain(&error)),
            }
        }
        // Nobody is in them who could run on.
        ended.notes.extend(release(&self.tree, &self.held));
        forget();
        ended
    }
}

/// The processes in groups, as far as they are there.
pub(crate) fn processes_of(groups: &[String]) -> Vec<u32> {
    let Ok(tree) = Tree::find() else { return Vec::new() };
    let inside = |path: &String| tree.group(path).and_then(|group| group.all_processes()).unwrap_or_default();
    groups.iter().flat_map(inside).collect()
}

/// Lets groups run on that an agent has left frozen, which is gone. Says what could not be done.
pub(crate) fn release_left_over() -> Vec<String> {
    let Ok(text) = fs::read(JOURNAL) else { return Vec::new() };
    let held: Vec<Held> = serde_json::from_slice(&text).unwrap_or_default();
    let notes = match Tree::find() {
        Ok(tree) => release(&tree, &held),
        Err(error) => vec![chain(&error)],
    };
    forget();
    notes
}

fn forget() {
    let _ = fs::remove_file(JOURNAL);
}

/// Undoes all of it, as far as it was done. Says what could not be undone.
fn release(tree: &Tree, held: &[Held]) -> Vec<String> {
    let mut notes = Vec::new();
    for held in held.iter().rev() {
        if let Err(error) = release_one(tree, held) {
            note(&mut notes, &chain(&error));
        }
    }
    notes
}

fn release_one(tree: &Tree, held: &Held) -> Result<(), AgentError> {
    let group = tree.group(&held.path)?;
    if !group.exists() {
        return Ok(());
    }
    let Some(home) = &held.home else {
        return if held.was_frozen { Ok(()) } else { group.freeze(false) };
    };
    let home = tree.group(home)?;
    // Each runs on when it is back, so none of them can start another here.
    let mut back = Ok(());
    for pid in group.processes()? {
        if let Err(error) = home.take(pid) {
            back = Err(error);
        }
    }
    group.freeze(false)?;
    back?;
    // Who has ended and was not reaped yet is still in it.
    let _ = group.remove();
    Ok(())
}
