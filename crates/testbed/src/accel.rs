//! Whether KVM really runs a guest here. `/dev/kvm` can exist and yet not run a stock guest, so
//! only a boot tells.

use crate::guest::Guest;
use crate::options::GuestOptions;
use crate::paths;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator, one thread for each vCPU.
    Tcg,
}

impl Accel {
    /// The word after `-accel`.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }
}

/// A guest under KVM is ready in about one second.
const PROBE_LIMIT: Duration = Duration::from_secs(6);

/// KVM if a guest boots under it within a few seconds, else TCG; found out once for each boot of the
/// machine. `ELISION_ACCEL` (`kvm` or `tcg`) decides instead.
pub fn choose(kernel: &str) -> Accel {
    static CHOSEN: OnceLock<Accel> = OnceLock::new();
    *CHOSEN.get_or_init(|| match std::env::var("ELISION_ACCEL").as_deref() {
        Ok("kvm") => Accel::Kvm,
        Ok("tcg") => Accel::Tcg,
        _ => remembered(kernel),
    })
}

/// The result of the last probe since the machine was booted, or of a new one.
fn remembered(kernel: &str) -> Accel {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let note = paths::built().join("kvm-probe");
    let text = |accel: Accel| format!("{} {}\n", accel.option(), boot.trim());
    let old = std::fs::read_to_string(&note).unwrap_or_default();
    if let Some(accel) = [Accel::Kvm, Accel::Tcg].into_iter().find(|a| old == text(*a)) {
        return accel;
    }
    let accel = probe(kernel);
    // Without the note the next process probes again.
    let _ = std::fs::write(&note, text(accel));
    accel
}

fn probe(kernel: &str) -> Accel {
    let device = Path::new("/dev/kvm");
    let usable = std::fs::OpenOptions::new().read(true).write(true).open(device).is_ok();
    let options = GuestOptions::new(kernel).memory_mib(256).vcpus(1).accel(Accel::Kvm);
    if usable && Guest::boot_once(&options, PROBE_LIMIT).is_ok() { Accel::Kvm } else { Accel::Tcg }
}
