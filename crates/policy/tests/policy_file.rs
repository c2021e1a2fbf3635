//! The policy file: what it says, and where it is wrong.

use elision_policy::{KernelLog, Policy, Video};
use std::path::Path;

fn parse(text: &str) -> Result<Policy, String> {
    Policy::parse(text, Path::new("p.toml")).map_err(|e| e.to_string())
}

#[test]
fn a_whole_file_is_read() {
    let text = r#"
        [[exclude]]
        exe = "/usr/bin/psql"
        optional = true
        children = false

        [[exclude]]
        uid = 1000

        [save]
        best-effort = true
        video = "blank"
        kernel-log = "clear"
    "#;
    let policy = parse(text).unwrap();
    let [first, second] = policy.selectors.as_slice() else { panic!("{policy:?}") };
    assert_eq!(
        (first.to_string().as_str(), first.optional, first.children),
        ("exe=/usr/bin/psql", true, false)
    );
    assert_eq!((second.to_string().as_str(), second.optional, second.children), ("uid=1000", false, true));
    assert!(policy.save.best_effort());
    assert_eq!(policy.save.video(), Video::Blank);
    assert_eq!(policy.save.kernel_log(), KernelLog::Clear);
    assert_eq!(parse("").unwrap(), Policy::default());
}

#[test]
fn errors_name_file_and_line() {
    let table = [
        ("\n[[exclude]]\ncom = \"x\"\n", "p.toml:3: unknown field `com`"),
        ("[[exclude]]\npid = \"x\"\n", "p.toml:2: invalid type"),
        ("[[exclude]]\npid = -1\n", "p.toml:2: invalid value"),
        ("[[exclude]]\npid = 0\n", "p.toml:2: `pid=0` is not a process id"),
        ("[[exclude]]\noptional = 1\ncomm = \"a\"", "p.toml:2: invalid type"),
        (
            "[[exclude]]\ncomm = \"a\"\n\n[[exclude]]\noptional = true\n",
            "p.toml:4: an exclude entry needs exactly one",
        ),
        ("[[exclude]]\ncomm = \"a\"\nuid = 3\n", "this one has comm, uid"),
        ("[[exclude]]\nuid = 3\ncomm = \"systemd-journald\"\n", "exactly one"),
        ("# x\n[[exclude]]\ncomm = \"systemd-journald\"\n", "p.toml:3: `comm=systemd-journald` has 16 bytes"),
        ("[[exclude]]\nexe = \"/[\"\n", "p.toml:2: The pattern of `exe=/[` is not a valid glob"),
        ("[save]\nbest_effort = true\n", "p.toml:2: unknown field `best_effort`"),
        ("[save]\nvideo = \"off\"\n", "p.toml:2: unknown variant `off`"),
        ("[save]\n[save]\n", "p.toml:2: "),
        ("[other]\n", "p.toml:1: unknown field `other`"),
        ("[exclude]\ncomm = \"a\"\n", "p.toml:1: "),
        ("a = [\n", "p.toml:"),
    ];
    for (text, part) in table {
        let message = parse(text).unwrap_err();
        assert!(message.contains(part), "{text:?}: {message}");
    }
}

#[test]
fn files_that_cannot_be_policies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    let message = |path: &Path| Policy::from_file(path).unwrap_err().to_string();
    assert!(message(&path).contains("Cannot read"));
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(message(&path).contains("more than 1048576 bytes"));
    std::fs::write(&path, "[[exclude]]\npid = 3\n").unwrap();
    assert_eq!(Policy::from_file(&path).unwrap().selectors.len(), 1);
}
