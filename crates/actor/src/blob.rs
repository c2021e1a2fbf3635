//! How ground truth is framed: tagged blobs, one after the other, in one zstd frame.
//!
//! ```text
//! zstd( "\n@@TAG LENGTH\n" bytes ... "\n@@END 0\n" )
//! ```
//! A dump without its `END` blob is not whole. Tags hold no blank.

/// Tag of the last blob.
pub const END: &str = "END";

/// Appends one blob.
pub fn append(out: &mut Vec<u8>, tag: &str, bytes: &[u8]) {
    out.extend_from_slice(format!("\n@@{tag} {}\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

/// Splits blobs; `None` where the framing is broken or the end is missing.
#[must_use]
pub fn split(mut rest: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let mut blobs = Vec::new();
    loop {
        rest = rest.strip_prefix(b"\n@@")?;
        let line = rest.iter().take(400).position(|b| *b == b'\n')?;
        let (tag, len) = std::str::from_utf8(&rest[..line]).ok()?.split_once(' ')?;
        if tag == END {
            return Some(blobs);
        }
        let (bytes, after) = rest[line + 1..].split_at_checked(len.parse().ok()?)?;
        blobs.push((tag.to_owned(), bytes));
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_come_back_and_a_cut_dump_does_not() {
        let mut out = Vec::new();
        append(&mut out, "maps/1", b"one\n@@not a tag");
        append(&mut out, "empty", b"");
        append(&mut out, END, b"");
        let expected = vec![("maps/1".to_owned(), &b"one\n@@not a tag"[..]), ("empty".to_owned(), &b""[..])];
        assert_eq!(split(&out), Some(expected));
        for cut in 0..out.len() - 1 {
            assert_eq!(split(&out[..cut]), None, "cut at {cut}");
        }
    }
}
