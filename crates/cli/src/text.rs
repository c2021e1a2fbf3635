//! Text for people: names that a guest chose, sizes, counts.

use std::fmt::Write;

/// Text that a guest or a file chose, without what a terminal would act on: control characters and
/// marks that change the direction of writing are shown by their number.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The same for what may be missing.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), printable)
}

/// A size in the unit that fits, such as `12.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10 + (1 << (shift - 1))) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// A count with its noun, such as `1 frame` or `3 frames`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    let mut text = format!("{n} {noun}");
    if n != 1 {
        text.push_str(if noun.ends_with("ss") { "es" } else { "s" });
    }
    text
}

/// A command as a shell would take it.
pub(crate) fn shell(words: &[String]) -> String {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            line.push_str(word);
        } else {
            let _ = write!(line, "'{}'", word.replace('\'', r"'\''"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        assert_eq!(printable("a\x1b[31m\u{9b}\u{202e}é"), "a\\u{1b}[31m\\u{9b}\\u{202e}é");
    }

    #[test]
    fn sizes_are_rounded_to_a_tenth() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(4096), "4.0 KiB");
        assert_eq!(size(12 * (1 << 20) + (1 << 19)), "12.5 MiB");
        assert_eq!(size(u64::MAX), "17179869184.0 GiB");
    }

    #[test]
    fn counts_have_their_plural() {
        assert_eq!(count(1, "process"), "1 process");
        assert_eq!(count(2, "process"), "2 processes");
        assert_eq!(count(0, "frame"), "0 frames");
    }

    #[test]
    fn a_shell_takes_the_words_apart_again() {
        let words = ["qemu".to_owned(), "-append".to_owned(), "a b 'c'".to_owned(), String::new()];
        assert_eq!(shell(&words), r"qemu -append 'a b '\''c'\''' ''");
    }
}
