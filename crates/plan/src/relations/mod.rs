//! Which processes that stay share something with excluded ones, and what they are to them.
//!
//! ```text
//! excluded process ── pipe, socket, terminal, memory, file, descriptor, trace ──> process that stays
//! ```
//! A relation *carries* data when the process that stays can have received data of the excluded one by it: it reads
//! where the other writes. Such a process is a dependent. `dependents = "exclude"` takes dependents along, and theirs,
//! until none is left; but the guest's first process, log daemons and message buses stay, as everybody talks to them
//! and the guest does not do without them. What two processes tell each other over a bus is not seen.
//!
//! Roles are told by what a process does, not by its name: who has the other end of a pseudo terminal is a terminal
//! server (sshd, tmux, a terminal emulator), who started the process on its terminal is a shell.

mod dependents;
mod index;
mod roles;

pub(crate) use dependents::take_dependents;

use crate::{PlanError, Selection};
use elision_kernel::Kernel;
use index::Index;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a relation goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelationKind {
    /// A pipe or FIFO.
    Pipe,
    /// A socket: two connected ones, or one that both have.
    Socket,
    /// A terminal.
    Terminal,
    /// Memory, or a file in memory.
    Memory,
    /// A file that one writes and the other reads.
    File,
    /// Another open file that both have, such as a listening socket or an eventfd.
    Descriptor,
    /// One traces the other.
    Trace,
}

/// What a process that stays is to an excluded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// None of the others.
    Peer,
    /// Has the other end of its pseudo terminal.
    TerminalServer,
    /// Started it on its terminal, or leads its session.
    Shell,
    /// Traces it.
    Tracer,
    /// Gets what it logs.
    LogDaemon,
    /// Carries its messages.
    Bus,
    /// The guest's first process.
    Init,
}

impl Role {
    /// Whether the guest does not do without it.
    #[must_use]
    pub fn stays(self) -> bool {
        matches!(self, Self::LogDaemon | Self::Bus | Self::Init)
    }
}

/// One thing that an excluded process and one that stays have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Relation {
    /// The excluded process.
    pub excluded: u32,
    /// The process that stays; of a dependent that was taken along, that one.
    pub other: u32,
    /// What the other is to it.
    pub role: Role,
    /// What it goes through.
    pub kind: RelationKind,
    /// The excluded process's end, as `/proc/PID/fd` shows it, or the name of a terminal.
    pub name: String,
    /// The other's end, where it is another one.
    pub peer: Option<String>,
    /// The name that one of the sockets is bound to.
    pub address: Option<String>,
    /// Whether the other can have received data of the excluded process by it.
    pub carries: bool,
}

/// Lists longer than this are cut; what they are needed for is not.
const LIST_LIMIT: usize = 10_000;

impl Selection {
    /// What the excluded processes share with those that stay, at most 10,000 of it.
    pub fn relations(&self, kernel: &Kernel<'_>) -> Result<Vec<Relation>, PlanError> {
        if self.excluded.is_empty() {
            return Ok(Vec::new());
        }
        let mut index = Index::new(kernel, &self.processes)?;
        self.excluded.iter().for_each(|pid| index.leave_out(*pid));
        let mut found = BTreeSet::new();
        for process in self.excluded() {
            for link in index.links(process)? {
                if found.len() < LIST_LIMIT {
                    found.insert(index.describe(process.pid, &link)?);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The dependents that stay, each once, in words.
    pub(crate) fn refused_dependents(&self, kernel: &Kernel<'_>) -> Result<Vec<String>, PlanError> {
        let name = |pid: u32| self.processes.iter().find(|p| p.pid == pid).map_or("", |p| p.comm.as_str());
        let mut relations = BTreeMap::new();
        for relation in self.relations(kernel)?.into_iter().filter(|r| r.carries) {
            relations.entry(relation.other).or_insert(relation);
        }
        let words = relations.into_values().map(|relation| {
            let Relation { excluded, other, role, name: by, .. } = relation;
            let (excluded_comm, comm) = (name(excluded), name(other));
            format!("process {other} ({comm}), {role}, shares {by} with process {excluded} ({excluded_comm})")
        });
        Ok(words.collect())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "a peer",
            Self::TerminalServer => "a terminal server",
            Self::Shell => "a shell",
            Self::Tracer => "a tracer",
            Self::LogDaemon => "a log daemon",
            Self::Bus => "a message bus",
            Self::Init => "the first process",
        })
    }
}
