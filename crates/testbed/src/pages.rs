//! Parts of the documentation that the tests write.

use crate::error::{Context, Error};
use std::path::Path;

/// Whether the tests run in their full form, in which they write down what they found.
#[must_use]
pub fn in_full() -> bool {
    std::env::var_os("ELISION_ALL").is_some()
}

/// Whether `ELISION_WAY` names the way in which memory comes out of the VMs. What is found so is not written down.
#[must_use]
pub fn by_way() -> bool {
    std::env::var_os("ELISION_WAY").is_some()
}

/// How what is measured was built, for pages with times.
pub const BUILD: &str = if cfg!(debug_assertions) { "as for tests" } else { "for release" };

/// Replaces the lines between `<!-- NAME -->` and `<!-- end of NAME -->` of a page of the repository, but not
/// [`by_way`].
///
/// # Panics
/// When the page has no such section.
pub fn write_section(page: &str, name: &str, lines: &[String]) -> Result<(), Error> {
    if by_way() {
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page);
    let text = std::fs::read_to_string(&path).context("read", &path)?;
    let new = with_section(&text, name, lines).unwrap_or_else(|| panic!("{page} has no section {name}"));
    std::fs::write(&path, new).context("write", &path)
}

/// Writes `docs/results/NAME.md`, one page for each test so that tests may run side by side, but not [`by_way`].
pub fn write_result(name: &str, title: &str, lines: &[String]) -> Result<(), Error> {
    if by_way() {
        return Ok(());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    std::fs::create_dir_all(&folder).context("create", &folder)?;
    let path = folder.join(format!("{name}.md"));
    let text = format!("# {title}\n\nWritten by `./test --all`.\n\n{}\n", lines.join("\n"));
    std::fs::write(&path, text).context("write", &path)
}

fn with_section(text: &str, name: &str, lines: &[String]) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let start = text.find(&begin)? + begin.len();
    let stop = start + text.get(start..)?.find(&end)?;
    Some(format!("{}{}\n{}", text.get(..start)?, lines.join("\n"), text.get(stop..)?))
}

#[cfg(test)]
mod tests {
    use super::with_section;

    #[test]
    fn only_the_section_changes() {
        let page = "before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n";
        let new = with_section(page, "a", &["one".into(), "two".into()]).unwrap();
        assert_eq!(new, "before\n<!-- a -->\none\ntwo\n<!-- end of a -->\nafter\n");
        assert_eq!(with_section(page, "b", &[]), None);
    }
}
