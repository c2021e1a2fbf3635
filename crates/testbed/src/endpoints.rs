//! The folder that one QEMU process serves: its sockets, its console log and its RAM file.

use crate::console::Console;
use crate::control::Control;
use crate::error::{Context, Error};
use crate::qmp;
use crate::truth::Truth;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a guest may take to be at rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a guest can be reached.
#[derive(Clone, Debug)]
pub struct Endpoints {
    folder: PathBuf,
}

impl Endpoints {
    /// The endpoints of a QEMU command made for `folder`.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// QMP socket.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }

    /// Socket of the second serial port, where the guest takes requests.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// RAM file of a guest with shared RAM.
    #[must_use]
    pub fn ram_file(&self) -> PathBuf {
        self.folder.join("ram")
    }

    /// What the guest wrote to its debug port.
    #[must_use]
    pub fn debug_file(&self) -> PathBuf {
        self.folder.join("debug.bin")
    }

    /// QEMU's own messages.
    #[must_use]
    pub fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The console.
    #[must_use]
    pub fn console(&self) -> Console {
        Console::new(self.folder.join("console.log"))
    }

    /// The end of the console, and all that QEMU itself wrote.
    pub(crate) fn last_words(&self) -> String {
        let mut words = self.console().tail(25);
        if let Ok(log) = std::fs::read_to_string(self.qemu_log()) {
            words.push('\n');
            words.push_str(log.trim_end());
        }
        words
    }

    /// Connects to the server in the guest and waits until it answers.
    pub fn connect(&self, limit: std::time::Duration) -> Result<Control, Error> {
        Control::connect(self, limit)
    }

    /// Runs one QMP command.
    pub fn qmp(&self, command: &str, arguments: &Value) -> Result<Value, Error> {
        qmp::command(&self.qmp_socket(), command, arguments)
    }

    /// Runs one command of QEMU's human monitor.
    pub fn monitor(&self, line: &str) -> Result<String, Error> {
        let value = self.qmp("human-monitor-command", &json!({"command-line": line}))?;
        Ok(value.as_str().unwrap_or("").to_owned())
    }

    /// The guest's run state: `running`, `paused` and so on.
    pub fn run_state(&self) -> Result<String, Error> {
        let value = self.qmp("query-status", &json!({}))?;
        Ok(value["status"].as_str().unwrap_or("").to_owned())
    }

    /// Stops all vCPUs.
    pub fn stop(&self) -> Result<(), Error> {
        self.qmp("stop", &json!({})).map(drop)
    }

    /// Stops all vCPUs at a moment when `look` finds what it looks for.
    pub fn stop_when<T>(&self, mut look: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.stop()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            assert!(Instant::now() < until, "the guest is never as it should be when it is stopped");
            self.cont()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets the vCPUs run.
    pub fn cont(&self) -> Result<(), Error> {
        self.qmp("cont", &json!({})).map(drop)
    }

    /// Asks the guest for ground truth.
    pub fn truth(&self, control: &mut Control, symbols: bool, types: bool) -> Result<Truth, Error> {
        Truth::parse(&self.truth_bytes(control, symbols, types)?)
    }

    /// Ground truth as the guest wrote it, for [`Truth::parse`].
    pub fn truth_bytes(&self, control: &mut Control, symbols: bool, types: bool) -> Result<Vec<u8>, Error> {
        let path = self.debug_file();
        let before = std::fs::metadata(&path).map_or(0, |m| m.len());
        control.truth(symbols, types)?;
        let bytes = std::fs::read(&path).context("read", &path)?;
        let start = usize::try_from(before).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes[start..].to_vec())
    }
}
