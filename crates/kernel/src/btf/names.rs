//! Names to types: a sorted list of hashes, which a hostile blob can only make slow, not wrong.
//!
//! Each entry is `hash << 32 | number`. A lookup finds the run of its hash by bisection and lets
//! the caller compare the real names, lowest number first. The list costs 8 bytes for each name.

/// Longest name with its end; the kernel's own limit for symbols.
pub(crate) const LONGEST_NAME: usize = 512;

/// The list, sorted once and then only read.
#[derive(Debug, Default)]
pub(crate) struct Names {
    entries: Vec<u64>,
}

impl Names {
    pub(crate) fn new(mut entries: Vec<u64>) -> Self {
        entries.sort_unstable();
        entries.dedup();
        entries.shrink_to_fit();
        Self { entries }
    }

    /// The entry for a name that stands for `number`.
    pub(crate) fn entry(hash: u32, number: u32) -> u64 {
        u64::from(hash) << 32 | u64::from(number)
    }

    /// Numbers whose name has this hash, ascending.
    pub(crate) fn candidates(&self, hash: u32) -> impl Iterator<Item = u32> + '_ {
        let from = self.entries.partition_point(|e| *e < Self::entry(hash, 0));
        let run = self.entries.get(from..).unwrap_or_default();
        run.iter().take_while(move |e| *e >> 32 == u64::from(hash)).map(|e| low(*e))
    }
}

#[allow(clippy::cast_possible_truncation)] // the low half is what is asked for
fn low(entry: u64) -> u32 {
    entry as u32
}

/// FNV-1a.
pub(crate) fn hash(name: &[u8]) -> u32 {
    name.iter().fold(BASIS, |h, b| step(h, *b))
}

/// The hash of the NUL-ended name at `at` and its length; `None` if it is too long or has no end.
pub(crate) fn hash_at(strings: &[u8], at: u32) -> Option<(u32, usize)> {
    let mut h = BASIS;
    for (len, b) in strings.get(crate::le::index(at)..)?.iter().take(LONGEST_NAME).enumerate() {
        if *b == 0 {
            return Some((h, len));
        }
        h = step(h, *b);
    }
    None
}

const BASIS: u32 = 0x811c_9dc5;

#[inline]
fn step(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_hashes_come_lowest_number_first() {
        let names = Names::new(vec![Names::entry(7, 9), Names::entry(8, 1), Names::entry(7, 2)]);
        assert_eq!(names.candidates(7).collect::<Vec<_>>(), [2, 9]);
        assert_eq!(names.candidates(9).count(), 0);
        assert_eq!(Names::default().candidates(0).count(), 0);
    }

    #[test]
    fn a_name_without_an_end_has_no_hash() {
        assert_eq!(hash_at(b"\0ab\0", 1), Some((hash(b"ab"), 2)));
        assert_eq!(hash_at(b"\0ab", 1), None);
        assert_eq!(hash_at(b"\0ab\0", 9), None);
        assert_eq!(hash_at(&[b'a'; LONGEST_NAME + 1], 0), None);
    }
}
