//! QEMU's dump of guest memory as an ELF file: memory alone, for a debugger.

use super::{Saved, Way};
use crate::Failure;
use elision_qemu::Qmp;
use elision_testbed::GuestOptions;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);

/// `dump-guest-memory`. Nothing can be restored from it.
pub(crate) struct Dump;

impl Way for Dump {
    fn name(&self) -> &'static str {
        "QEMU, `dump-guest-memory` (no restore)"
    }

    fn file(&self) -> &'static Path {
        Path::new("vm.dump")
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let begin = Instant::now();
        let file = File::create_new(self.file())?;
        let mut qmp = Qmp::connect(socket)?;
        qmp.execute_with_descriptor("getfd", json!({"fdname": "dump"}), file.as_fd())?;
        let asked = Instant::now();
        // QEMU stops the VM for it and continues it before it answers.
        let arguments = json!({"paging": false, "protocol": "fd:dump"});
        qmp.execute_within("dump-guest-memory", arguments, None, LIMIT)?;
        let pause = asked.elapsed();
        file.sync_all()?;
        Ok(Saved { pause, total: begin.elapsed(), kept: None })
    }

    fn restore(&self, _options: &GuestOptions, _folder: &Path) -> Result<bool, Failure> {
        Ok(false)
    }
}
