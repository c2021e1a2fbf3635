//! `elision save` and `elision restore`.

use super::{Saved, Way};
use crate::Failure;
use crate::support::cleanup;
use crate::support::machine::{json_of, restore_words};
use elision_testbed::GuestOptions;
use std::path::Path;
use std::time::{Duration, Instant};

/// A save by Elision.
pub(crate) struct Elision {
    /// Without the process `vault`, or with every process.
    pub(crate) excluded: bool,
}

impl Way for Elision {
    fn name(&self) -> &'static str {
        if self.excluded { "elision save, one process excluded" } else { "elision save, nothing excluded" }
    }

    fn file(&self) -> &'static Path {
        Path::new(if self.excluded { "elided.elision" } else { "plain.elision" })
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let mut words = vec!["save".to_owned(), "--qmp".to_owned(), socket.display().to_string()];
        if self.excluded {
            words.extend(["--exclude".to_owned(), "comm=vault".to_owned()]);
        }
        words.push(self.file().display().to_string());
        let begin = Instant::now();
        let saved = json_of(&words, &[0])?;
        let total = begin.elapsed();
        let pause = saved["pause_ms"].as_f64().ok_or("elision save names no pause")?;
        Ok(Saved { pause: Duration::from_secs_f64(pause / 1000.0), total })
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
