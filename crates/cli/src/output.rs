//! What a verb says: its result on stdout, for people or as JSON; notes and progress on stderr.

use crate::failure::Failure;
use crate::text::printable;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Where a verb's words go.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// An output for people, or for programs.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes the result: `value` as JSON, or else what `human` makes of it.
    pub(crate) fn result<T: Serialize>(
        &mut self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let mut text = if self.json {
            serde_json::to_string(value).map_err(|e| stdout_failed(&e.into()))?
        } else {
            human(value)
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // The reader, such as `head`, has seen enough.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(stdout_failed(&e)),
            _ => Ok(()),
        }
    }

    /// Says on stderr what is about to be done, for a verb whose stdout is another program's.
    pub(crate) fn announce<T: Serialize>(&mut self, value: &T, human: impl FnOnce(&T) -> String) {
        let text = if self.json { serde_json::to_string(value).unwrap_or_default() } else { human(value) };
        for line in text.lines() {
            let mark = if self.json { "" } else { "elision: " };
            let _ = writeln!(io::stderr(), "{mark}{line}");
        }
    }

    /// Says something on stderr that is no part of the result.
    pub(crate) fn note(&mut self, text: &str) {
        if !self.json {
            let _ = writeln!(io::stderr(), "elision: {}", printable(text));
        }
    }

    /// A sign of life for work whose length is not known. Drawn only for people at a terminal.
    pub(crate) fn spinner(&self, what: &'static str) -> ProgressBar {
        let bar = self.bar(ProgressBar::no_length(), "{spinner} {msg} {elapsed}", what);
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    /// A bar over `total` bytes. Drawn only for people at a terminal.
    pub(crate) fn progress(&self, what: &'static str, total: u64) -> ProgressBar {
        self.bar(ProgressBar::new(total), "{msg:20} [{bar:30}] {percent:>3}% of {total_bytes} {eta}", what)
    }

    fn bar(&self, bar: ProgressBar, style: &str, what: &'static str) -> ProgressBar {
        let shown = !self.json && io::stderr().is_terminal();
        bar.set_draw_target(if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.with_message(what)
    }
}

fn stdout_failed(error: &io::Error) -> Failure {
    Failure::io("write to", Path::new("stdout"), error)
}

/// A table without lines: columns whose title begins with `>` are aligned to the right.
pub(crate) fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(titles.iter().map(|title| title.trim_start_matches('>')));
    table.add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if titles.get(i).is_some_and(|title| title.starts_with('>')) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_no_line_ends_in_blanks() {
        let rows = [vec!["1".to_owned(), "init".to_owned()], vec!["812".to_owned(), "-".to_owned()]];
        let text = table(&[">PID", "COMM"], rows);
        assert_eq!(text, "PID  COMM\n  1  init\n812  -\n");
    }
}
