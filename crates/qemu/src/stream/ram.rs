//! The RAM section: pages of the main memory go to a sink as they pass, pages of other blocks are kept.
//!
//! ```text
//! record = u64 (offset in its block | flags)
//!   0x04 MEM_SIZE  offset = total; for each block: name, u64 bytes [, u64 address with x-ignore-shared]
//!   0x02 ZERO      [name unless 0x20 CONTINUE], u8 that fills the page
//!   0x08 PAGE      [name unless 0x20 CONTINUE], 4096 bytes
//!   0x10 EOS       ends the START, PART or END that it stands in
//! ```
//! Other flags belong to capabilities that are switched off for a capture; they are errors. A page may
//! come more than once, the last one counts. Limits: 1024 blocks, the kept bytes of the whole stream.

use super::reader::BigEndian;
use super::sink::PageSink;
use super::{KEPT_LIMIT, part};
use crate::error::{QemuError, Result};
use elision_memory::{FileOffset, RamBlock};
use std::collections::BTreeMap;
use std::io::Read;

const PAGE: usize = 4096;
const FLAGS: u64 = PAGE as u64 - 1;
const ZERO: u64 = 0x02;
const MEM_SIZE: u64 = 0x04;
const FULL_PAGE: u64 = 0x08;
const EOS: u64 = 0x10;
const CONTINUE: u64 = 0x20;
const MAX_BLOCKS: usize = 1024;
/// What a filled page costs here, counted against the kept bytes.
const FILL_COST: u64 = 64;

/// A RAM block by name and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) name: String,
    pub(crate) used: u64,
}

/// A kept page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// All bytes alike.
    Fill(u8),
    /// Its bytes.
    Bytes(Box<[u8; PAGE]>),
}

/// The RAM section without the main memory's pages.
#[derive(Clone, Debug)]
pub(crate) struct RamSection {
    id: u32,
    instance: u32,
    version: u32,
    pub(crate) blocks: Vec<Block>,
    /// For each block its place in the RAM file, if it is one of the main memory.
    places: Vec<Option<FileOffset>>,
    /// Kept pages by block and offset. Never one of the main memory.
    pub(crate) pages: BTreeMap<(usize, u64), Page>,
    /// Bytes kept, for the limit.
    pub(crate) kept: u64,
    /// Page records of the main memory, which are not kept.
    pub(crate) passed: u64,
    last_block: Option<usize>,
}

impl RamSection {
    /// Reads a START section after its type.
    pub(crate) fn start<R: Read>(
        input: &mut BigEndian<R>,
        main: &[RamBlock],
        addresses: bool,
        sink: &mut dyn PageSink,
    ) -> Result<Self> {
        let id = input.u32()?;
        let name = input.name()?;
        if name != "ram" {
            return Err(input.error(format!("unexpected section {name:?} before the devices")));
        }
        let (instance, version) = (input.u32()?, input.u32()?);
        let blocks = read_blocks(input, addresses)?;
        let mut places = vec![None; blocks.len()];
        for RamBlock { name, offset, len } in main {
            let place = blocks.iter().zip(&mut places).find(|(block, _)| block.name == *name);
            let (block, place) = place.ok_or_else(|| input.error(format!("it has no RAM block {name:?}")))?;
            if block.used != *len {
                let why = format!("the RAM block {name:?} has {:#x} bytes instead of {len:#x}", block.used);
                return Err(input.error(why));
            }
            *place = Some(*offset);
        }
        let mut section = Self {
            id,
            instance,
            version,
            blocks,
            places,
            pages: BTreeMap::new(),
            kept: 0,
            passed: 0,
            last_block: None,
        };
        section.records(input, sink)?;
        Ok(section)
    }

    /// Reads a PART or END section after its type.
    pub(crate) fn more<R: Read>(&mut self, input: &mut BigEndian<R>, sink: &mut dyn PageSink) -> Result<()> {
        let id = input.u32()?;
        if id != self.id {
            return Err(input.error(format!("section {id} continues without a beginning")));
        }
        self.records(input, sink)
    }

    fn records<R: Read>(&mut self, input: &mut BigEndian<R>, sink: &mut dyn PageSink) -> Result<()> {
        let mut page = [0; PAGE];
        loop {
            let record = input.u64()?;
            let (offset, flags) = (record & !FLAGS, record & FLAGS);
            if flags == EOS {
                break;
            }
            let kind = flags & !CONTINUE;
            if kind != ZERO && kind != FULL_PAGE {
                return Err(input.error(format!("unsupported RAM record {flags:#x}")));
            }
            let block = self.block(input, flags & CONTINUE != 0)?;
            if self.blocks.get(block).is_none_or(|b| offset >= b.used) {
                return Err(input.error(format!("a page at {offset:#x} is outside of its block")));
            }
            let fill = if kind == ZERO {
                Some(input.u8()?)
            } else {
                input.fill(&mut page)?;
                None
            };
            if let Some(start) = self.place(block) {
                self.passed += 1;
                let at = FileOffset(start.0.saturating_add(offset));
                let taken = match fill {
                    Some(byte) => sink.fill(at, byte),
                    None => sink.page(at, &page),
                };
                taken.map_err(|_| QemuError::SinkClosed)?;
            } else {
                self.keep((block, offset), fill.map_or_else(|| Page::Bytes(Box::new(page)), Page::Fill))?;
            }
        }
        footer(input, self.id)
    }

    fn keep(&mut self, place: (usize, u64), page: Page) -> Result<()> {
        let content = if matches!(page, Page::Fill(_)) { 0 } else { PAGE as u64 };
        self.kept += content + FILL_COST;
        if self.kept > KEPT_LIMIT {
            return Err(QemuError::TooLarge { limit: KEPT_LIMIT });
        }
        self.pages.insert(place, page);
        Ok(())
    }

    fn block<R: Read>(&mut self, input: &mut BigEndian<R>, same: bool) -> Result<usize> {
        if !same {
            let name = input.name()?;
            self.last_block = self.blocks.iter().position(|b| b.name == name);
            if self.last_block.is_none() {
                return Err(input.error(format!("a page of the unknown RAM block {name:?}")));
            }
        }
        self.last_block.ok_or_else(|| input.error("a page without a RAM block"))
    }

    /// Where a block of the main memory stands in the RAM file.
    fn place(&self, block: usize) -> Option<FileOffset> {
        self.places.get(block).copied().flatten()
    }

    /// A block of which not one page came: it is shared memory that the capability left out.
    pub(crate) fn shared_block(&self) -> Option<&Block> {
        let absent = |i: usize| self.pages.range((i, 0)..=(i, u64::MAX)).next().is_none();
        self.blocks
            .iter()
            .enumerate()
            .find(|&(i, b)| self.place(i).is_none() && b.used > 0 && absent(i))
            .map(|(_, b)| b)
    }

    /// The blocks of the main memory, in the order of the RAM file.
    pub(crate) fn main_blocks(&self) -> Vec<&Block> {
        let mut main: Vec<_> =
            self.places.iter().zip(&self.blocks).filter(|(place, _)| place.is_some()).collect();
        main.sort_by_key(|(place, _)| **place);
        main.into_iter().map(|(_, block)| block).collect()
    }

    /// Whether a page of the main memory is among the kept ones.
    pub(crate) fn holds_main_memory(&self) -> bool {
        self.pages.keys().any(|&(block, _)| self.place(block).is_some())
    }

    /// The section's plain form: one START with the blocks, one PART with the pages, one END.
    pub(crate) fn write_plain(&self, out: &mut Vec<u8>) {
        out.push(part::START);
        out.extend(self.id.to_be_bytes());
        write_name(out, "ram");
        out.extend(self.instance.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        let total: u64 = self.blocks.iter().map(|b| b.used).sum();
        out.extend((total | MEM_SIZE).to_be_bytes());
        for block in &self.blocks {
            write_name(out, &block.name);
            out.extend(block.used.to_be_bytes());
        }
        self.end_part(out);
        out.push(part::PART);
        out.extend(self.id.to_be_bytes());
        let mut last = None;
        for (&(block, offset), page) in &self.pages {
            let name = self.blocks.get(block).map(|b| b.name.as_str()).unwrap_or_default();
            let same = if last == Some(block) { CONTINUE } else { 0 };
            let kind = if matches!(page, Page::Fill(_)) { ZERO } else { FULL_PAGE };
            out.extend((offset | kind | same).to_be_bytes());
            if same == 0 {
                write_name(out, name);
            }
            match page {
                Page::Fill(byte) => out.push(*byte),
                Page::Bytes(bytes) => out.extend(bytes.iter()),
            }
            last = Some(block);
        }
        self.end_part(out);
        out.push(part::END);
        out.extend(self.id.to_be_bytes());
        self.end_part(out);
    }

    fn end_part(&self, out: &mut Vec<u8>) {
        out.extend(EOS.to_be_bytes());
        out.push(part::FOOTER);
        out.extend(self.id.to_be_bytes());
    }
}

fn read_blocks<R: Read>(input: &mut BigEndian<R>, addresses: bool) -> Result<Vec<Block>> {
    let record = input.u64()?;
    if record & FLAGS != MEM_SIZE {
        return Err(input.error("the RAM section does not begin with its blocks"));
    }
    let mut left = record & !FLAGS;
    let mut blocks: Vec<Block> = vec![];
    while left > 0 {
        let name = input.name()?;
        let used = input.u64()?;
        if addresses {
            input.u64()?;
        }
        if used % PAGE as u64 != 0 || blocks.len() == MAX_BLOCKS || blocks.iter().any(|b| b.name == name) {
            return Err(input.error(format!("the RAM block {name:?} is impossible")));
        }
        left = left.checked_sub(used).ok_or_else(|| input.error("the RAM blocks exceed their total"))?;
        blocks.push(Block { name, used });
    }
    Ok(blocks)
}

/// Checks the mark at a section's end.
pub(crate) fn footer<R: Read>(input: &mut BigEndian<R>, section: u32) -> Result<()> {
    if input.u8()? != part::FOOTER || input.u32()? != section {
        return Err(input.error(format!("section {section} does not end where it should")));
    }
    Ok(())
}

/// A name of a stream, at most 255 bytes long as it came from one.
pub(crate) fn write_name(out: &mut Vec<u8>, name: &str) {
    let len = u8::try_from(name.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend(name.bytes().take(usize::from(len)));
}

/// A length as the stream has it. Everything that is written was read with a 32-bit length.
pub(crate) fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}
