//! Serial ports keep bytes that were already received or sent: they are cleared.
//!
//! ```text
//! 16550 UART   rbr  last byte received         recv_fifo, xmit_fifo   16-byte rings: data, head, num
//!              thr, tsr  byte being sent
//! ```
//! Received bytes that the guest has not read yet are its input and stay.

use super::devices::{Field, Section};
use super::keyboard::waits;
use super::registers::Cleared;
use super::state::DeviceState;

const FIFO_ENABLED: u64 = 1;
const DATA_READY: u64 = 1;

impl DeviceState {
    /// Clears what 16550 serial ports hold besides unread input.
    pub fn clear_serial(&mut self) -> Cleared {
        let sections = self.devices.sections.clone();
        let mut cleared = Cleared::default();
        for section in sections.iter().filter(|s| s.name.contains("serial") && !s.name.contains("virtio")) {
            for field in &section.fields {
                match field.leaf() {
                    "thr" | "tsr" => cleared.add(field.range.len(), self.zero(field)),
                    "rbr" if !self.unread(section, field) => cleared.add(field.range.len(), self.zero(field)),
                    "data" if field.is_part("recv_fifo") || field.is_part("xmit_fifo") => {
                        self.clear_fifo(section, field, &mut cleared);
                    }
                    _ => {}
                }
            }
        }
        cleared
    }

    /// Whether the receive register holds a byte that the guest has yet to read.
    fn unread(&self, section: &Section, rbr: &Field) -> bool {
        let fifo = self.beside(section, rbr, "fcr_vmstate").unwrap_or(0) & FIFO_ENABLED != 0;
        let ready = self.beside(section, rbr, "lsr").unwrap_or(0) & DATA_READY != 0;
        ready && !fifo
    }

    fn clear_fifo(&mut self, section: &Section, data: &Field, cleared: &mut Cleared) {
        let head = self.beside(section, data, "head").unwrap_or(0);
        let count = self.beside(section, data, "num").unwrap_or(0);
        let len = data.range.len() as u64;
        for (i, position) in data.range.clone().enumerate() {
            if !waits(i as u64, head, count, len) {
                let byte = Field { path: String::new(), range: position..position + 1 };
                cleared.add(1, self.zero(&byte));
            }
        }
    }

    /// The value of the field `leaf` in the same structure as `field`.
    fn beside(&self, section: &Section, field: &Field, leaf: &str) -> Option<u64> {
        let folder = field.path.strip_suffix(field.leaf())?;
        let path = format!("{folder}{leaf}");
        section.fields.iter().find(|f| f.path == path).and_then(|f| self.value(f))
    }
}
