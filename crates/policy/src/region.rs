//! Marked memory of a process that stays.

use crate::PolicyError;
use std::fmt;
use std::str::FromStr;

/// How a process marks memory that is to be left out of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// By a name that begins with `elision:`, of anonymous memory or of a memfd.
    Named,
    /// By taking it from `memfd_secret`.
    Secretmem,
    /// By `MADV_DONTDUMP`.
    Dontdump,
}

impl Region {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Named, Self::Secretmem, Self::Dontdump];

    /// The word in a policy.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Secretmem => "secretmem",
            Self::Dontdump => "dontdump",
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Region {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let region = Self::ALL.into_iter().find(|r| r.name() == text);
        region.ok_or_else(|| PolicyError::BadRegion(text.to_owned()))
    }
}
