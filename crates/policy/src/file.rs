//! The policy file.
//!
//! ```toml
//! [[exclude]]               # any number; exactly one kind each
//! exe = "/usr/bin/psql"     # or pid = 12, comm = "...", uid = 1000, cgroup = "...", tty = "..."
//! optional = true           # may match nothing; default false
//! children = false          # its descendants stay; default true
//!
//! [save]                    # at most one
//! best-effort = false
//! video = "auto"            # or "keep", "blank"
//! kernel-log = "auto"       # or "clear"
//! ```
//! Limits: 1 MiB. A key that is not listed here is an error, so that a misspelt one is noticed.

use crate::{Criterion, Kind, Policy, PolicyError, SaveOptions, Selector};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;

const FILE_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    #[serde(default)]
    exclude: Vec<Spanned<RawSelector>>,
    #[serde(default)]
    save: SaveOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSelector {
    pid: Option<Spanned<u32>>,
    comm: Option<Spanned<String>>,
    exe: Option<Spanned<String>>,
    uid: Option<Spanned<u32>>,
    cgroup: Option<Spanned<String>>,
    tty: Option<Spanned<String>>,
    #[serde(default)]
    optional: bool,
    #[serde(default = "yes")]
    children: bool,
}

fn yes() -> bool {
    true
}

impl RawSelector {
    fn kinds(&self) -> Vec<(Kind, String, Range<usize>)> {
        let number =
            |kind, n: &Option<Spanned<u32>>| n.as_ref().map(|n| (kind, n.get_ref().to_string(), n.span()));
        let text =
            |kind, t: &Option<Spanned<String>>| t.as_ref().map(|t| (kind, t.get_ref().clone(), t.span()));
        let all = [
            number(Kind::Pid, &self.pid),
            text(Kind::Comm, &self.comm),
            text(Kind::Exe, &self.exe),
            number(Kind::Uid, &self.uid),
            text(Kind::Cgroup, &self.cgroup),
            text(Kind::Tty, &self.tty),
        ];
        all.into_iter().flatten().collect()
    }
}

impl Policy {
    /// Reads a policy file.
    pub fn from_file(path: &Path) -> Result<Self, PolicyError> {
        let failed = |source| PolicyError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        File::open(path).map_err(failed)?.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text, path)
    }

    /// Reads the text of a policy file; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        if text.len() as u64 > FILE_BYTES {
            return Err(PolicyError::TooLarge { path: path.to_owned(), limit: FILE_BYTES });
        }
        let wrong = |at: usize, reason: String| PolicyError::File {
            path: path.to_owned(),
            line: 1 + text.bytes().take(at).filter(|&b| b == b'\n').count(),
            reason,
        };
        let raw: RawPolicy = toml::from_str(text)
            .map_err(|e| wrong(e.span().map_or(0, |s| s.start), e.message().to_owned()))?;
        let mut selectors = Vec::new();
        for entry in raw.exclude {
            let at = entry.span().start;
            let entry = entry.into_inner();
            let kinds = entry.kinds();
            let [(kind, pattern, span)] = kinds.as_slice() else {
                let found = kinds.iter().map(|k| k.0.name()).collect::<Vec<_>>().join(", ");
                let found = if found.is_empty() { "none" } else { &found };
                let reason = format!(
                    "an exclude entry needs exactly one of pid, comm, exe, uid, cgroup, tty; this one has {found}"
                );
                return Err(wrong(at, reason));
            };
            let criterion = Criterion::new(*kind, pattern).map_err(|e| wrong(span.start, e.to_string()))?;
            selectors.push(Selector { criterion, optional: entry.optional, children: entry.children });
        }
        Ok(Self { selectors, save: raw.save })
    }
}
