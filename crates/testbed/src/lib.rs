//! Real guests for tests, demo and benchmarks: stock kernels in stock QEMU, and processes played
//! inside them that hold known secrets.
//!
//! ```no_run
//! use elision_testbed::{GuestOptions, Spawn, secret};
//! let mut guest = GuestOptions::new("6.1").boot()?;
//! let victim = guest.control().spawn(&Spawn::new("victim", "heap,stack", "sleep"))?;
//! let found = elision_testbed::search::find(&guest.ram()?, &[&secret("victim")])?;
//! assert!(victim.pid > 1 && !found[0].is_empty());
//! # Ok::<(), elision_testbed::Error>(())
//! ```
//! - [`kernels`], [`modules`]: kernels fetched by package name through apt, kept in a cache.
//! - [`hypervisors`]: versions of QEMU.
//! - [`debian`]: disks with a Debian system, for guests with systemd and real programs.
//! - [`GuestOptions`], [`Guest`]: a QEMU command as a user would write it, and the guest that runs.
//! - [`Control`]: requests to the server in the guest.
//! - [`truth`]: what the guest's own kernel says.
//! - [`console`], [`counters`], [`search`]: what a test looks at afterwards.

pub mod accel;
mod apt;
mod apt_sources;
pub mod console;
mod control;
pub mod counters;
mod cpio;
pub mod debian;
pub mod dump;
mod endpoints;
mod error;
mod guest;
pub mod hypervisors;
mod initramfs;
pub mod kernels;
pub mod modules;
mod options;
pub mod pages;
mod paths;
pub mod programs;
mod qmp;
pub mod search;
mod spawner;
pub mod truth;

pub use accel::Accel;
pub use control::{Control, Spawn};
pub use elision_actor::protocol::{Counter, Health, Planted, Process, ShellResult, Spawned, Status};
pub use endpoints::Endpoints;
pub use error::Error;
pub use guest::Guest;
pub use kernels::Kernel;
pub use options::{GuestOptions, RamMode};

/// Length of a secret in bytes.
pub const SECRET_LEN: usize = elision_actor::secret::SECRET_LEN;

/// The secret that the process played under `label` holds.
#[must_use]
pub fn secret(label: &str) -> [u8; SECRET_LEN] {
    elision_actor::secret::secret(elision_actor::secret::DEFAULT_SEED, label)
}
