//! What was found: which secret by its index, how it was written, how often, and where first.

use crate::Encoding;
use crate::needles::Hit;
use elision_memory::{FileOffset, Gpa};
use serde::Serialize;
use std::collections::BTreeMap;

/// Where a secret begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum Place {
    /// In guest memory.
    Ram {
        /// Its guest-physical address.
        gpa: Gpa,
    },
    /// In a part of the RAM file that is not guest memory.
    RamFile {
        /// Where in the file.
        offset: FileOffset,
    },
    /// In device state or another file.
    State {
        /// Offset from the start.
        offset: u64,
    },
}

/// One secret in one encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Index of the secret, from 0.
    pub secret: usize,
    /// How it was written.
    pub encoding: Encoding,
    /// How often it was found.
    pub count: u64,
    /// The first places, ascending.
    pub places: Vec<Place>,
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing found means an empty list.
    pub findings: Vec<Finding>,
    /// Bytes that were searched; holes of a file count as searched.
    pub searched: u64,
}

impl Report {
    /// How often a secret was found, in all encodings.
    #[must_use]
    pub fn count(&self, secret: usize) -> u64 {
        self.findings.iter().filter(|f| f.secret == secret).map(|f| f.count).sum()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Counts of a part of the search, to be added to those of others.
#[derive(Debug, Default)]
pub(crate) struct Tally(BTreeMap<(usize, Encoding), (u64, Vec<Place>)>);

impl Tally {
    pub(crate) fn add(&mut self, hit: Hit, place: Place, most: usize) {
        let (count, places) = self.0.entry((hit.secret, hit.encoding)).or_default();
        *count += 1;
        if places.len() < most {
            places.push(place);
        }
    }

    pub(crate) fn merge(mut self, other: Self, most: usize) -> Self {
        for (key, (more, its)) in other.0 {
            let (count, places) = self.0.entry(key).or_default();
            *count += more;
            places.extend(its);
            places.sort_unstable();
            places.truncate(most);
        }
        self
    }

    pub(crate) fn into_report(self, searched: u64) -> Report {
        let findings = self.0.into_iter().map(|((secret, encoding), (count, places))| Finding {
            secret,
            encoding,
            count,
            places,
        });
        Report { findings: findings.collect(), searched }
    }
}
