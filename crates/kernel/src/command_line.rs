//! The command line of a process, as `/proc/PID/cmdline` shows it.
//!
//! ```text
//! mm_struct: arg_start .. arg_end     in the process's own memory: words, each with a NUL behind it
//! ```
//! A process may write other text there (`nginx: worker process`), and then that is what it shows. The pages are the
//! process's: in swap, or never read from their file, they are not there to be looked at.

use crate::layout::layout;
use crate::tasks::Process;
use crate::{Kernel, KernelError};
use elision_memory::PAGE_SIZE;

layout! {
    pub(crate) struct CommandLineLayout {
        start: offset("mm_struct", &["arg_start"]),
        end: offset("mm_struct", &["arg_end"]),
    }
}

const WHAT: &str = "command line";
/// `MAX_ARG_STRLEN`: the longest word that a process is started with. Longer lines are not looked at.
const LIMIT: u64 = 128 << 10;

impl Kernel<'_> {
    /// The words of a process's command line; `None` if it has none, or if it is not in memory as a whole.
    pub fn command_line(&self, process: &Process) -> Result<Option<Vec<String>>, KernelError> {
        let layout = &self.profile.command_line;
        let Some(mm) = process.mm.filter(|_| !process.kernel_thread) else { return Ok(None) };
        let start = self.pointer(mm.wrapping_add(layout.start), WHAT)?;
        let end = self.pointer(mm.wrapping_add(layout.end), WHAT)?;
        let tables = self.mm(mm)?.tables;
        let known = end.0.checked_sub(start.0).filter(|len| *len <= LIMIT);
        let Some(len) = known.and_then(|len| usize::try_from(len).ok()) else { return Ok(None) };
        let user = tables.user_range();
        if start < user.start || end > user.end {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        let mut at = start;
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let n = rest.len().min(PAGE_SIZE - at.page_offset());
            let (now, later) = rest.split_at_mut(n);
            let Some(found) = tables.translate(self.ram, at) else { return Ok(None) };
            if self.ram.read(found.gpa, now).is_err() {
                return Ok(None);
            }
            at = at.wrapping_add(n as u64);
            rest = later;
        }
        Ok(Some(words(&bytes)))
    }

    /// What follows the program's name, joined by single spaces.
    pub fn arguments(&self, process: &Process) -> Result<Option<String>, KernelError> {
        let words = self.command_line(process)?;
        Ok(words.map(|words| words.get(1..).unwrap_or_default().join(" ")))
    }
}

/// Text written over the words ends in NULs, of which none is a word.
fn words(bytes: &[u8]) -> Vec<String> {
    let len = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    let text = bytes.get(..len).unwrap_or_default();
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|&b| b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_end_with_a_nul() {
        assert_eq!(words(b"sh\0-c\0\0a b\0"), ["sh", "-c", "", "a b"]);
        assert_eq!(words(b"nginx: worker process\0\0\0\0"), ["nginx: worker process"]);
        assert_eq!(words(b"no end"), ["no end"]);
        assert!(words(b"").is_empty() && words(b"\0\0").is_empty());
    }
}
