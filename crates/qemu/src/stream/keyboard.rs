//! Keys that the guest has read stay in the rings of keyboards and mice: they are cleared.
//!
//! ```text
//! ring of n entries     . . [ waiting: count entries from the read position ] . . .
//!                       cleared                                             cleared
//! ```
//! What waits to be read is the guest's input and stays.

use super::devices::{Field, Section};
use super::registers::Cleared;
use super::state::DeviceState;

/// The controller's output buffer holds a byte that the guest has not read.
const OUTPUT_FULL: u64 = 1;

impl DeviceState {
    /// Clears what PS/2 and USB keyboards and mice still hold of input that was already read.
    pub fn clear_keyboard(&mut self) -> Cleared {
        let sections = self.devices.sections.clone();
        let mut cleared = Cleared::default();
        for section in &sections {
            match section.name.as_str() {
                "ps2kbd" | "ps2mouse" => self.clear_byte_ring(section, &mut cleared),
                "pckbd" => self.clear_controller(section, &mut cleared),
                name if name.ends_with("/usb-kbd") => self.clear_usb(section, &mut cleared),
                _ => {}
            }
        }
        cleared
    }

    fn clear_byte_ring(&mut self, section: &Section, cleared: &mut Cleared) {
        let Some(data) = section.fields.iter().find(|f| f.leaf() == "queue.data") else { return };
        let at = |leaf| section.fields.iter().find(|f| f.leaf() == leaf).and_then(|f| self.value(f));
        let len = data.range.len() as u64;
        let (head, count) = (at("queue.rptr").unwrap_or(0), at("queue.count").unwrap_or(0));
        for (i, position) in data.range.clone().enumerate() {
            if !waits(i as u64, head, count, len) {
                let byte = Field { path: String::new(), range: position..position + 1 };
                cleared.add(1, self.zero(&byte));
            }
        }
    }

    fn clear_controller(&mut self, section: &Section, cleared: &mut Cleared) {
        let status = section.fields.iter().find(|f| f.leaf() == "status").and_then(|f| self.value(f));
        if status.is_none_or(|s| s & OUTPUT_FULL == 0) {
            for field in section.fields.iter().filter(|f| matches!(f.leaf(), "obdata" | "cbdata")) {
                cleared.add(field.range.len(), self.zero(field));
            }
        }
    }

    fn clear_usb(&mut self, section: &Section, cleared: &mut Cleared) {
        let keys: Vec<&Field> = section.fields.iter().filter(|f| f.is_part("kbd.keycodes")).collect();
        let at = |leaf| section.fields.iter().find(|f| f.leaf() == leaf).and_then(|f| self.value(f));
        let (head, count) = (at("head").unwrap_or(0), at("n").unwrap_or(0));
        for (i, field) in keys.iter().enumerate() {
            if !waits(i as u64, head, count, keys.len() as u64) {
                cleared.add(field.range.len(), self.zero(field));
            }
        }
    }
}

/// Whether entry `i` of a ring of `len` is one of the `count` from `head`.
pub(super) fn waits(i: u64, head: u64, count: u64, len: u64) -> bool {
    len > 0 && (i + len - head % len) % len < count
}

#[cfg(test)]
mod tests {
    use super::waits;

    #[test]
    fn a_ring_wraps() {
        let waiting = |head, count| (0..8).filter(|&i| waits(i, head, count, 8)).collect::<Vec<_>>();
        assert_eq!(waiting(6, 3), [0, 6, 7]);
        assert_eq!(waiting(2, 2), [2, 3]);
        assert!(waiting(5, 0).is_empty());
        assert_eq!(waiting(u64::from(u32::MAX), 1), [7], "a hostile position stays inside");
        assert!(!waits(0, 0, 1, 0));
    }
}
