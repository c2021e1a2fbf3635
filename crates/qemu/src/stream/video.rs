//! Blanks the screen: video memory shows what terminals of excluded processes showed.

use super::ram::Page;
use super::state::DeviceState;

/// What blanking the screen did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blanked {
    /// Pages of video memory that held something.
    pub pages: usize,
    /// Display devices whose memory has a form that cannot be blanked.
    pub left: Vec<String>,
}

impl DeviceState {
    /// Fills the memory of VGA-like displays with zeros.
    pub fn blank_video(&mut self) -> Blanked {
        let mut blanked = Blanked::default();
        let blocks = self.ram.blocks.iter();
        let video: Vec<bool> = blocks.map(|b| b.name.ends_with("vram") && !is_opaque(&b.name)).collect();
        for (&(block, _), page) in &mut self.ram.pages {
            if video.get(block) == Some(&true) && *page != Page::Fill(0) {
                *page = Page::Fill(0);
                blanked.pages += 1;
            }
        }
        let sections = self.devices.sections.clone();
        for section in &sections {
            if is_opaque(&section.name) {
                blanked.left.push(section.name.clone());
            }
            // The last word read from video memory, kept for the card's bit operations.
            for field in section.fields.iter().filter(|f| f.path == "vga/latch" || f.path == "latch") {
                self.zero(field);
            }
        }
        blanked
    }
}

/// Displays that keep pixels inside of their protocol's own structures.
fn is_opaque(name: &str) -> bool {
    ["qxl", "virtio-gpu", "vmsvga"].iter().any(|o| name.contains(o))
}
