//! What the guest's owner allows: `/etc/elision/agent.toml`, then `/etc/elision/agent.d/*.toml` in the order of their names.
//!
//! ```toml
//! allow = ["calm", "prepare", "clock", "random", "hooks", "restart"]    # and "identity"
//! longest-calm-seconds = 60        # no host can let processes stand still for longer
//! hook-seconds = 10                # for each hook
//! hooks = "/etc/elision/hooks.d"
//! ```
//! A key of a later file takes the place of the same key before. Without any file the host may ask for what is above:
//! all but a new identity. A file that is not understood is an error, so that a misspelt limit is noticed.
//! Limits: 64 KiB for a file, 64 files.

use crate::error::{AgentError, Context};
use elision_wire::Capability;
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MAIN: &str = "/etc/elision/agent.toml";
const DROP_INS: &str = "/etc/elision/agent.d";
const FILE_BYTES: u64 = 64 << 10;
const MOST_FILES: usize = 64;

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// What the host may ask for.
    pub(crate) allow: Vec<Capability>,
    /// How long processes may stand still.
    pub(crate) longest_calm: Duration,
    /// How long a hook may run.
    pub(crate) hook_limit: Duration,
    /// The folder with hooks.
    pub(crate) hooks: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        use Capability::{Calm, Clock, Hooks, Prepare, Random, Restart};
        Self {
            allow: vec![Calm, Prepare, Clock, Random, Hooks, Restart],
            longest_calm: Duration::from_secs(60),
            hook_limit: Duration::from_secs(10),
            hooks: "/etc/elision/hooks.d".into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    allow: Option<Vec<Capability>>,
    longest_calm_seconds: Option<u16>,
    hook_seconds: Option<u16>,
    hooks: Option<PathBuf>,
}

impl Config {
    /// Reads the machine's files, or one file alone.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, AgentError> {
        let mut config = Self::default();
        if let Some(file) = file {
            config.add(file)?;
            return Ok(config);
        }
        config.add_if_there(Path::new(MAIN))?;
        for file in drop_ins(Path::new(DROP_INS))? {
            config.add_if_there(&file)?;
        }
        Ok(config)
    }

    /// Whether the host may ask for something.
    pub(crate) fn allows(&self, capability: Capability) -> bool {
        self.allow.contains(&capability)
    }

    fn add_if_there(&mut self, path: &Path) -> Result<(), AgentError> {
        match self.add(path) {
            Err(AgentError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), AgentError> {
        let mut text = String::new();
        let file = File::open(path).context("open", path)?;
        file.take(FILE_BYTES + 1).read_to_string(&mut text).context("read", path)?;
        let wrong = |reason: String| AgentError::Config { path: path.to_owned(), reason };
        if text.len() as u64 > FILE_BYTES {
            return Err(wrong(format!("it is longer than {FILE_BYTES} bytes")));
        }
        let raw: Raw = toml::from_str(&text).map_err(|e| wrong(e.message().to_owned()))?;
        if let Some(allow) = raw.allow {
            if allow.contains(&Capability::Unknown) {
                return Err(wrong("a word of `allow` is not known".to_owned()));
            }
            self.allow = allow;
        }
        let seconds = |n: u16| Duration::from_secs(n.into());
        self.longest_calm = raw.longest_calm_seconds.map_or(self.longest_calm, seconds);
        self.hook_limit = raw.hook_seconds.map_or(self.hook_limit, seconds);
        if let Some(hooks) = raw.hooks {
            self.hooks = hooks;
        }
        Ok(())
    }
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, AgentError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("list", folder)?,
    };
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    files.sort();
    files.truncate(MOST_FILES);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(config: &mut Config, text: &str) -> Result<(), AgentError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        config.add(&path)
    }

    #[test]
    fn a_later_file_changes_only_what_it_names() {
        let mut config = Config::default();
        assert!(config.allows(Capability::Clock) && !config.allows(Capability::Identity));
        add(&mut config, "longest-calm-seconds = 5\n").unwrap();
        add(&mut config, "allow = ['calm', 'identity']\n").unwrap();
        assert_eq!(config.longest_calm, Duration::from_secs(5));
        assert!(config.allows(Capability::Identity) && !config.allows(Capability::Clock));
    }

    #[test]
    fn a_misspelt_word_is_noticed() {
        for wrong in ["allow = ['clam']", "alow = []", "longest-calm-seconds = -1", "allow ="] {
            let error = add(&mut Config::default(), wrong).unwrap_err();
            assert!(matches!(error, AgentError::Config { .. }), "{wrong}: {error:?}");
        }
    }

    #[test]
    fn drop_ins_come_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["20.toml", "10.toml", "note.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = drop_ins(folder.path()).unwrap();
        assert_eq!(found, ["10.toml", "20.toml"].map(|name| folder.path().join(name)));
        assert!(drop_ins(&folder.path().join("none")).unwrap().is_empty());
    }
}
