//! QEMU's stopped migration to a file descriptor.

use super::{Saved, Way};
use crate::Failure;
use crate::support::machine::{command, socket};
use crate::support::plain;
use elision_testbed::GuestOptions;
use std::path::Path;

/// `stop`, `migrate` to a descriptor, `cont`.
pub(crate) struct Stream;

impl Way for Stream {
    fn name(&self) -> &'static str {
        "QEMU, stopped `migrate` to a descriptor"
    }

    fn file(&self) -> &'static Path {
        Path::new("vm.migration")
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let times = plain::save(socket, self.file())?;
        Ok(Saved { pause: times.pause, total: times.total, kept: None })
    }

    fn restore(&self, options: &GuestOptions, folder: &Path) -> Result<bool, Failure> {
        plain::restore(&command(options, folder)?, Path::new(&socket(folder)), self.file())?;
        Ok(true)
    }
}
