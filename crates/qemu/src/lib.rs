//! QEMU from outside: QMP, the VM's RAM, the migration stream, capture and restore.
//!
//! - [`Vm::attach`]: a running VM, by its QMP socket; [`Vm::open_ram`]: its memory.
//! - [`Vm::registers`]: some registers of its vCPUs, for a first look.
//! - [`Vm::device_state`]: the state of a stopped VM's devices and vCPUs, without its RAM, as
//!   [`DeviceState`]: to look at, to clear of private data, and to write in a form that stock QEMU loads.
//! - [`Vm::stream`], [`Vm::precopy`] and [`Vm::snapshot`]: the same with the RAM handed page by page to a [`PageSink`].
//! - [`Guardian`]: lets the VM run on when the saver dies.
//! - [`prepare`]: makes a QEMU command fit for saving; [`for_restore`] and [`restore()`]: start an image.
//!
//! Nothing here knows what runs in the guest or what is private.

mod access;
mod capture;
mod command;
mod error;
mod flat_view;
mod guardian;
mod layout;
mod maps;
mod migration;
mod overlay;
mod precopy;
mod process;
mod qmp;
mod registers;
mod restore;
mod restored_ram;
mod settings;
mod stream;
mod sys;
mod vm;

pub use command::{
    BlockFile, Overlay, Prepared, RestoreOptions, for_clone, for_restore, fresh_guid, prepare,
};
pub use error::{QemuError, Result};
pub use guardian::{Duty, Guardian, guard_main};
pub use layout::{HiddenRange, VmRam};
pub use process::QemuProcess;
pub use qmp::{Event, Qmp, Version};
pub use registers::{Registers, check_moment};
pub use restore::{RestoreRequest, Restored, restore};
pub use restored_ram::RestoredRam;
pub use settings::{Form, MigrationSettings};
pub use stream::{Blanked, Cleared, DeviceState, PageSink, SinkClosed, Vcpu};
pub use vm::{RunState, Vm};
