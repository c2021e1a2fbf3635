//! Virtual consoles (`drivers/tty/vt`): the text that stands on their screens.
//!
//! ```text
//! vc_data: vc_screenbuf         a character and its colour for each cell
//!          vc_uni_lines[row]    the same characters, four bytes each, if they are kept
//!          vc_saved_screen, vc_saved_uni_lines[row]       what stood there before a full-screen program
//! vc_sel:  buffer               what was marked with the mouse, on the screen `cons` or on one since left
//! ```
//!
//! The cells of the screen in front may stand in the memory of the graphics card instead.

use crate::layout::layout;
use crate::{Content, Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct ScreenLayout {
        columns: number_opt("vc_data", &["vc_cols"]),
        rows: number_opt("vc_data", &["vc_rows"]),
        cells: optional("vc_data", &["vc_screenbuf"]),
        cells_len: number_opt("vc_data", &["vc_screenbuf_size"]),
        lines: optional("vc_data", &["vc_uni_lines", "vc_uni_screen"]),
        saved_cells: optional("vc_data", &["vc_saved_screen"]),
        saved_lines: optional("vc_data", &["vc_saved_uni_lines"]),
        saved_columns: number_opt("vc_data", &["vc_saved_cols"]),
        saved_rows: number_opt("vc_data", &["vc_saved_rows"]),
        marked_on: optional("vc_selection", &["cons"]),
        marked: optional("vc_selection", &["buffer"]),
        marked_len: number_opt("vc_selection", &["buf_len"]),
    }
}

const WHAT: &str = "virtual console";
/// `VC_MAXCOL` and `VC_MAXROW`.
const SIDE_LIMIT: u64 = 32767;
/// Bytes of a cell, and of a character of its own.
const CELL: u64 = 2;
const CHARACTER: u64 = 4;

impl Kernel<'_> {
    /// The text of a virtual console (`vc_data`).
    pub(crate) fn screen_content(
        &self,
        console: Gva,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.screen;
        let (Some(columns), Some(rows), Some(cells), Some(cells_len)) =
            (layout.columns, layout.rows, layout.cells, layout.cells_len)
        else {
            return Ok(());
        };
        let (columns, rows) = (self.number(console, columns, WHAT)?, self.number(console, rows, WHAT)?);
        let cells = self.pointer(console.wrapping_add(cells), WHAT)?;
        self.buffer(cells, self.number(console, cells_len, WHAT)?, visit)?;
        self.screen_lines(console, layout.lines, columns, rows, visit)?;

        if let (Some(cells), Some(columns), Some(rows)) =
            (layout.saved_cells, layout.saved_columns, layout.saved_rows)
        {
            let (columns, rows) = (self.number(console, columns, WHAT)?, self.number(console, rows, WHAT)?);
            let cells = self.pointer(console.wrapping_add(cells), WHAT)?;
            self.buffer(cells, columns.min(SIDE_LIMIT) * rows.min(SIDE_LIMIT) * CELL, visit)?;
            self.screen_lines(console, layout.saved_lines, columns, rows, visit)?;
        }
        self.marked_text(console, visit)
    }

    fn screen_lines(
        &self,
        console: Gva,
        lines: Option<u64>,
        columns: u64,
        rows: u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let Some(lines) = lines else { return Ok(()) };
        let lines = self.pointer(console.wrapping_add(lines), WHAT)?;
        if lines.0 == 0 {
            return Ok(());
        }
        if columns > SIDE_LIMIT || rows > SIDE_LIMIT {
            let why = "its screen is larger than it can be";
            return Err(KernelError::Torn { what: WHAT, at: console, why });
        }
        for row in 0..rows {
            let line = self.pointer(lines.wrapping_add(8 * row), WHAT)?;
            self.buffer(line, columns * CHARACTER, visit)?;
        }
        Ok(())
    }

    fn marked_text(&self, console: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.screen;
        let (Some(selection), Some(on), Some(text), Some(len)) =
            (self.symbol("vc_sel"), layout.marked_on, layout.marked, layout.marked_len)
        else {
            return Ok(());
        };
        let on = self.pointer(selection.wrapping_add(on), WHAT)?;
        if on.0 == 0 || on == console {
            let text = self.pointer(selection.wrapping_add(text), WHAT)?;
            self.buffer(text, self.number(selection, len, WHAT)?, visit)?;
        }
        Ok(())
    }
}
