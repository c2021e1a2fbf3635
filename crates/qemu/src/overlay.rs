//! Makes overlays over disks, with `qemu-img`.

use crate::command::Overlay;
use crate::error::{QemuError, Result};
use std::io::ErrorKind;
use std::process::{Command, Stdio};

impl Overlay {
    /// Makes it: an empty qcow2 file that reads what its base has.
    pub fn create(&self) -> Result<()> {
        let Self { path, base, format } = self;
        let doing = || format!("make the overlay {} over {} (qemu-img)", path.display(), base.display());
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(base).arg(path);
        let output = command.stdin(Stdio::null()).output().map_err(|e| {
            let hint =
                if e.kind() == ErrorKind::NotFound { ": is QEMU's package of tools installed?" } else { "" };
            QemuError::io(doing() + hint)(e)
        })?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(QemuError::io(doing())(std::io::Error::other(why)))
    }
}
