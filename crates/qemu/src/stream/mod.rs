//! QEMU's migration stream, read into the state of the devices without the VM's RAM.
//!
//! ```text
//! u32 "QEVM", u32 3
//! 0x07 configuration   u32 len, machine type; then subsections 0x05, name, u32 version, data
//!                        configuration/capabilities      u32 n, n names
//!                        configuration/target-page-bits  u32
//!                        configuration/uuid              16 bytes
//! 0x01 START           u32 section, name, u32 instance, u32 version, data, footer      here only "ram"
//! 0x02 PART, 0x03 END  u32 section, data, footer
//! 0x04 FULL            u32 section, name, u32 instance, u32 version, data, footer      a device
//! 0x08 COMMAND         u16 command, u16 len, data
//! 0x00 EOF
//! 0x06 description     u32 len, JSON; the stream ends here
//!
//! name = u8 len, text           footer = 0x7e, u32 section           all numbers big-endian
//! ```
//! A device's data has no length and no field names: the description at the end has both, so everything
//! from the first FULL section on is kept and then walked by it. RAM comes before that and is handled
//! record by record ([`ram`]): what belongs to the VM's main memory is dropped as it is read, or handed to
//! a [`PageSink`].
//!
//! Written out again ([`DeviceState::write_to`]) the stream is in its plain form: without the capability
//! `x-ignore-shared` and what that adds, so that stock QEMU loads it over a private mapping of the RAM file.
//!
//! Limits: 1 GiB kept, 16 MiB of description, 4096 sections, two million fields. Whatever breaks a rule of
//! the format is an error, never a guess.

mod description;
mod devices;
mod header;
mod interrupt;
mod keyboard;
mod network;
mod ram;
mod reader;
mod registers;
mod serial;
mod sink;
mod state;
#[cfg(test)]
mod test_stream;
#[cfg(test)]
mod tests;
mod vcpu;
mod video;

pub use registers::Cleared;
pub use sink::{PageSink, SinkClosed};
pub use state::DeviceState;
pub(crate) use vcpu::PROTECTED;
pub use vcpu::Vcpu;
pub use video::Blanked;

/// Types of the stream's parts.
mod part {
    pub(super) const EOF: u8 = 0x00;
    pub(super) const START: u8 = 0x01;
    pub(super) const PART: u8 = 0x02;
    pub(super) const END: u8 = 0x03;
    pub(super) const FULL: u8 = 0x04;
    pub(super) const SUBSECTION: u8 = 0x05;
    pub(super) const DESCRIPTION: u8 = 0x06;
    pub(super) const CONFIGURATION: u8 = 0x07;
    pub(super) const COMMAND: u8 = 0x08;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// Most bytes kept from one stream.
const KEPT_LIMIT: u64 = 1 << 30;
