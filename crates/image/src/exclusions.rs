//! `exclusions.bin`: every frame that was dropped and every range that was changed, with its reason
//! and its owner. Of changed bytes only the place is kept.
//!
//! ```text
//! 0   8  "ELISIONX"
//! 8   4  version, 1              integers little-endian
//! 12  4  zero
//! 16  8  number of drop rows
//! 24  8  number of edit rows
//! 32  8  length of the body, uncompressed
//! 40  .. body, one zstd frame:
//!        drop row   gap to the end of the row before (frames), number of frames, reason (1 byte), owner
//!        edit row   distance to the row before (bytes), length, kind (1 byte: 0 zeroed, 1 written),
//!                   reason (1 byte), owner
//! ```
//! Numbers in rows are LEB128. An owner is 0 for nobody, else process id + 1. Rows ascend.
//!
//! Limits: the file 256 MiB, 2^26 drop rows, 2^24 edit rows; a body is never longer than its rows can
//! be. The map grows only as rows are decoded, so a small file cannot claim much memory.

use elision_memory::{Gfn, Gpa, PAGE_SIZE};
use elision_plan::{Change, DropReason, DropRun, EditReason, Owner, Plan};
use serde::Serialize;
use std::io::{self, BufRead, BufReader, Read, Write};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"ELISIONX";
const VERSION: u32 = 1;
/// Most bytes of the file that are read.
pub(crate) const FILE_BYTES: u64 = 256 << 20;
const MAX_DROPS: u64 = 1 << 26;
const MAX_EDITS: u64 = 1 << 24;
/// Longest row: four numbers of at most 10 bytes would be longer than any valid row.
const ROW_BYTES: u64 = 40;
/// Guest-physical addresses have at most 52 bits.
const FRAMES: u64 = 1 << 40;
/// Largest zstd window accepted, as a power of two.
const WINDOW: u32 = 23;

/// Why an exclusion map cannot be read.
#[derive(Debug, Error)]
pub enum ExclusionsError {
    /// It begins with something else.
    #[error("This is not an exclusion map")]
    Magic,
    /// It has a version not known here.
    #[error("The exclusion map has version {0}, but this version of Elision reads {VERSION}")]
    Version(u32),
    /// It says that it is larger than any map.
    #[error("The exclusion map says it has {drops} and {edits} rows in {body} bytes, which cannot be")]
    Counts {
        /// Drop rows.
        drops: u64,
        /// Edit rows.
        edits: u64,
        /// Bytes of the body.
        body: u64,
    },
    /// A row is wrong.
    #[error("Row {row} of the exclusion map is wrong: {reason}")]
    Row {
        /// Which, drops first, from 0.
        row: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is more than the rows.
    #[error("The exclusion map goes on after its last row")]
    Trailing,
    /// It ends too early, or its compression is damaged.
    #[error("The exclusion map is truncated or damaged")]
    Read(#[from] io::Error),
}

/// What became of changed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EditKind {
    /// They were zeroed.
    Zero,
    /// Something else was written.
    Write,
}

/// A change to the copy, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EditMeta {
    /// First byte changed.
    pub gpa: Gpa,
    /// Bytes changed.
    pub len: u32,
    /// How.
    pub kind: EditKind,
    /// Why.
    pub reason: EditReason,
    /// The process concerned.
    pub owner: Owner,
}

/// What was left out and what was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Dropped frames, ascending, without overlap.
    pub drops: Vec<DropRun>,
    /// Changes, by address.
    pub edits: Vec<EditMeta>,
}

impl From<&Plan> for Exclusions {
    fn from(plan: &Plan) -> Self {
        let edits = plan.edits.iter().map(|edit| EditMeta {
            gpa: edit.gpa,
            len: u32::try_from(edit.len()).unwrap_or(u32::MAX),
            kind: match edit.change {
                Change::Zero(_) => EditKind::Zero,
                Change::Write(_) => EditKind::Write,
            },
            reason: edit.reason,
            owner: edit.owner,
        });
        let mut edits: Vec<_> = edits.collect();
        // The plan has them in order of application; the file has them by address.
        edits.sort_by_key(|edit| edit.gpa);
        Self { drops: plan.drops.clone(), edits }
    }
}

impl Exclusions {
    /// Writes the map.
    pub fn encode(&self, mut to: impl Write) -> io::Result<()> {
        let body = self.body();
        to.write_all(MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        to.write_all(&[0; 4])?;
        for n in [self.drops.len(), self.edits.len(), body.len()] {
            to.write_all(&(n as u64).to_le_bytes())?;
        }
        to.write_all(&zstd::bulk::compress(&body, 3)?)
    }

    fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(8 * (self.drops.len() + self.edits.len()));
        let mut end = 0;
        for run in &self.drops {
            put(&mut body, run.first.0.wrapping_sub(end));
            put(&mut body, run.count);
            body.push(drop_code(run.reason));
            put(&mut body, owner_code(run.owner));
            end = run.first.0.wrapping_add(run.count);
        }
        let mut before = 0;
        for edit in &self.edits {
            put(&mut body, edit.gpa.0.wrapping_sub(before));
            put(&mut body, u64::from(edit.len));
            body.push(u8::from(edit.kind == EditKind::Write));
            body.push(edit_code(edit.reason));
            put(&mut body, owner_code(edit.owner));
            before = edit.gpa.0;
        }
        body
    }

    /// Reads a map.
    pub fn decode(mut from: impl Read) -> Result<Self, ExclusionsError> {
        let mut head = [0; 40];
        from.read_exact(&mut head)?;
        let (magic, rest) = head.split_at(8);
        if magic != MAGIC {
            return Err(ExclusionsError::Magic);
        }
        let mut rest = rest;
        let mut word = [0; 4];
        rest.read_exact(&mut word)?;
        let version = u32::from_le_bytes(word);
        if version != VERSION {
            return Err(ExclusionsError::Version(version));
        }
        rest.read_exact(&mut word)?;
        let mut counts = [0; 3];
        for n in &mut counts {
            let mut word = [0; 8];
            rest.read_exact(&mut word)?;
            *n = u64::from_le_bytes(word);
        }
        let [drops, edits, body] = counts;
        if drops > MAX_DROPS || edits > MAX_EDITS || body > ROW_BYTES * (drops + edits) {
            return Err(ExclusionsError::Counts { drops, edits, body });
        }
        let mut unpacked = zstd::Decoder::new(from.take(FILE_BYTES))?;
        unpacked.window_log_max(WINDOW)?;
        let mut rows = Rows { from: BufReader::new(unpacked).take(body), row: 0 };
        let map = Self { drops: rows.drops(drops)?, edits: rows.edits(edits)? };
        if rows.from.limit() > 0 {
            return Err(ExclusionsError::Trailing);
        }
        let mut unpacked = rows.from.into_inner();
        if unpacked.fill_buf()?.is_empty() { Ok(map) } else { Err(ExclusionsError::Trailing) }
    }
}

struct Rows<R> {
    from: R,
    row: u64,
}

impl<R: Read> Rows<R> {
    fn drops(&mut self, count: u64) -> Result<Vec<DropRun>, ExclusionsError> {
        let mut drops = Vec::new();
        let mut end: u64 = 0;
        for _ in 0..count {
            let (gap, count) = (self.number()?, self.number()?);
            let reason = self.byte()?;
            let reason = DROP_REASONS.into_iter().find(|r| drop_code(*r) == reason);
            let reason = reason.ok_or_else(|| self.wrong("unknown reason"))?;
            let owner = self.owner()?;
            let first = end.checked_add(gap);
            let stop = first.and_then(|first| first.checked_add(count)).filter(|&stop| stop <= FRAMES);
            let (Some(first), Some(stop)) = (first, stop) else {
                return Err(self.wrong("frames beyond the end of guest-physical memory"));
            };
            if count == 0 {
                return Err(self.wrong("no frames"));
            }
            drops.push(DropRun { first: Gfn(first), count, reason, owner });
            end = stop;
            self.row += 1;
        }
        Ok(drops)
    }

    fn edits(&mut self, count: u64) -> Result<Vec<EditMeta>, ExclusionsError> {
        let mut edits = Vec::new();
        let mut before: u64 = 0;
        for _ in 0..count {
            let (distance, len) = (self.number()?, self.number()?);
            let kind = match self.byte()? {
                0 => EditKind::Zero,
                1 => EditKind::Write,
                _ => return Err(self.wrong("unknown kind of change")),
            };
            let reason = self.byte()?;
            let reason = EDIT_REASONS.into_iter().find(|r| edit_code(*r) == reason);
            let reason = reason.ok_or_else(|| self.wrong("unknown reason"))?;
            let owner = self.owner()?;
            let gpa = before.checked_add(distance).map(Gpa).filter(|gpa| gpa.gfn().0 < FRAMES);
            let gpa = gpa.ok_or_else(|| self.wrong("bytes beyond the end of guest-physical memory"))?;
            let room = (PAGE_SIZE - gpa.page_offset()) as u64;
            let len = u32::try_from(len).ok().filter(|&len| u64::from(len) <= room);
            let len = len.ok_or_else(|| self.wrong("bytes beyond the end of their frame"))?;
            edits.push(EditMeta { gpa, len, kind, reason, owner });
            before = gpa.0;
            self.row += 1;
        }
        Ok(edits)
    }

    fn owner(&mut self) -> Result<Owner, ExclusionsError> {
        let code = self.number()?;
        let owner = code.checked_sub(1).map(u32::try_from).transpose();
        owner.map_err(|_| self.wrong("a process id of more than 32 bits"))
    }

    fn byte(&mut self) -> Result<u8, ExclusionsError> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        Ok(u8::from_le_bytes(byte))
    }

    fn number(&mut self) -> Result<u64, ExclusionsError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number of more than 64 bits"))
    }

    fn wrong(&self, reason: &'static str) -> ExclusionsError {
        ExclusionsError::Row { row: self.row, reason }
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let bits = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(bits);
            return;
        }
        out.push(bits | 0x80);
    }
}

fn owner_code(owner: Owner) -> u64 {
    owner.map_or(0, |pid| u64::from(pid) + 1)
}

const DROP_REASONS: [DropReason; 10] = [
    DropReason::Free,
    DropReason::FreePerCpu,
    DropReason::FreeHuge,
    DropReason::DeadInBatch,
    DropReason::Anonymous,
    DropReason::SharedMemory,
    DropReason::HugeTlb,
    DropReason::Orphan,
    DropReason::Region,
    DropReason::PageCache,
];

const EDIT_REASONS: [EditReason; 21] = [
    EditReason::DeadStack,
    EditReason::UserRegisters,
    EditReason::FpuState,
    EditReason::PendingKill,
    EditReason::WakeUp,
    EditReason::Pipe,
    EditReason::Socket,
    EditReason::Terminal,
    EditReason::Message,
    EditReason::Key,
    EditReason::FreeObject,
    EditReason::IdleStack,
    EditReason::Name,
    EditReason::Event,
    EditReason::KernelLog,
    EditReason::PageFragment,
    EditReason::ConnectionReset,
    EditReason::IdleMapping,
    EditReason::BpfMap,
    EditReason::PageCache,
    EditReason::Agent,
];

/// The number in the file. A new reason needs its line here and in [`DROP_REASONS`].
fn drop_code(reason: DropReason) -> u8 {
    match reason {
        DropReason::Free => 1,
        DropReason::FreePerCpu => 2,
        DropReason::FreeHuge => 3,
        DropReason::DeadInBatch => 4,
        DropReason::Anonymous => 5,
        DropReason::SharedMemory => 6,
        DropReason::HugeTlb => 7,
        DropReason::Orphan => 8,
        DropReason::Region => 9,
        DropReason::PageCache => 10,
    }
}

/// The number in the file. A new reason needs its line here and in [`EDIT_REASONS`].
fn edit_code(reason: EditReason) -> u8 {
    match reason {
        EditReason::DeadStack => 1,
        EditReason::UserRegisters => 2,
        EditReason::FpuState => 3,
        EditReason::PendingKill => 4,
        EditReason::WakeUp => 5,
        EditReason::Pipe => 6,
        EditReason::Socket => 7,
        EditReason::Terminal => 8,
        EditReason::Message => 9,
        EditReason::Key => 10,
        EditReason::FreeObject => 11,
        EditReason::IdleStack => 12,
        EditReason::Name => 13,
        EditReason::Event => 14,
        EditReason::KernelLog => 15,
        EditReason::PageFragment => 16,
        EditReason::ConnectionReset => 17,
        EditReason::IdleMapping => 18,
        EditReason::BpfMap => 19,
        EditReason::PageCache => 20,
        EditReason::Agent => 21,
    }
}
