//! QEMU's background snapshot: the VM runs while its memory is written.

use super::{Saved, Way};
use crate::Failure;
use crate::support::machine::{command, socket};
use crate::support::plain;
use elision_qemu::Qmp;
use elision_testbed::GuestOptions;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);

/// `migrate` with the capability `background-snapshot`.
pub(crate) struct Background;

impl Way for Background {
    fn name(&self) -> &'static str {
        "QEMU, `background-snapshot`"
    }

    fn file(&self) -> &'static Path {
        Path::new("vm.snapshot")
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let begin = Instant::now();
        let file = File::create_new(self.file())?;
        let mut qmp = Qmp::connect(socket)?;
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 0}))?;
        set(&mut qmp, true)?;
        qmp.execute_with_descriptor("getfd", json!({"fdname": "background"}), file.as_fd())?;
        qmp.take_events();
        qmp.execute("migrate", json!({"uri": "fd:background"}))?;
        let stopped = qmp.wait_event("STOP", LIMIT)?.map(|_| Instant::now());
        // Newer versions wait for somebody to continue the VM.
        let mut resumed = None;
        while resumed.is_none() {
            resumed = qmp.wait_event("RESUME", Duration::from_millis(1))?.map(|_| Instant::now());
            let status = qmp.execute("query-migrate", json!({}))?;
            if resumed.is_none() && status["status"] == "active" && qmp.version().major >= 8 {
                qmp.execute("cont", json!({}))?;
            }
            if failed(&status) || begin.elapsed() > LIMIT {
                return Err(format!("QEMU's background snapshot failed: {status}").into());
            }
        }
        plain::wait_completed(&mut qmp)?;
        set(&mut qmp, false)?;
        file.sync_all()?;
        let (stopped, resumed) = stopped.zip(resumed).ok_or("QEMU never stopped the VM")?;
        Ok(Saved { pause: resumed - stopped, total: begin.elapsed(), kept: None })
    }

    fn restore(&self, options: &GuestOptions, folder: &Path) -> Result<bool, Failure> {
        plain::restore(&command(options, folder)?, Path::new(&socket(folder)), self.file())?;
        Ok(true)
    }
}

fn set(qmp: &mut Qmp, on: bool) -> Result<(), Failure> {
    let capability = json!({"capability": "background-snapshot", "state": on});
    qmp.execute("migrate-set-capabilities", json!({"capabilities": [capability]}))?;
    Ok(())
}

fn failed(status: &Value) -> bool {
    matches!(status["status"].as_str(), Some("failed" | "cancelled"))
}
