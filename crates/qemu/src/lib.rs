//! QEMU from outside: QMP, the RAM file, the migration stream, capture and restore.

mod capture;
mod error;
mod flat_view;
mod layout;
mod process;
mod qmp;
mod stream;
mod vm;

pub use error::{QemuError, Result};
pub use layout::{HiddenRange, VmRam};
pub use process::QemuProcess;
pub use qmp::{Event, Qmp, Version};
pub use stream::{Blanked, Cleared, DeviceState, Vcpu};
pub use vm::{RunState, Vm};
