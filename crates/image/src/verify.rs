//! Checking an image: that its files are those that were written, and that what its map says was left
//! out is indeed not there.

use crate::{EXCLUSIONS, EditKind, Exclusions, Image, ImageError, RAM, RAM_PACKED, RamFile, checksum};
use blake3::Hash;
use elision_memory::{FileOffset, Gfn, Gpa, PAGE_SIZE, Ram};
use elision_plan::DropReason;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;

const PAGE: u64 = PAGE_SIZE as u64;
/// Most problems of one kind that are listed; more say nothing new.
const LISTED: usize = 100;

/// Something that is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "kebab-case")]
pub enum Problem {
    /// A file is not the one that was written.
    Checksum {
        /// Which file.
        file: &'static str,
    },
    /// A chunk of the RAM file is not the one that was written.
    RamChunk {
        /// The file that holds it.
        file: &'static str,
        /// Where it begins in the plain RAM file.
        offset: FileOffset,
        /// Its length.
        len: u64,
    },
    /// A frame that the map says was dropped holds data.
    NotDropped {
        /// The frame.
        gfn: Gfn,
        /// Why it was to be dropped.
        reason: DropReason,
    },
    /// Bytes that the map says were zeroed hold data.
    NotZeroed {
        /// The first byte that does.
        gpa: Gpa,
    },
    /// The map names memory that the guest does not have.
    OutsideRam {
        /// The frame.
        gfn: Gfn,
    },
    /// The map cannot be read.
    Exclusions {
        /// Why.
        reason: String,
    },
    /// Something is wrong with an image that this one builds on.
    Base {
        /// That image.
        image: PathBuf,
        /// What.
        what: Box<Problem>,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum { file } => write!(f, "{file} was changed or damaged: its checksum differs"),
            Self::RamChunk { file, offset, len } => {
                write!(f, "{file} was changed or damaged in the {len} bytes from offset {offset}")
            }
            Self::NotDropped { gfn, reason } => {
                write!(f, "Frame {gfn} was to be left out ({reason:?}) but holds data")
            }
            Self::NotZeroed { gpa } => write!(f, "The byte at {gpa} was to be zeroed but holds data"),
            Self::OutsideRam { gfn } => write!(f, "The map names frame {gfn}, which is not RAM of the guest"),
            Self::Base { image, what } => write!(f, "In {}: {what}", image.display()),
            Self::Exclusions { reason } => write!(f, "{EXCLUSIONS} cannot be read: {reason}"),
        }
    }
}

pub(crate) fn verify(image: &Image, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<Problem>, ImageError> {
    let mut problems = Vec::new();
    if let Some(base) = image.base() {
        let of_base = |what: Problem| match what {
            further @ Problem::Base { .. } => further,
            what => Problem::Base { image: base.dir().to_owned(), what: Box::new(what) },
        };
        problems.extend(verify(base, progress)?.into_iter().map(of_base));
    }
    let files = &image.manifest().files;
    let map_is_whole = match image.inherited() {
        Err(ImageError::Damaged(_)) => false, // its checksum tells below, or it is no map
        other => other.map(|_| true)?,
    };
    if image.is_packed() {
        check_packed(image, &mut problems, progress)?;
    } else {
        let own = Ram::private(&image.open_ram()?, image.manifest().ram_layout.clone())?;
        check_ram(image, &own.populated(), &mut problems, progress)?;
    }
    // What is damaged there cannot be put together.
    let is_whole = map_is_whole && (image.is_mappable() || problems.is_empty());
    let ram = is_whole.then(|| image.ram()).transpose()?;
    for (name, sum) in files.beside_ram() {
        let file = image.open_file(name, sum.bytes)?;
        let (hash, _) =
            checksum::hash_file(&file).map_err(|e| ImageError::io("read", &image.dir().join(name), e))?;
        if hash.to_hex().as_str() != sum.blake3 {
            problems.push(Problem::Checksum { file: name });
        }
    }
    match image.exclusions() {
        Ok(map) => {
            // What cannot be unpacked cannot be looked at.
            if let Some(ram) = ram {
                check_drops(&map, &ram, &ram.populated(), &mut problems);
                check_edits(&map, &ram, &mut problems);
            }
        }
        Err(ImageError::Exclusions { source, .. }) => {
            problems.push(Problem::Exclusions { reason: source.to_string() });
        }
        Err(e) => return Err(e),
    }
    Ok(problems)
}

fn check_ram(
    image: &Image,
    populated: &[Range<FileOffset>],
    problems: &mut Vec<Problem>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), ImageError> {
    let sums = &image.manifest().files.ram;
    let file = image.open_ram()?;
    // What `populated` says ends with the layout; a longer file is read to its end.
    let mut data = populated.to_vec();
    let mapped = image.manifest().ram_layout.file_len();
    if mapped < sums.bytes {
        data.push(FileOffset(mapped)..FileOffset(sums.bytes));
    }
    let found = checksum::chunk_hashes(&file, sums.bytes, sums.chunk_bytes, &data, progress)
        .map_err(|e| ImageError::io("read", &image.ram_path(), e))?;
    let found: Vec<_> = found.into_iter().map(Some).collect();
    compare(sums, &found, RAM, problems);
    Ok(())
}

fn check_packed(
    image: &Image,
    problems: &mut Vec<Problem>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), ImageError> {
    let sums = &image.manifest().files.ram;
    let packed = match image.packed() {
        Ok(packed) => packed,
        Err(ImageError::Table { .. }) => {
            problems.push(Problem::Checksum { file: RAM_PACKED });
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let found = Mutex::new(BTreeMap::new());
    let take = |i, plain: io::Result<&[u8]>| {
        progress(plain.as_ref().map_or(0, |plain| plain.len() as u64));
        if let Ok(mut found) = found.lock() {
            found.insert(i, plain.ok().map(blake3::hash));
        }
        Ok(())
    };
    packed.each(take).map_err(|e: io::Error| ImageError::io("read", &image.ram_path(), e))?;
    let found: Vec<_> = found.into_inner().unwrap_or_default().into_values().collect();
    compare(sums, &found, RAM_PACKED, problems);
    Ok(())
}

/// Compares what the chunks of RAM hash to, if they can be read, with what the manifest says.
fn compare(sums: &RamFile, found: &[Option<Hash>], file: &'static str, problems: &mut Vec<Problem>) {
    let expected = sums.chunk_hashes().unwrap_or_default();
    let differing = (0_u64..).zip(expected.iter().zip(found)).filter(|(_, (a, b))| Some(**a) != **b);
    problems.extend(differing.take(LISTED).map(|(i, _)| {
        let start = i * sums.chunk_bytes;
        Problem::RamChunk { file, offset: FileOffset(start), len: sums.chunk_bytes.min(sums.bytes - start) }
    }));
    if checksum::root(&expected).to_hex().as_str() != sums.root {
        problems.push(Problem::Checksum { file });
    }
}

/// A dropped frame must read as zeros. Only what is populated need be read.
fn check_drops(map: &Exclusions, ram: &Ram, populated: &[Range<FileOffset>], problems: &mut Vec<Problem>) {
    let mut page = [0; PAGE_SIZE];
    let mut listed = 0;
    for run in &map.drops {
        let limit = ram.layout().frame_limit().0;
        for gfn in (run.first.0..(run.first.0 + run.count).min(limit)).map(Gfn) {
            let Some(offset) = ram.layout().offset_of(gfn.gpa(), PAGE) else {
                problems.push(Problem::OutsideRam { gfn });
                break;
            };
            let next = populated.partition_point(|part| part.end <= offset);
            let hole = populated.get(next).is_none_or(|part| part.start.0 >= offset.0 + PAGE);
            if hole || (ram.read_frame(gfn, &mut page).is_ok() && page == [0; PAGE_SIZE]) {
                continue;
            }
            listed += 1;
            if listed > LISTED {
                return;
            }
            problems.push(Problem::NotDropped { gfn, reason: run.reason });
        }
        if run.first.0 + run.count > limit {
            problems.push(Problem::OutsideRam { gfn: Gfn(limit.max(run.first.0)) });
            return; // runs ascend: the rest lies outside too
        }
    }
}

/// Bytes that were zeroed, and not written by a later change of the same frame, must be zero.
fn check_edits(map: &Exclusions, ram: &Ram, problems: &mut Vec<Problem>) {
    let mut page = [0; PAGE_SIZE];
    let mut listed = 0;
    for edits in map.edits.chunk_by(|a, b| a.gpa.gfn() == b.gpa.gfn()) {
        let Some(gfn) = edits.first().map(|edit| edit.gpa.gfn()) else { continue };
        if ram.read_frame(gfn, &mut page).is_err() {
            problems.push(Problem::OutsideRam { gfn });
            return;
        }
        let mut zeroed = [false; PAGE_SIZE];
        for edit in edits {
            let start = edit.gpa.page_offset();
            let end = start.saturating_add(usize::try_from(edit.len).unwrap_or(PAGE_SIZE));
            if let Some(bytes) = zeroed.get_mut(start..end) {
                bytes.fill(edit.kind == EditKind::Zero);
            }
        }
        if let Some((at, _)) = (0_u64..).zip(page.iter().zip(zeroed)).find(|(_, (byte, z))| *z && **byte != 0)
        {
            problems.push(Problem::NotZeroed { gpa: Gpa(gfn.gpa().0 + at) });
            listed += 1;
            if listed == LISTED {
                return;
            }
        }
    }
}
