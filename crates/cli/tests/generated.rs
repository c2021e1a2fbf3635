//! `elision generate`: every verb has its man page, the hidden one has none, and completions know them.

use std::fs;
use std::process::Command;

#[test]
fn man_pages_and_completions_come_from_the_definition() {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_elision"))
        .args(["generate", "--json"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let result: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let listed = result["files"].as_array().unwrap().len();

    let names = |sub: &str| {
        let entries = fs::read_dir(folder.path().join(sub)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let verbs = [
        "audit", "gc", "generate", "inspect", "list", "plan", "policy", "ps", "restore", "rm", "merge",
        "run", "save", "verify",
    ];
    let mut pages: Vec<String> = verbs.iter().map(|verb| format!("elision-{verb}.1")).collect();
    pages.extend(["elision.1", "elision-policy-check.1"].map(str::to_owned));
    pages.sort();
    assert_eq!(names("man1"), pages);
    assert_eq!(listed, pages.len() + names("completions").len());

    let page = fs::read_to_string(folder.path().join("man1/elision-save.1")).unwrap();
    for part in ["elision\\-save", "\\-\\-exclude", "Examples:"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let bash = fs::read_to_string(folder.path().join("completions/elision.bash")).unwrap();
    assert!(
        verbs.iter().all(|verb| bash.contains(&format!("elision__subcmd__{verb}")))
            || bash.contains("elision,save")
    );
    assert!(bash.contains("--secret-file"));
}
