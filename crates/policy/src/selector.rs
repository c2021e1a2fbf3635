//! One selection: its text form, and which processes it matches.
//!
//! | kind | pattern | a process matches when |
//! |---|---|---|
//! | `pid` | number from 1 | it has this thread group id in the guest's first pid namespace |
//! | `comm` | text, at most 15 bytes | its name is exactly this |
//! | `exe` | glob over a path | the path of its executable matches |
//! | `uid` | number | its real or effective user id, as the caller puts it in the facts, is this |
//! | `cgroup` | glob over a path | its cgroup v2 path, or a cgroup above that, matches |
//! | `tty` | `pts/0`, `tty1`, `/dev/ttyS0` | its controlling terminal is this |
//! | `unit` | systemd unit, may be a glob | it runs in this unit, or in one within it ([`Unit`]) |
//! | `container` | id (12 digits or more) or name | it runs in this container ([`Container`]) |
//! | `file` | glob over a path | never: what is left out is what the kernel keeps of a file |
//! | `region` | `named`, `secretmem`, `dontdump` | never: what is left out is marked memory of processes that stay |
//!
//! A policy file may narrow two of them: `exe` by the arguments of the command line, `region` by one kind of process.

use crate::{Container, PathGlob, PolicyError, Region, Unit};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
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
    /// What follows the program's name in the command line, joined by single spaces, if it could be read.
    pub args: Option<&'a str>,
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
    /// By systemd unit.
    Unit,
    /// By container.
    Container,
    /// Not a process: a file.
    File,
    /// Not a process: marked memory.
    Region,
}

impl Kind {
    /// All kinds, as the help lists them.
    pub const ALL: [Self; 10] = [
        Self::Pid,
        Self::Comm,
        Self::Exe,
        Self::Uid,
        Self::Cgroup,
        Self::Tty,
        Self::Unit,
        Self::Container,
        Self::File,
        Self::Region,
    ];

    /// Whether it selects processes.
    #[must_use]
    pub fn is_of_processes(self) -> bool {
        !matches!(self, Self::File | Self::Region)
    }

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
            Self::Unit => "unit",
            Self::Container => "container",
            Self::File => "file",
            Self::Region => "region",
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

/// What a process must be like, or what else is left out.
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
    /// This systemd unit.
    Unit(Unit),
    /// This container.
    Container(Container),
    /// Files whose path in the guest matches.
    File(PathGlob),
    /// Memory marked so.
    Region(Region),
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
            Kind::Exe | Kind::File if !["/", "**/", "{"].iter().any(|p| pattern.starts_with(p)) => {
                Err(PolicyError::RelativePath { kind, pattern: own() })
            }
            Kind::Exe => Ok(Self::Exe(glob(pattern)?)),
            Kind::File => Ok(Self::File(glob(pattern)?)),
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
            Kind::Unit | Kind::Container if pattern.contains('/') => {
                Err(PolicyError::PathForName { kind, pattern: own() })
            }
            Kind::Unit => Ok(Self::Unit(Unit::new(glob(&Unit::full_name(pattern))?))),
            Kind::Container => Ok(Self::Container(Container::new(pattern))),
            Kind::Region => pattern.parse().map(Self::Region),
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
            Self::Unit(_) => Kind::Unit,
            Self::Container(_) => Kind::Container,
            Self::File(_) => Kind::File,
            Self::Region(_) => Kind::Region,
        }
    }

    /// The pattern in its text form.
    #[must_use]
    pub fn pattern(&self) -> String {
        match self {
            Self::Pid(n) | Self::Uid(n) => n.to_string(),
            Self::Comm(text) | Self::Tty(text) => text.clone(),
            Self::Exe(glob) | Self::Cgroup(glob) | Self::File(glob) => glob.as_str().to_owned(),
            Self::Unit(unit) => unit.as_str().to_owned(),
            Self::Container(container) => container.as_str().to_owned(),
            Self::Region(region) => region.name().to_owned(),
        }
    }

    /// Whether the process is like this; never for what does not select processes.
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
            Self::Unit(unit) => process.cgroup.is_some_and(|cgroup| unit.holds(cgroup)),
            Self::Container(container) => process.cgroup.is_some_and(|cgroup| container.holds(cgroup)),
            Self::File(_) | Self::Region(_) => false,
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

/// One selection of what to leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// What a process must be like, or what else is left out.
    pub criterion: Criterion,
    /// With `exe`: what the arguments must be like as well.
    pub args: Option<PathGlob>,
    /// With `region`: only of processes like this.
    pub of: Option<Criterion>,
    /// Whether it may match nothing.
    pub optional: bool,
    /// Whether the descendants of a matching process are left out with it.
    pub children: bool,
    /// With `unit`: what becomes of its services in a restored guest.
    pub on_restore: OnRestore,
}

/// What becomes of a unit's services after a restore without their processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRestore {
    /// What systemd does with a service whose processes were killed.
    #[default]
    Leave,
    /// The agent in the guest has them restarted.
    Restart,
}

impl Selector {
    /// A selector that must match and, if it selects processes, takes their descendants along.
    #[must_use]
    pub fn new(criterion: Criterion) -> Self {
        let children = criterion.kind().is_of_processes();
        Self { criterion, args: None, of: None, optional: false, children, on_restore: OnRestore::Leave }
    }

    /// Whether the process itself is selected (descendants are the caller's to add).
    #[must_use]
    pub fn matches(&self, process: &ProcessFacts<'_>) -> bool {
        self.criterion.matches(process) && self.fits_args(process)
    }

    /// Whether the process is selected if its arguments fit, or a region is about it then.
    #[must_use]
    pub fn may_match(&self, process: &ProcessFacts<'_>) -> bool {
        self.of.as_ref().unwrap_or(&self.criterion).matches(process)
    }

    /// Of a `region`: whether it is about this process. It is about all of them if the entry names none.
    #[must_use]
    pub fn is_about(&self, process: &ProcessFacts<'_>) -> bool {
        self.of.as_ref().is_none_or(|of| of.matches(process)) && self.fits_args(process)
    }

    fn fits_args(&self, process: &ProcessFacts<'_>) -> bool {
        self.args.as_ref().is_none_or(|glob| process.args.is_some_and(|args| glob.matches(args)))
    }
}

impl FromStr for Selector {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (kind, pattern) = text.split_once('=').ok_or_else(|| PolicyError::NoKind(text.to_owned()))?;
        Ok(Self::new(Criterion::new(kind.parse()?, pattern)?))
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind(), self.pattern())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.criterion.fmt(f)?;
        if let Some(of) = &self.of {
            write!(f, " {of}")?;
        }
        if let Some(args) = &self.args {
            write!(f, " args={}", args.as_str())?;
        }
        Ok(())
    }
}

impl Serialize for Criterion {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_map(Some(2))?;
        out.serialize_entry("kind", self.kind().name())?;
        out.serialize_entry("pattern", &self.pattern())?;
        out.end()
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_map(None)?;
        out.serialize_entry("kind", self.criterion.kind().name())?;
        out.serialize_entry("pattern", &self.criterion.pattern())?;
        if let Some(of) = &self.of {
            out.serialize_entry("of", of)?;
        }
        if let Some(args) = &self.args {
            out.serialize_entry("args", args.as_str())?;
        }
        out.serialize_entry("optional", &self.optional)?;
        out.serialize_entry("children", &self.children)?;
        if self.on_restore != OnRestore::Leave {
            out.serialize_entry("on_restore", &self.on_restore)?;
        }
        out.end()
    }
}
