//! `elision save` and `elision restore`.

use super::{Saved, Way};
use crate::Failure;
use crate::support::cleanup;
use crate::support::machine::{json_of, restore_words};
use elision_testbed::GuestOptions;
use std::path::Path;
use std::time::{Duration, Instant};

/// A save by Elision.
#[derive(PartialEq, Eq)]
pub(crate) enum Elision {
    /// With every process.
    Plain,
    /// Without the process `vault`.
    Excluded,
    /// The same while the VM runs.
    Live,
}

impl Way for Elision {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain => "elision save, nothing excluded",
            Self::Excluded => "elision save, one process excluded",
            Self::Live => "elision save --live, one process excluded",
        }
    }

    fn file(&self) -> &'static Path {
        Path::new(match self {
            Self::Plain => "plain.elision",
            Self::Excluded => "elided.elision",
            Self::Live => "live.elision",
        })
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let mut words = vec!["save".to_owned(), "--qmp".to_owned(), socket.display().to_string()];
        if *self != Self::Plain {
            words.extend(["--exclude".to_owned(), "comm=vault".to_owned()]);
        }
        if *self == Self::Live {
            words.push("--live".to_owned());
        }
        words.push(self.file().display().to_string());
        let begin = Instant::now();
        let saved = json_of(&words, &[0])?;
        let total = begin.elapsed();
        let pause = saved["pause_ms"].as_f64().ok_or("elision save names no pause")?;
        let kept = saved["ram"]["written"].as_u64();
        Ok(Saved { pause: Duration::from_secs_f64(pause / 1000.0), total, kept })
    }

    fn restore(&self, options: &GuestOptions, folder: &Path) -> Result<bool, Failure> {
        let words = restore_words(options, &self.file().display().to_string(), folder)?;
        let vm = json_of(&words, &[0])?;
        cleanup::adopt(vm["pid"].as_u64().ok_or("elision restore names no process")?)?;
        Ok(true)
    }

    fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(self.file())
    }
}
