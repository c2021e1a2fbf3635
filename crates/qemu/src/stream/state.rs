//! A VM's state without its RAM: owned bytes and an index of their fields.

use super::devices::{Devices, Field, Section};
use super::header::Header;
use super::ram::RamSection;
use super::reader::BigEndian;
use super::sink::{Complete, PageSink, Unwanted};
use super::{KEPT_LIMIT, part};
use crate::error::{QemuError, Result};
use elision_memory::RamBlock;
use std::io::{BufReader, Read, Write};

/// Commands with the lengths of their data: that there is a return path, a question on it that needs no answer, and, of
/// QEMU 9 and later, the switch-over.
const OPEN_RETURN_PATH: (u16, u16) = (1, 0);
const PING: (u16, u16) = (2, 4);
const SWITCHOVER_START: (u16, u16) = (11, 0);
const BUFFER: usize = 1 << 20;

/// The state of every device and vCPU, and the memory of devices, but no page of the VM's RAM.
#[derive(Clone, Debug)]
pub struct DeviceState {
    pub(crate) header: Header,
    pub(crate) ram: RamSection,
    switchover: bool,
    /// Where the devices began in the stream.
    base: u64,
    pub(crate) devices: Devices,
}

impl DeviceState {
    /// Reads a migration stream to its end. `main` are the RAM blocks whose pages are dropped.
    pub fn read(input: impl Read, main: &[RamBlock]) -> Result<Self> {
        Self::read_into(input, main, &mut Unwanted)
    }

    /// The same with the pages of `main` handed to `sink`, by their offsets in the RAM file: each at least once.
    pub fn read_whole(input: impl Read, main: &[RamBlock], sink: &mut dyn PageSink) -> Result<Self> {
        let mut complete = Complete::new(sink, main);
        let state = Self::read_into(input, main, &mut complete)?;
        complete.check(state.base).map(|()| state)
    }

    fn read_into(input: impl Read, main: &[RamBlock], sink: &mut dyn PageSink) -> Result<Self> {
        let mut input = BigEndian::new(BufReader::with_capacity(BUFFER, input));
        let (header, mut kind) = Header::read(&mut input)?;
        if let Some(other) = header.capabilities.iter().find(|c| *c != "x-ignore-shared") {
            return Err(input.error(format!("the capability {other:?} is not supported")));
        }
        let mut ram: Option<RamSection> = None;
        let mut switchover = false;
        loop {
            match kind {
                part::START if ram.is_none() => {
                    let addresses = header.ignores_shared();
                    ram = Some(RamSection::start(&mut input, main, addresses, sink)?);
                }
                part::PART | part::END => {
                    ram.as_mut()
                        .ok_or_else(|| input.error("a section without a beginning"))?
                        .more(&mut input, sink)?;
                }
                part::COMMAND => match (input.u16()?, input.u16()?) {
                    SWITCHOVER_START if !switchover => switchover = true,
                    OPEN_RETURN_PATH => {}
                    PING => input.u32().map(drop)?,
                    (command, _) => return Err(input.error(format!("unexpected command {command}"))),
                },
                part::FULL => break,
                _ => return Err(input.error(format!("unexpected part {kind:#x} before the devices"))),
            }
            kind = input.u8()?;
        }
        let ram = ram.ok_or_else(|| input.error("it has no RAM section"))?;
        let base = input.at() - 1;
        let mut bytes = vec![part::FULL];
        bytes.extend(input.rest(KEPT_LIMIT.saturating_sub(ram.kept))?);
        let devices = Devices::parse(bytes, base)?;
        let state = Self { header, ram, switchover, devices, base };
        if let Some(block) = state.ram.shared_block() {
            return Err(QemuError::SharedBlock { block: block.name.clone() });
        }
        if state.ram.holds_main_memory() {
            return Err(QemuError::Stream { at: base, why: "pages of the main memory were kept".into() });
        }
        Ok(state)
    }

    /// The machine type, such as `pc-q35-7.2`.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.header.machine
    }

    /// Name and size of each RAM block that a restore must provide, in the order of the RAM file.
    pub fn main_blocks(&self) -> impl Iterator<Item = (&str, u64)> {
        self.ram.main_blocks().into_iter().map(|b| (b.name.as_str(), b.used))
    }

    /// How many page records of the main memory came with the stream. None is kept.
    #[must_use]
    pub fn passed_pages(&self) -> u64 {
        self.ram.passed
    }

    /// Names of the device sections, with their instances.
    pub fn sections(&self) -> impl Iterator<Item = (&str, u32)> {
        self.devices.sections.iter().map(|s| (s.name.as_str(), s.instance))
    }

    /// A field's bytes by section and path, such as `("apic", 0, "irr[3]")`.
    #[must_use]
    pub fn field(&self, section: &str, instance: u32, path: &str) -> Option<&[u8]> {
        let section = self.section(section, instance)?;
        let field = section.fields.iter().find(|f| f.path == path)?;
        self.devices.bytes.get(field.range.clone())
    }

    /// Writes the stream in its plain form, which stock QEMU loads without any capability.
    pub fn write_to(&self, mut out: impl Write) -> Result<()> {
        let mut head = vec![];
        self.header.write_plain(&mut head);
        self.ram.write_plain(&mut head);
        if self.switchover {
            head.push(part::COMMAND);
            head.extend(SWITCHOVER_START.0.to_be_bytes());
            head.extend(SWITCHOVER_START.1.to_be_bytes());
        }
        out.write_all(&head)
            .and_then(|()| out.write_all(&self.devices.bytes))
            .map_err(QemuError::io("write the device state"))
    }

    pub(crate) fn section(&self, name: &str, instance: u32) -> Option<&Section> {
        self.devices.sections.iter().find(|s| s.name == name && s.instance == instance)
    }

    /// A field's value as an unsigned number of its width.
    pub(crate) fn number(&self, section: &Section, path: &str) -> Result<u64> {
        let field = find(section, path)?;
        self.value(field).ok_or_else(|| missing(section, path))
    }

    pub(crate) fn value(&self, field: &Field) -> Option<u64> {
        let bytes = self.devices.bytes.get(field.range.clone()).filter(|b| b.len() <= 8)?;
        Some(bytes.iter().fold(0, |n, &b| (n << 8) | u64::from(b)))
    }

    /// Overwrites a field with a number, cut to the field's width.
    pub(crate) fn set(&mut self, field: &Field, value: u64) {
        if let Some(bytes) = self.devices.bytes.get_mut(field.range.clone()) {
            let be = value.to_be_bytes();
            let skip = be.len().saturating_sub(bytes.len());
            let pad = bytes.len().saturating_sub(be.len());
            bytes.fill(0);
            if let (Some(to), Some(from)) = (bytes.get_mut(pad..), be.get(skip..)) {
                to.copy_from_slice(from);
            }
        }
    }

    /// Overwrites a field with zeros. Returns how many bytes were not zero before.
    pub(crate) fn zero(&mut self, field: &Field) -> usize {
        let Some(bytes) = self.devices.bytes.get_mut(field.range.clone()) else { return 0 };
        let changed = bytes.iter().filter(|&&b| b != 0).count();
        bytes.fill(0);
        changed
    }
}

/// The first field with this path.
pub(crate) fn find<'a>(section: &'a Section, path: &str) -> Result<&'a Field> {
    section.fields.iter().find(|f| f.path == path).ok_or_else(|| missing(section, path))
}

pub(crate) fn missing(section: &Section, path: &str) -> QemuError {
    QemuError::Missing { what: format!("field {path} in section {} {}", section.name, section.instance) }
}
