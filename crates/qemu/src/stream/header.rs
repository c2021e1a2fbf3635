//! The head of the stream: magic, version and configuration.

use super::part;
use super::reader::BigEndian;
use crate::error::Result;
use std::io::Read;

const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
const PAGE_BITS: u32 = 12;
const MAX_MACHINE_NAME: u32 = 256;
const MAX_CAPABILITIES: u32 = 64;
const IGNORE_SHARED: &str = "x-ignore-shared";

/// What the head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) machine: String,
    /// Capabilities that change the stream's format.
    pub(crate) capabilities: Vec<String>,
    page_bits: Option<u32>,
    uuid: Option<[u8; 16]>,
}

impl Header {
    /// Reads the head. Returns it with the type of the part that follows, which is read too.
    pub(crate) fn read<R: Read>(input: &mut BigEndian<R>) -> Result<(Self, u8)> {
        if input.u32()? != MAGIC {
            return Err(input.error("it does not begin like a migration stream"));
        }
        if input.u32()? != VERSION {
            return Err(input.error("it has an unknown version"));
        }
        if input.u8()? != part::CONFIGURATION {
            return Err(input.error("it has no configuration, as of a machine type too old to be supported"));
        }
        let len = input.u32()?;
        if len > MAX_MACHINE_NAME {
            return Err(input.error("the machine type's name is too long"));
        }
        let machine = input.bytes(usize::try_from(len).unwrap_or_default())?;
        let machine = String::from_utf8(machine).map_err(|_| input.error("the machine type is not text"))?;
        let mut header = Self { machine, capabilities: vec![], page_bits: None, uuid: None };
        loop {
            let kind = input.u8()?;
            if kind != part::SUBSECTION {
                return Ok((header, kind));
            }
            header.subsection(input)?;
        }
    }

    fn subsection<R: Read>(&mut self, input: &mut BigEndian<R>) -> Result<()> {
        let name = input.name()?;
        let version = input.u32()?;
        match name.as_str() {
            "configuration/capabilities" => {
                let count = input.u32()?;
                if count > MAX_CAPABILITIES {
                    return Err(input.error("it has too many capabilities"));
                }
                for _ in 0..count {
                    let capability = input.name()?;
                    self.capabilities.push(capability);
                }
            }
            "configuration/target-page-bits" => {
                let bits = input.u32()?;
                if bits != PAGE_BITS {
                    return Err(input.error(format!("pages have 2^{bits} bytes instead of 4096")));
                }
                self.page_bits = Some(bits);
            }
            "configuration/uuid" => {
                let mut uuid = [0; 16];
                input.fill(&mut uuid)?;
                self.uuid = Some(uuid);
            }
            _ => return Err(input.error(format!("unknown configuration {name:?}, version {version}"))),
        }
        Ok(())
    }

    /// Whether shared RAM blocks are left out and block addresses are added.
    pub(crate) fn ignores_shared(&self) -> bool {
        self.capabilities.iter().any(|c| c == IGNORE_SHARED)
    }

    /// The head of the plain form.
    pub(crate) fn write_plain(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC.to_be_bytes());
        out.extend(VERSION.to_be_bytes());
        out.push(part::CONFIGURATION);
        out.extend(super::ram::length(self.machine.len()));
        out.extend(self.machine.as_bytes());
        let kept: Vec<&String> = self.capabilities.iter().filter(|c| *c != IGNORE_SHARED).collect();
        if !kept.is_empty() {
            subsection(out, "configuration/capabilities");
            out.extend(super::ram::length(kept.len()));
            kept.iter().for_each(|c| super::ram::write_name(out, c));
        }
        if let Some(bits) = self.page_bits {
            subsection(out, "configuration/target-page-bits");
            out.extend(bits.to_be_bytes());
        }
        if let Some(uuid) = self.uuid {
            subsection(out, "configuration/uuid");
            out.extend(uuid);
        }
    }
}

fn subsection(out: &mut Vec<u8>, name: &str) {
    out.push(part::SUBSECTION);
    super::ram::write_name(out, name);
    out.extend(1_u32.to_be_bytes());
}
