//! Globs over paths, as a shell's user expects them.
//!
//! | pattern | matches |
//! |---|---|
//! | `*`, `?` | any characters, one character; never `/` |
//! | `**` | any number of directories, none too (as a whole component) |
//! | `[ab]`, `[!a-f]` | one character of a set, one outside it |
//! | `{x,y}` | either of these |
//! | `\*` | the character itself |

use globset::{GlobBuilder, GlobMatcher};
use std::fmt;

/// A compiled glob that remembers how it was written.
#[derive(Clone)]
pub struct PathGlob {
    text: String,
    matcher: GlobMatcher,
}

impl PathGlob {
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        Self::build(text, true)
    }

    /// A glob over text in which `/` is a character like any other.
    pub(crate) fn over_text(text: &str) -> Result<Self, String> {
        Self::build(text, false)
    }

    fn build(text: &str, is_path: bool) -> Result<Self, String> {
        let glob = GlobBuilder::new(text)
            .literal_separator(is_path)
            .backslash_escape(true)
            .build()
            .map_err(|e| e.kind().to_string())?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }

    /// Whether the glob matches the whole path.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.matcher.is_match(path)
    }

    /// Whether the glob matches the path or a directory above it.
    #[must_use]
    pub fn matches_or_holds(&self, path: &str) -> bool {
        let parents =
            path.char_indices().filter(|&(_, c)| c == '/').filter_map(|(i, _)| path.get(..i.max(1)));
        self.matches(path) || parents.into_iter().any(|parent| self.matches(parent))
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for PathGlob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathGlob {}

impl fmt::Debug for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathGlob({:?})", self.text)
    }
}
