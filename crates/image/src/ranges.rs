//! Sets of bytes of the RAM file, as ascending ranges that do not touch.

use elision_memory::FileOffset;
use std::ops::Range;

pub(crate) type Runs = Vec<Range<FileOffset>>;

/// What is in both.
pub(crate) fn common(a: &[Range<FileOffset>], b: &[Range<FileOffset>]) -> Runs {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut runs = Vec::new();
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        let run = x.start.max(y.start)..x.end.min(y.end);
        if run.start < run.end {
            runs.push(run);
        }
        if x.end < y.end {
            a.next()
        } else {
            b.next()
        };
    }
    runs
}

/// What of the first `len` bytes is in none of them.
pub(crate) fn rest(runs: &[Range<FileOffset>], len: u64) -> Runs {
    let starts = std::iter::once(FileOffset(0)).chain(runs.iter().map(|run| run.end));
    let ends = runs.iter().map(|run| run.start).chain(std::iter::once(FileOffset(len)));
    starts.zip(ends).map(|(start, end)| start..end).filter(|run| run.start < run.end).collect()
}

/// Adds a range that begins at the last one's end or behind it.
pub(crate) fn add(runs: &mut Runs, offset: FileOffset, len: usize) {
    let end = FileOffset(offset.0 + len as u64);
    match runs.last_mut() {
        Some(last) if last.end == offset => last.end = end,
        _ => runs.push(offset..end),
    }
}

/// A run in pieces of so many bytes; the last may be shorter.
pub(crate) fn pieces(
    run: &Range<FileOffset>,
    bytes: usize,
) -> impl Iterator<Item = Range<FileOffset>> + use<> {
    let end = run.end.0;
    let starts = (run.start.0..end).step_by(bytes);
    starts.map(move |start| FileOffset(start)..FileOffset((start + bytes as u64).min(end)))
}

/// What of `runs`, which ascend, lies in a range.
pub(crate) fn within<'a>(
    runs: &'a [Range<FileOffset>],
    range: &Range<u64>,
) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let Range { start, end } = *range;
    let from = runs.partition_point(|run| run.end.0 <= start);
    let runs = runs.get(from..).unwrap_or_default().iter().take_while(move |run| run.start.0 < end);
    runs.map(move |run| run.start.0.max(start)..run.end.0.min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(u64, u64)]) -> Runs {
        of.iter().map(|(start, end)| FileOffset(*start)..FileOffset(*end)).collect()
    }

    #[test]
    fn sets_are_cut() {
        let (a, b) = (runs(&[(0, 4), (6, 9), (12, 20)]), runs(&[(2, 7), (8, 13), (19, 30)]));
        let both = runs(&[(2, 4), (6, 7), (8, 9), (12, 13), (19, 20)]);
        assert_eq!(common(&a, &b), both);
        assert_eq!(common(&b, &a), both);
        assert_eq!(common(&a, &[]), []);
        assert_eq!(rest(&a, 22), runs(&[(4, 6), (9, 12), (20, 22)]));
        assert_eq!(rest(&a, 20), runs(&[(4, 6), (9, 12)]));
        assert_eq!(rest(&[], 5), runs(&[(0, 5)]));
    }
}
