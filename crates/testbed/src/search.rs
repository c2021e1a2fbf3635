//! Where known bytes stand in a guest's RAM.

use crate::error::Error;
use aho_corasick::AhoCorasick;
use elision_memory::{FileOffset, Ram};

const CHUNK: usize = 4 << 20;
const LONGEST: usize = 4096;

/// Offsets in the RAM file of every occurrence of each needle, in the order of the needles. A needle
/// across two frames is found only where the frames are neighbours in the file.
pub fn find<N: AsRef<[u8]>>(ram: &Ram, needles: &[N]) -> Result<Vec<Vec<FileOffset>>, Error> {
    let mut found = vec![Vec::new(); needles.len()];
    let longest = needles.iter().map(|n| n.as_ref().len()).max().unwrap_or(0);
    if needles.iter().any(|n| n.as_ref().is_empty()) || longest > LONGEST {
        return Err(Error::Input(format!("A needle needs 1 to {LONGEST} bytes")));
    }
    let matcher = AhoCorasick::new(needles).map_err(|e| Error::Input(e.to_string()))?;
    let mut chunk = vec![0; CHUNK + longest];
    let mut at = 0;
    while at < ram.file_len() {
        let len = usize::try_from(ram.file_len() - at).unwrap_or(usize::MAX).min(chunk.len());
        let bytes = &mut chunk[..len];
        if !ram.read_file(FileOffset(at), bytes) {
            return Err(Error::Input(format!("RAM file ends at {at:#x}")));
        }
        for hit in matcher.find_overlapping_iter(&*bytes) {
            // What begins in the overlap belongs to the next chunk.
            if hit.start() < CHUNK {
                found[hit.pattern().as_usize()].push(FileOffset(at + hit.start() as u64));
            }
        }
        at += CHUNK as u64;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_memory::{Gpa, RamLayout};

    #[test]
    fn every_occurrence_is_found_once_also_across_chunks() {
        let mut ram = Ram::zeroed(RamLayout::flat(3 * CHUNK as u64).unwrap()).unwrap();
        let border = CHUNK as u64 - 3;
        for at in [0, border, 2 * CHUNK as u64, 3 * CHUNK as u64 - 6] {
            ram.poke(Gpa(at), b"needle").unwrap();
        }
        ram.poke(Gpa(5000), b"other").unwrap();
        let found = find(&ram, &["needle", "other", "absent"]).unwrap();
        let expected = [0, border, 2 * CHUNK as u64, 3 * CHUNK as u64 - 6].map(FileOffset);
        assert_eq!(found, [expected.to_vec(), vec![FileOffset(5000)], vec![]]);
    }
}
