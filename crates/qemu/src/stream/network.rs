//! Network cards keep what they have sent: it is cleared.
//!
//! ```text
//! e1000   tx.data    [ packet in the making: tx.size bytes ] earlier packets     tx.header  its first bytes
//! pcnet   buffer     [ packet in the making: xmit_pos bytes ] earlier packets
//! ```
//! A packet that the guest is still putting together stays. The other cards keep no packets in their state, with
//! the exception of the NE2000: what the guest has yet to read and what it has read are not told apart there.

use super::devices::{Field, Section};
use super::registers::Cleared;
use super::state::DeviceState;

impl DeviceState {
    /// Clears what network cards hold of packets that were sent.
    pub fn clear_network(&mut self) -> Cleared {
        let sections = self.devices.sections.clone();
        let mut cleared = Cleared::default();
        for section in &sections {
            match section.name.rsplit('/').next() {
                Some("e1000") => {
                    let begun = self.begun(section, "tx.size");
                    self.clear_from(section, "tx.data", begun, &mut cleared);
                    // The header is that of the packet in the making, if there is one.
                    let header = if begun == 0 { 0 } else { usize::MAX };
                    self.clear_from(section, "tx.header", header, &mut cleared);
                }
                Some("pcnet") => {
                    let begun = self.begun(section, "xmit_pos");
                    self.clear_from(section, "buffer", begun, &mut cleared);
                }
                _ => {}
            }
        }
        cleared
    }

    /// How many bytes of a packet are there already. Below zero is none.
    fn begun(&self, section: &Section, leaf: &str) -> usize {
        let field = section.fields.iter().find(|f| f.leaf() == leaf);
        let count = field.and_then(|f| self.value(f)).unwrap_or(0);
        usize::try_from(count).ok().filter(|n| i32::try_from(*n).is_ok()).unwrap_or(0)
    }

    fn clear_from(&mut self, section: &Section, leaf: &str, kept: usize, cleared: &mut Cleared) {
        for field in section.fields.iter().filter(|f| f.leaf() == leaf) {
            let start = field.range.start.saturating_add(kept).min(field.range.end);
            let rest = Field { path: String::new(), range: start..field.range.end };
            cleared.add(rest.range.len(), self.zero(&rest));
        }
    }
}
