//! One selection of processes: its text form, and what it matches.
//!
//! | kind | pattern | a process matches when |
//! |---|---|---|
//! | `pid` | number from 1 | it has this thread group id in the guest's first pid namespace |
//! | `comm` | text, at most 15 bytes | its name is exactly this |
//! | `exe` | glob over a path | the path of its executable matches |
//! | `uid` | number | its real or effective user id, as the caller puts it in the facts, is this |
//! | `cgroup` | glob over a path | its cgroup v2 path, or a cgroup above that, matches |
//! | `tty` | `pts/0`, `tty1`, `/dev/ttyS0` | its controlling terminal is this |

use crate::{PathGlob, PolicyError};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Longest process name that a Linux kernel keeps, in bytes.
const COMM_BYTES: usize = 15;
/// Longest pattern: a path cannot be longer.
const PATTERN_BYTES: usize = 4096;

/// What is known of a process of the guest.
#[derive(Clone, Copy, Debug)]
pub struct ProcessFacts<'a> {
    /// Thread group id.
    pub pid: u32,
    /// Name, as the kernel keeps it.
    pub comm: &'a str,
    /// Path of the executable; kernel threads have none.
    pub exe: Option<&'a str>,
    /// User id.
    pub uid: u32,
    /// Path in the cgroup v2 hierarchy.
    pub cgroup: Option<&'a str>,
    /// Controlling terminal, with or without `/dev/`.
    pub tty: Option<&'a str>,
}

/// The kinds of selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// By process id.
    Pid,
    /// By name.
    Comm,
    /// By path of the executable.
    Exe,
    /// By user id.
    Uid,
    /// By cgroup.
    Cgroup,
    /// By controlling terminal.
    Tty,
}

impl Kind {
    /// All kinds, as the help lists them.
    pub const ALL: [Self; 6] = [Self::Pid, Self::Comm, Self::Exe, Self::Uid, Self::Cgroup, Self::Tty];

    /// The word before `=`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Comm => "comm",
            Self::Exe => "exe",
            Self::Uid => "uid",
            Self::Cgroup => "cgroup",
            Self::Tty => "tty",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let kind = Self::ALL.into_iter().find(|k| k.name() == text);
        kind.ok_or_else(|| PolicyError::UnknownKind(text.to_owned()))
    }
}

/// What a process must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// This process id.
    Pid(u32),
    /// This name.
    Comm(String),
    /// An executable whose path matches.
    Exe(PathGlob),
    /// This user id.
    Uid(u32),
    /// A cgroup whose path matches, or one below it.
    Cgroup(PathGlob),
    /// This terminal, without `/dev/`.
    Tty(String),
}

impl Criterion {
    /// Reads the pattern of one kind.
    pub fn new(kind: Kind, pattern: &str) -> Result<Self, PolicyError> {
        if pattern.is_empty() {
            return Err(PolicyError::Empty(kind));
        }
        if pattern.len() > PATTERN_BYTES || pattern.chars().any(char::is_control) {
            return Err(PolicyError::Malformed(kind));
        }
        let own = || pattern.to_owned();
        let glob = |text: &str| {
            PathGlob::new(text).map_err(|reason| PolicyError::BadGlob { kind, pattern: own(), reason })
        };
        match kind {
            Kind::Pid => match pattern.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(pid)),
                _ => Err(PolicyError::BadPid(own())),
            },
            Kind::Comm if pattern.len() > COMM_BYTES => Err(PolicyError::LongComm(own())),
            Kind::Comm => Ok(Self::Comm(own())),
            Kind::Exe if !["/", "**/", "{"].iter().any(|p| pattern.starts_with(p)) => {
                Err(PolicyError::RelativeExe(own()))
            }
            Kind::Exe => Ok(Self::Exe(glob(pattern)?)),
            Kind::Uid => pattern.parse().map(Self::Uid).map_err(|_| PolicyError::BadUid(own())),
            Kind::Cgroup => {
                // `systemd-cgls` prints paths without the first slash; a last slash names the same group.
                let path = pattern.trim_matches('/');
                Ok(Self::Cgroup(glob(&format!("/{path}"))?))
            }
            Kind::Tty => match terminal_name(pattern) {
                name if name.is_empty() => Err(PolicyError::Empty(kind)),
                name => Ok(Self::Tty(name.into_owned())),
            },
        }
    }

    /// The criterion's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pid(_) => Kind::Pid,
            Self::Comm(_) => Kind::Comm,
            Self::Exe(_) => Kind::Exe,
            Self::Uid(_) => Kind::Uid,
            Self::Cgroup(_) => Kind::Cgroup,
            Self::Tty(_) => Kind::Tty,
        }
    }

    /// The pattern in its text form.
    #[must_use]
    pub fn pattern(&self) -> String {
        match self {
            Self::Pid(n) | Self::Uid(n) => n.to_string(),
            Self::Comm(text) | Self::Tty(text) => text.clone(),
            Self::Exe(glob) | Self::Cgroup(glob) => glob.as_str().to_owned(),
        }
    }

    /// Whether the process is like this.
    #[must_use]
    pub fn matches(&self, process: &ProcessFacts<'_>) -> bool {
        match self {
            Self::Pid(pid) => process.pid == *pid,
            Self::Comm(comm) => process.comm == comm,
            Self::Exe(glob) => process.exe.is_some_and(|exe| {
                // The kernel marks the path of an executable that was replaced or removed.
                let replaced = exe.strip_suffix(" (deleted)");
                glob.matches(exe) || replaced.is_some_and(|exe| glob.matches(exe))
            }),
            Self::Uid(uid) => process.uid == *uid,
            Self::Cgroup(glob) => process.cgroup.is_some_and(|cgroup| glob.matches_or_holds(cgroup)),
            Self::Tty(tty) => process.tty.is_some_and(|t| terminal_name(t) == *tty),
        }
    }
}

/// The name below `/dev`. The kernel calls the terminal `/dev/pts/3` `pts3`.
fn terminal_name(text: &str) -> Cow<'_, str> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    match name.strip_prefix("pts") {
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => Cow::Owned(format!("pts/{n}")),
        _ => Cow::Borrowed(name),
    }
}

/// One selection of processes to leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// What a process must be like.
    pub criterion: Criterion,
    /// Whether it may match nothing.
    pub optional: bool,
    /// Whether the descendants of a matching process are left out with it.
    pub children: bool,
}

impl Selector {
    /// A selector that must match and that takes descendants along.
    #[must_use]
    pub fn new(criterion: Criterion) -> Self {
        Self { criterion, optional: false, children: true }
    }

    /// Whether the process itself is selected (descendants are the caller's to add).
    #[must_use]
    pub fn matches(&self, process: &ProcessFacts<'_>) -> bool {
        self.criterion.matches(process)
    }
}

impl FromStr for Selector {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (kind, pattern) = text.split_once('=').ok_or_else(|| PolicyError::NoKind(text.to_owned()))?;
        Ok(Self::new(Criterion::new(kind.parse()?, pattern)?))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.criterion.kind(), self.criterion.pattern())
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Selector", 4)?;
        out.serialize_field("kind", self.criterion.kind().name())?;
        out.serialize_field("pattern", &self.criterion.pattern())?;
        out.serialize_field("optional", &self.optional)?;
        out.serialize_field("children", &self.children)?;
        out.end()
    }
}
