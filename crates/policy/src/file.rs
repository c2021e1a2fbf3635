//! The policy file.
//!
//! ```toml
//! [[exclude]]               # any number; exactly one kind each
//! exe = "/usr/bin/psql"     # or pid = 12, comm = "...", uid = 1000, cgroup = "...", tty = "...",
//!                           # unit = "...", container = "...", file = "...", region = "..."
//! args = "--port=5433 *"    # with exe: a glob over what follows the program's name
//! optional = true           # may match nothing; default false
//! children = false          # its descendants stay; default true; not with file and region
//! on_restore = "restart"    # with unit: its services are restarted in a restored guest; default "leave"
//!
//! [[exclude]]
//! region = "named"          # or "secretmem", "dontdump": marked memory of processes that stay
//! comm = "server"           # with region: of these processes only, by one kind of process
//!
//! [save]                    # at most one
//! best-effort = false
//! video = "auto"            # or "keep", "blank"
//! kernel-log = "auto"       # or "clear"
//! dependents = "keep"       # or "exclude", "refuse"
//! cache = "keep"            # or "exclude"
//! dirty = "refuse"          # or "wait"
//! ```
//! Limits: 1 MiB. A key that is not listed here is an error, so that a misspelt one is noticed.

use crate::entry::Entry;
use crate::{Policy, PolicyError, SaveOptions};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use toml::Spanned;

const FILE_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    #[serde(default)]
    exclude: Vec<Spanned<Entry>>,
    #[serde(default)]
    save: SaveOptions,
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
            let selector = entry.into_inner().selector();
            selectors.push(selector.map_err(|e| wrong(e.at.unwrap_or(at), e.reason))?);
        }
        Ok(Self { selectors, save: raw.save })
    }
}
