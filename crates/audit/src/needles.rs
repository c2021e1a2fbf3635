//! All patterns of all secrets, found in one pass.
//!
//! Each pattern gives an anchor: a few of its bytes, as many for every pattern, so that at one position
//! at most one anchor stands. Anchors are few and equal, which suits the vector search of the
//! `aho-corasick` crate; at each hit the patterns of that anchor are compared as a whole. So every
//! occurrence is found, those that overlap as well.

use crate::encoding::Pattern;
use crate::{AuditError, Encoding, Secrets};
use aho_corasick::{AhoCorasick, MatchKind, packed};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// Longest anchor; longer ones do not make the search faster.
const MAX_ANCHOR: usize = 8;

/// The secrets in every encoding, ready to search.
pub struct Needles {
    search: Search,
    anchor_len: usize,
    /// The patterns of each anchor.
    patterns: Vec<Vec<Needle>>,
    reach: usize,
}

struct Needle {
    secret: usize,
    encoding: Encoding,
    pattern: Pattern,
    /// Where the anchor stands in the pattern.
    anchor: usize,
}

enum Search {
    Vector(packed::Searcher),
    Automaton(AhoCorasick),
}

/// One occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hit {
    pub(crate) secret: usize,
    pub(crate) encoding: Encoding,
    /// Where the pattern begins in the searched bytes.
    pub(crate) start: usize,
    /// Bytes of the pattern, gaps included.
    pub(crate) len: usize,
}

impl Needles {
    /// Prepares the search for all secrets in all encodings.
    pub fn new(secrets: &Secrets) -> Result<Self, AuditError> {
        let mut needles = Vec::new();
        for (secret, bytes) in secrets.iter().enumerate() {
            for encoding in Encoding::ALL {
                for pattern in encoding.patterns(bytes) {
                    needles.push(Needle { secret, encoding, pattern, anchor: 0 });
                }
            }
        }
        let longest_pieces = needles.iter().map(|n| longest(&n.pattern).1.len());
        let anchor_len = longest_pieces.min().unwrap_or(0).min(MAX_ANCHOR);
        let reach = needles.iter().map(|n| n.pattern.len()).max().unwrap_or(0);

        let (mut anchors, mut patterns) = (Vec::new(), Vec::<Vec<Needle>>::new());
        let mut known = HashMap::new();
        for mut needle in needles {
            let (at, piece) = longest(&needle.pattern);
            let skip = best_window(piece, anchor_len);
            let anchor = piece.get(skip..skip + anchor_len).unwrap_or_default().to_vec();
            needle.anchor = at + skip;
            let index = *known.entry(anchor.clone()).or_insert_with(|| {
                anchors.push(anchor);
                patterns.push(Vec::new());
                patterns.len() - 1
            });
            if let Some(same) = patterns.get_mut(index) {
                same.push(needle);
            }
        }
        let vector = packed::Config::new().builder().extend(&anchors).build();
        let search = match vector {
            Some(searcher) => Search::Vector(searcher),
            None => Search::Automaton(
                AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(&anchors)?,
            ),
        };
        Ok(Self { search, anchor_len, patterns, reach })
    }

    /// Most bytes of any pattern: how far pieces that are searched apart must overlap.
    pub(crate) fn reach(&self) -> usize {
        self.reach
    }

    /// Bytes of an anchor.
    pub(crate) fn anchor_len(&self) -> usize {
        self.anchor_len
    }

    /// Calls `found` for each pattern that lies whole in `bytes` and whose anchor begins in `anchors`.
    pub(crate) fn find(&self, bytes: &[u8], anchors: Range<usize>, found: &mut dyn FnMut(Hit)) {
        let end = anchors.end.saturating_add(self.anchor_len - 1).min(bytes.len());
        let mut at = anchors.start;
        while at < end {
            let span = aho_corasick::Span { start: at, end };
            let next = match &self.search {
                Search::Vector(searcher) => {
                    searcher.find_in(bytes, span).map(|m| (m.pattern().as_usize(), m.start()))
                }
                Search::Automaton(automaton) => automaton
                    .find(aho_corasick::Input::new(bytes).span(span))
                    .map(|m| (m.pattern().as_usize(), m.start())),
            };
            let Some((index, position)) = next else { return };
            for needle in self.patterns.get(index).into_iter().flatten() {
                let Some(start) = position.checked_sub(needle.anchor) else { continue };
                let whole = needle.pattern.pieces.iter().all(|(offset, piece)| {
                    let from = start + offset;
                    bytes.get(from..from + piece.len()) == Some(piece.as_slice())
                });
                if whole {
                    let len = needle.pattern.len();
                    found(Hit { secret: needle.secret, encoding: needle.encoding, start, len });
                }
            }
            at = position + 1;
        }
    }
}

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Needles({} anchors)", self.patterns.len())
    }
}

fn longest(pattern: &Pattern) -> (usize, &[u8]) {
    let longest = pattern.pieces.iter().max_by_key(|(_, bytes)| bytes.len());
    longest.map_or((0, &[]), |(at, bytes)| (*at, bytes))
}

/// Where the anchor is best taken from: memory is full of zeros, so from where there are few, and not
/// beginning with one.
fn best_window(piece: &[u8], len: usize) -> usize {
    const TRIED: usize = 256;
    let score = |window: &[u8]| (window.first() != Some(&0), window.iter().filter(|&&b| b != 0).count());
    let windows = piece.windows(len.max(1)).take(TRIED).enumerate();
    windows.rev().max_by_key(|(_, window)| score(window)).map_or(0, |(at, _)| at)
}
