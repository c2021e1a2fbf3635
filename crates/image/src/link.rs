//! Images that build on another one: what they do not hold themselves they inherit.
//!
//! ```text
//! base          ram.img        [AAAA][BBBB][    ][CCCC]
//! link          inherited.zst   yes   no    no    no        a bit for each page of the RAM file, compressed by zstd
//!               ram.img        [    ][bbbb][DDDD][    ]     what is not inherited: as in any image
//! the link is                  [AAAA][bbbb][DDDD][    ]
//! ```
//! A page is inherited only if it is, after all that the link's own plan drops and changes, what it is in the base. So a
//! policy that leaves out more takes that out of what is inherited, too. The base may be a link itself. It is
//! found by a path from the link's own folder and known by its id, which no other image has.

use crate::ranges::{Runs, add, common, rest};
use crate::{INHERITED, Image, ImageError};
use elision_memory::{FileOffset, PAGE_SIZE, Ram, Staging, joined};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Most links of a chain.
pub(crate) const MAX_LINKS: usize = 256;
const PAGE: u64 = PAGE_SIZE as u64;
/// The map is written once and small; this is quick enough.
const LEVEL: i32 = 3;

/// All of an image's RAM, whatever images it comes from.
#[derive(Debug)]
pub(crate) struct Content {
    /// It is not changed in the files.
    pub(crate) memory: Staging,
    /// What of it may be other than zero, ascending.
    pub(crate) data: Runs,
}

impl Image {
    /// All of its RAM.
    pub(crate) fn content(&self) -> Result<Content, ImageError> {
        let path = self.ram_path();
        let failed = |e: io::Error| ImageError::io("read", &path, e);
        let layout = &self.manifest().ram_layout;
        let len = self.manifest().files.ram.bytes;
        let own = if self.is_packed() { self.unpack()? } else { self.open_ram()? };
        let stored = Ram::private(&own, layout.clone())?.populated();
        let Some(base) = self.base() else {
            return Ok(Content { memory: Staging::over(&own, len).map_err(failed)?, data: stored });
        };
        let Content { mut memory, data } = base.content()?;
        let inherited = self.inherited()?;
        let not_inherited = rest(&inherited, len);
        common(&data, &not_inherited).iter().for_each(|run| memory.clear(run));
        let stored = common(&stored, &not_inherited);
        for run in &stored {
            memory.read_in(&own, run).map_err(failed)?;
        }
        Ok(Content { memory, data: joined([common(&data, &inherited), stored].concat()) })
    }

    /// What of its RAM may be other than zero, ascending.
    pub(crate) fn populated(&self) -> Result<Runs, ImageError> {
        let Some(base) = self.base() else { return Ok(self.ram()?.populated()) };
        let own = Ram::private(&self.open_ram()?, self.manifest().ram_layout.clone())?.populated();
        Ok(joined([own, common(&base.populated()?, &self.inherited()?)].concat()))
    }

    /// The files that hold its RAM, and which parts of it each has. `None` if one is compressed.
    pub(crate) fn plain_files(&self) -> Result<Option<Vec<(File, Runs)>>, ImageError> {
        let len = self.manifest().files.ram.bytes;
        let mut wanted = vec![FileOffset(0)..FileOffset(len)];
        let mut files = Vec::new();
        for image in self.chain() {
            if image.is_packed() {
                return Ok(None);
            }
            let inherited = image.inherited()?;
            files.push((image.open_ram()?, common(&wanted, &rest(&inherited, len))));
            wanted = common(&wanted, &inherited);
        }
        Ok(Some(files))
    }

    /// What a link does not hold itself.
    pub(crate) fn inherited(&self) -> Result<Runs, ImageError> {
        let Some(sum) = &self.manifest().files.inherited else { return Ok(Vec::new()) };
        let packed = self.read_whole(INHERITED, sum)?;
        let runs = decode(&packed, self.manifest().files.ram.bytes);
        runs.ok_or_else(|| ImageError::Damaged(self.dir().join(INHERITED)))
    }
}

/// The file of what is inherited.
pub(crate) fn encode(inherited: &Runs, len: u64) -> io::Result<Vec<u8>> {
    let mut bits = vec![0_u8; map_bytes(len)?];
    for page in inherited.iter().flat_map(|run| run.start.0 / PAGE..run.end.0 / PAGE) {
        let byte = usize::try_from(page / 8).ok().and_then(|i| bits.get_mut(i));
        *byte.ok_or(io::ErrorKind::InvalidInput)? |= 1 << (page % 8);
    }
    zstd::bulk::compress(&bits, LEVEL)
}

fn decode(packed: &[u8], len: u64) -> Option<Runs> {
    let expected = map_bytes(len).ok()?;
    let bits = zstd::bulk::decompress(packed, expected).ok().filter(|bits| bits.len() == expected)?;
    let mut runs = Vec::new();
    for (i, byte) in (0_u64..).zip(bits).filter(|(_, byte)| *byte != 0) {
        for page in (0..8).filter(|bit| byte & (1 << bit) != 0).map(|bit| 8 * i + bit) {
            if page >= len / PAGE {
                return None;
            }
            add(&mut runs, FileOffset(page * PAGE), PAGE_SIZE);
        }
    }
    Some(runs)
}

fn map_bytes(len: u64) -> io::Result<usize> {
    usize::try_from((len / PAGE).div_ceil(8)).map_err(io::Error::other)
}

/// The way to a base from the folder of an image that will be called `target`; the whole path where there is none.
pub(crate) fn path_to(base: &Path, target: &Path) -> Result<PathBuf, ImageError> {
    let whole = |path: &Path| path.canonicalize().map_err(|e| ImageError::io("find", path, e));
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = whole(base)?;
    let folder = whole(parent)?.join(target.file_name().unwrap_or_default());
    Ok(pathdiff::diff_paths(&base, folder).unwrap_or(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_comes_back_and_a_wrong_one_does_not() {
        let run = |pages: Range<u64>| FileOffset(pages.start * PAGE)..FileOffset(pages.end * PAGE);
        let len = 21 * PAGE;
        for runs in [vec![], vec![run(0..21)], vec![run(1..2), run(7..9), run(20..21)]] {
            assert_eq!(decode(&encode(&runs, len).unwrap(), len), Some(runs));
        }
        let of = |bits: &[u8]| zstd::bulk::compress(bits, 1).unwrap();
        assert!(decode(&of(&[0, 0, 1]), len).is_some());
        assert_eq!(decode(&of(&[0, 0, 1 << 5]), len), None, "behind the end");
        assert_eq!(decode(&of(&[0, 0]), len), None);
        assert_eq!(decode(&of(&[0; 4]), len), None);
        assert_eq!(decode(b"no map", len), None);
    }

    #[test]
    fn a_base_is_found_from_the_folder_of_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a/first");
        std::fs::create_dir_all(&base).unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        let way = |target: &str| path_to(&base, &dir.path().join(target)).unwrap();
        assert_eq!(way("a/second"), Path::new("../first"));
        assert_eq!(way("b/second"), Path::new("../../a/first"));
    }

    use std::ops::Range;
}
