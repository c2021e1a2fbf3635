//! Counters that outlive their process: slots in a shared page, found in RAM by their form.
//!
//! ```text
//! offset  0        16          24       32       40      48        64
//!         [ magic  ][ label hash ][ count ][ index ][ check ][ unused ]
//! ```
//! The file of slots is mapped by the guest's server too, so its pages stay when a played process
//! is left out of a checkpoint. `check` ties hash and index together, so that a stray copy of the
//! magic in a binary or on a stack is not taken for a slot. At most [`SLOTS`] slots.

/// Bytes of a slot; slots are aligned to it.
pub const SLOT_LEN: usize = 64;
/// Number of slots in the file.
pub const SLOTS: usize = 1024;
/// Where the count stands in a slot.
pub const COUNT_AT: usize = 24;
/// Label of the server's own slot, which holds the monotonic clock in nanoseconds.
pub const CLOCK_LABEL: &str = "#clock";
/// The file in the guest that holds the slots.
pub const PATH: &str = "/run/counters";

/// One counter as read from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// [`label_hash`] of the label it counts for.
    pub label: u64,
    /// The count.
    pub count: u64,
    /// Its place in the file.
    pub index: u64,
}

/// What a slot begins with. Kept in another form in the binary, which stands in RAM as well.
#[must_use]
pub fn magic() -> [u8; 16] {
    std::hint::black_box(*b"\x1f\x36\x33\x29\x33\x35\x34\x79\x39\x35\x2f\x34\x2e\x3f\x28\xa5")
        .map(|b| b ^ 0x5a)
}

/// A short public name for a label.
#[must_use]
pub fn label_hash(label: &str) -> u64 {
    word(blake3::hash(label.as_bytes()).as_bytes(), 0)
}

/// The bytes of a new slot with count 0.
#[must_use]
pub fn encode(label: u64, index: u64) -> [u8; SLOT_LEN] {
    let mut out = [0; SLOT_LEN];
    out[..16].copy_from_slice(&magic());
    out[16..24].copy_from_slice(&label.to_le_bytes());
    out[32..40].copy_from_slice(&index.to_le_bytes());
    out[40..48].copy_from_slice(&check(label, index).to_le_bytes());
    out
}

/// The slot in `bytes`, if they are one.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Slot> {
    if bytes.len() < SLOT_LEN || bytes[..16] != magic() {
        return None;
    }
    let slot = Slot { label: word(bytes, 16), count: word(bytes, COUNT_AT), index: word(bytes, 32) };
    (word(bytes, 40) == check(slot.label, slot.index) && slot.index < SLOTS as u64).then_some(slot)
}

fn check(label: u64, index: u64) -> u64 {
    label.rotate_left(17) ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x51a7
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_survives_its_encoding() {
        let bytes = encode(label_hash("victim"), 7);
        assert_eq!(decode(&bytes), Some(Slot { label: label_hash("victim"), count: 0, index: 7 }));
    }

    #[test]
    fn a_stray_magic_is_not_a_slot() {
        let mut bytes = [0; SLOT_LEN];
        bytes[..16].copy_from_slice(&magic());
        assert_eq!(decode(&bytes), None);
        let mut bytes = encode(1, 2);
        bytes[33] ^= 1;
        assert_eq!(decode(&bytes), None);
        assert_eq!(decode(&bytes[..40]), None);
    }
}
