//! The device sections, split into named fields by the stream's description.
//!
//! A field's name is its path: `env.segs[2]/base`, and in a subsection `cpu/avx512/env.opmask_regs[0]`.

use super::description::{DESCRIPTION_LIMIT, Description, FieldForm, Node};
use super::{part, ram, reader::BigEndian};
use crate::error::{QemuError, Result};
use std::collections::HashMap;
use std::ops::Range;

const MAX_SECTIONS: usize = 4096;
const MAX_FIELDS: usize = 2_000_000;

/// A field of a device.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) path: String,
    pub(crate) range: Range<usize>,
}

impl Field {
    /// Whether a part of the path has this name, without regard to array indices.
    pub(crate) fn is_part(&self, name: &str) -> bool {
        self.path.split('/').any(|p| p.split('[').next() == Some(name))
    }

    /// The path's last part.
    pub(crate) fn leaf(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// One device's section.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) instance: u32,
    pub(crate) fields: Vec<Field>,
}

/// Everything from the first device section to the end of the stream.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sections: Vec<Section>,
}

impl Devices {
    /// Splits the bytes that begin with a device section's type. `base` is their place in the stream.
    pub(crate) fn parse(bytes: Vec<u8>, base: u64) -> Result<Self> {
        let (end, description) = find_description(&bytes, base)?;
        let forms: HashMap<(&str, u32), &Node<'_>> =
            description.devices.iter().map(|d| ((&*d.name, d.instance_id), &d.node)).collect();
        let data = bytes.get(..end).unwrap_or_default();
        let mut walk = Walk { data, input: BigEndian::new(data), fields: vec![], count: 0 };
        let sections = walk.sections(&forms).map_err(|e| moved(e, base))?;
        if walk.input.at() != data.len() as u64 {
            return Err(QemuError::Stream { at: base + walk.input.at(), why: "it ends too early".into() });
        }
        Ok(Self { bytes, sections })
    }
}

/// Finds the description, which ends exactly where the stream ends. Returns where it begins.
fn find_description(bytes: &[u8], base: u64) -> Result<(usize, Description<'_>)> {
    const HEAD: usize = 6; // EOF, the part's type, u32 length
    let earliest = bytes.len().saturating_sub(DESCRIPTION_LIMIT + HEAD);
    let mut at = bytes.len().saturating_sub(HEAD);
    while at > earliest {
        at -= 1;
        let head = bytes.get(at..at + HEAD).unwrap_or_default();
        if let [part::EOF, part::DESCRIPTION, a, b, c, d] = *head {
            let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            let json = bytes.get(at + HEAD..).unwrap_or_default();
            if json.len() == len && json.first() == Some(&b'{') {
                let description = Description::parse(json, base + at as u64)?;
                return Ok((at + 1, description));
            }
        }
    }
    Err(QemuError::Truncated { at: base + bytes.len() as u64 })
}

struct Walk<'a> {
    data: &'a [u8],
    input: BigEndian<&'a [u8]>,
    fields: Vec<Field>,
    count: usize,
}

impl Walk<'_> {
    fn sections(&mut self, forms: &HashMap<(&str, u32), &Node<'_>>) -> Result<Vec<Section>> {
        let mut sections = vec![];
        loop {
            match self.input.u8()? {
                part::EOF => return Ok(sections),
                part::FULL => {
                    if sections.len() == MAX_SECTIONS {
                        return Err(self.input.error("it has too many sections"));
                    }
                    sections.push(self.section(forms)?);
                }
                part::COMMAND => {
                    self.input.u16()?;
                    let len = self.input.u16()?;
                    self.input.bytes(usize::from(len))?;
                }
                kind => return Err(self.input.error(format!("unexpected part {kind:#x} among the devices"))),
            }
        }
    }

    fn section(&mut self, forms: &HashMap<(&str, u32), &Node<'_>>) -> Result<Section> {
        let id = self.input.u32()?;
        let name = self.input.name()?;
        let (instance, _version) = (self.input.u32()?, self.input.u32()?);
        let form = forms
            .get(&(name.as_str(), instance))
            .ok_or_else(|| self.input.error(format!("the device {name} is not described")))?;
        self.node(form, "")?;
        ram::footer(&mut self.input, id)?;
        Ok(Section { name, instance, fields: std::mem::take(&mut self.fields) })
    }

    fn node(&mut self, node: &Node<'_>, path: &str) -> Result<()> {
        for form in &node.fields {
            for i in 0..form.array_len.unwrap_or(1) {
                self.count += 1;
                if self.count > MAX_FIELDS {
                    return Err(self.input.error("it has too many fields"));
                }
                self.field(form, i, path)?;
            }
        }
        for subsection in &node.subsections {
            if self.input.u8()? != part::SUBSECTION || self.input.name()? != subsection.vmsd_name {
                return Err(self.input.error(format!("subsection {} is missing", subsection.vmsd_name)));
            }
            self.input.u32()?;
            self.node(subsection, &join(path, &subsection.vmsd_name))?;
        }
        Ok(())
    }

    fn field(&mut self, form: &FieldForm<'_>, element: u64, path: &str) -> Result<()> {
        let mut path = join(path, &form.name);
        if let Some(index) = form.array_len.map(|_| element).or(form.index) {
            path.push_str(&format!("[{index}]"));
        }
        let start = self.position();
        if let Some(inner) = &form.inner {
            self.node(inner, &path)?;
            // QEMU describes an array by its first element, so only single structures can be checked.
            if form.array_len.is_none() && (self.position() - start) as u64 != form.size {
                return Err(self.input.error(format!("{path} has another size than described")));
            }
            return Ok(());
        }
        let len = usize::try_from(form.size).unwrap_or(usize::MAX);
        let end = start.checked_add(len).filter(|&end| end <= self.data.len());
        let end = end.ok_or(QemuError::Truncated { at: self.input.at() })?;
        self.skip(form.size)?;
        self.fields.push(Field { path, range: start..end });
        Ok(())
    }

    fn position(&self) -> usize {
        usize::try_from(self.input.at()).unwrap_or(usize::MAX)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let mut sink = [0; 512];
        let mut left = len;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(sink.len());
            self.input.fill(sink.get_mut(..step).unwrap_or_default())?;
            left -= step as u64;
        }
        Ok(())
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}/{name}") }
}

fn moved(error: QemuError, base: u64) -> QemuError {
    match error {
        QemuError::Truncated { at } => QemuError::Truncated { at: at + base },
        QemuError::Stream { at, why } => QemuError::Stream { at: at + base, why },
        other => other,
    }
}
