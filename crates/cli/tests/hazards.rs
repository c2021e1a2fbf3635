//! The hazard table names tests that exist.

use std::fs;
use std::path::Path;

/// Every `file::test` in the table, as it is written there.
fn named_tests(page: &str) -> Vec<&str> {
    let spans = page.split('`').skip(1).step_by(2);
    spans.filter(|span| span.contains(".rs::")).collect()
}

/// Whether the file below `crates` has a function of that name which is a test.
fn is_test(crates: &Path, named: &str) -> bool {
    let Some((file, name)) = named.split_once("::") else { return false };
    let text = fs::read_to_string(crates.join(file)).unwrap_or_default();
    let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
    // A test in a program of its own stands in a list instead.
    let lines = before.trim_end().lines().rev().take(6);
    let mut attributes = lines.take_while(|line| !line.trim().is_empty() && line.trim() != "}");
    attributes.any(|line| line.trim() == "#[test]") || text.contains(&format!("(\"{name}\", {name})"))
}

#[test]
fn every_test_of_the_table_exists() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(crates.join("../docs/hazards.md")).unwrap();
    let named = named_tests(&page);
    assert!(named.len() > 50, "control: the table names {} tests", named.len());
    let missing: Vec<&&str> = named.iter().filter(|test| !is_test(&crates, test)).collect();
    assert!(missing.is_empty(), "docs/hazards.md names tests that are not there: {missing:#?}");
    for absent in ["cli/tests/hazards.rs::no_such_test", "cli/tests/hazards.rs::is_test", "no/file.rs::x"] {
        assert!(!is_test(&crates, absent), "control: {absent}");
    }
}
