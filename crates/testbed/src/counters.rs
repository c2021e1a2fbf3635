//! The counters of played processes, found in a guest's RAM by their form.

use crate::error::Error;
use crate::search;
use elision_actor::slot;
use elision_memory::{FileOffset, Ram};

/// A counter in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where its slot stands in the RAM file.
    pub offset: FileOffset,
    /// Hash of its label, as [`label_hash`] gives it.
    pub label: u64,
    /// The count.
    pub count: u64,
}

/// The hash under which a label's counter stands in RAM.
#[must_use]
pub fn label_hash(label: &str) -> u64 {
    slot::label_hash(label)
}

/// All counters in RAM, in the order in which their processes were started.
pub fn find(ram: &Ram) -> Result<Vec<Found>, Error> {
    let hits = search::find(ram, &[slot::magic()])?;
    let mut found = Vec::new();
    for offset in hits.into_iter().flatten().filter(|o| o.0 % slot::SLOT_LEN as u64 == 0) {
        let mut bytes = [0; slot::SLOT_LEN];
        if !ram.read_file(offset, &mut bytes) {
            continue;
        }
        if let Some(slot) = slot::decode(&bytes) {
            found.push((slot.index, Found { offset, label: slot.label, count: slot.count }));
        }
    }
    found.sort_by_key(|(index, f)| (*index, f.offset));
    Ok(found.into_iter().map(|(_, f)| f).collect())
}

/// Count of the counter of `label`, if it stands in RAM.
pub fn count(ram: &Ram, label: &str) -> Result<Option<u64>, Error> {
    let hash = label_hash(label);
    Ok(find(ram)?.into_iter().find(|f| f.label == hash).map(|f| f.count))
}

/// The guest's monotonic clock in nanoseconds as it stands in RAM, at most 10 ms old.
pub fn clock(ram: &Ram) -> Result<Option<u64>, Error> {
    count(ram, slot::CLOCK_LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_memory::{Gpa, RamLayout};

    #[test]
    fn only_whole_aligned_slots_count() {
        let mut ram = Ram::zeroed(RamLayout::flat(1 << 20).unwrap()).unwrap();
        ram.poke(Gpa(0x5000), &slot::encode(label_hash("b"), 1)).unwrap();
        ram.poke(Gpa(0x5000 + slot::COUNT_AT as u64), &9_u64.to_le_bytes()).unwrap();
        ram.poke(Gpa(0x4fc0), &slot::encode(label_hash("a"), 0)).unwrap();
        ram.poke(Gpa(0x8010), &slot::encode(label_hash("c"), 2)).unwrap(); // a stray copy
        ram.poke(Gpa(0x9000), &slot::magic()).unwrap();
        let found = find(&ram).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], Found { offset: FileOffset(0x5000), label: label_hash("b"), count: 9 });
        assert_eq!(count(&ram, "b").unwrap(), Some(9));
        assert_eq!(count(&ram, "c").unwrap(), None);
    }
}
