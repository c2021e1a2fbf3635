//! QEMU's `mapped-ram`: each page has its place in the file, so that several threads write past the page cache.

use super::incoming::stopped_vm;
use super::{Saved, Way};
use crate::Failure;
use crate::support::machine::command;
use crate::support::plain::wait_completed;
use elision_qemu::Qmp;
use elision_testbed::GuestOptions;
use serde_json::json;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::Instant;

/// `stop`, `migrate` to a file with `mapped-ram`, `multifd` and `direct-io`, `cont`.
pub(crate) struct Mapped;

impl Mapped {
    /// Whether the VMs' QEMU has it: from version 9 on, and `direct-io` from 9.1 on.
    pub(crate) fn is_known(options: &GuestOptions) -> Result<bool, Failure> {
        let words = command(options, Path::new("."))?;
        let (program, _) = words.split_first().ok_or("The command is empty")?;
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split("version ").nth(1).unwrap_or_default();
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        Ok((numbers.next(), numbers.next()) >= (Some(9), Some(1)))
    }
}

impl Way for Mapped {
    fn name(&self) -> &'static str {
        "QEMU, `mapped-ram` with `multifd` and `direct-io`"
    }

    fn file(&self) -> &'static Path {
        Path::new("vm.mapped")
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let begin = Instant::now();
        let mut qmp = Qmp::connect(socket)?;
        set(&mut qmp, true)?;
        let stopped = Instant::now();
        qmp.execute("stop", json!({}))?;
        let sent = qmp.execute("migrate", json!({"uri": uri(self.file())?}));
        let sent = sent.map_err(Failure::from).and_then(|_| wait_completed(&mut qmp));
        qmp.execute("cont", json!({}))?;
        let pause = stopped.elapsed();
        sent?;
        set(&mut qmp, false)?;
        File::open(self.file())?.sync_all()?;
        Ok(Saved { pause, total: begin.elapsed(), kept: None })
    }

    fn restore(&self, options: &GuestOptions, folder: &Path) -> Result<bool, Failure> {
        let mut qmp = stopped_vm(options, folder, &["-incoming", "defer"])?;
        set(&mut qmp, true)?;
        qmp.execute("migrate-incoming", json!({"uri": uri(self.file())?}))?;
        wait_completed(&mut qmp)?;
        qmp.execute("cont", json!({}))?;
        Ok(true)
    }
}

fn uri(path: &Path) -> Result<String, Failure> {
    Ok(format!("file:{}", std::path::absolute(path)?.display()))
}

/// Sets what it needs, the same on both sides, or takes it back. Each processor writes.
fn set(qmp: &mut Qmp, on: bool) -> Result<(), Failure> {
    let channels = available_parallelism()?.get();
    let capability = |name| json!({"capability": name, "state": on});
    let capabilities = ["mapped-ram", "multifd"].map(capability);
    qmp.execute("migrate-set-capabilities", json!({"capabilities": capabilities}))?;
    let parameters = json!({"direct-io": on, "multifd-channels": channels, "max-bandwidth": 0});
    qmp.execute("migrate-set-parameters", parameters)?;
    Ok(())
}
