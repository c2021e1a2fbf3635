//! The policy file: what it says, and where it is wrong.

use elision_policy::{Cache, Dependents, Dirty, KernelLog, Policy, ProcessFacts, Region, Video};
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
        dependents = "refuse"
        cache = "exclude"
        dirty = "wait"
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
    assert_eq!(policy.save.dependents(), Dependents::Refuse);
    assert_eq!((policy.save.cache(), policy.save.dirty()), (Cache::Exclude, Dirty::Wait));
    assert_eq!(parse("").unwrap(), Policy::default());
}

const SERVER: ProcessFacts<'static> = ProcessFacts {
    pid: 7,
    comm: "python3",
    exe: Some("/usr/bin/python3.11"),
    args: Some("-u /srv/vault/main.py --port 80"),
    uid: 0,
    cgroup: None,
    tty: None,
};

#[test]
fn arguments_narrow_an_exe() {
    for (args, expected) in [
        ("*", true),
        ("* /srv/vault/*", true), // `*` crosses a slash here
        ("-u /srv/vault/main.py --port 80", true),
        ("-u /srv/vault/main.py", false), // all of it or not
        ("*--port 8080*", false),
        ("", false),
    ] {
        let policy = parse(&format!("[[exclude]]\nexe = '/usr/bin/python3*'\nargs = '{args}'\n")).unwrap();
        let selector = &policy.selectors[0];
        assert_eq!(selector.matches(&SERVER), expected, "{args}");
        assert!(!selector.matches(&ProcessFacts { args: None, ..SERVER }), "{args}: not known");
        assert!(
            !selector.matches(&ProcessFacts { exe: Some("/bin/sh"), ..SERVER }),
            "{args}: another program"
        );
        assert_eq!(selector.to_string(), format!("exe=/usr/bin/python3* args={args}"));
    }
}

#[test]
fn files_and_regions_are_kept_apart_from_processes() {
    let policy = parse(
        "[[exclude]]\nfile = '/srv/**'\n[[exclude]]\nregion = 'named'\ncomm = 'python3'\n\
         [[exclude]]\nuid = 3\n[[exclude]]\nregion = 'dontdump'\noptional = true\n",
    )
    .unwrap();
    assert_eq!(policy.processes().map(ToString::to_string).collect::<Vec<_>>(), ["uid=3"]);
    let files: Vec<_> = policy.files().map(|(s, glob)| (s.to_string(), glob.matches("/srv/a/b"))).collect();
    assert_eq!(files, [("file=/srv/**".to_owned(), true)]);
    let regions: Vec<_> = policy.regions().collect();
    let [(named, Region::Named), (all, Region::Dontdump)] = regions.as_slice() else { panic!("{regions:?}") };
    assert_eq!((named.to_string().as_str(), all.optional), ("region=named comm=python3", true));
    let other = ProcessFacts { comm: "other", ..SERVER };
    assert!(named.is_about(&SERVER) && !named.is_about(&other) && all.is_about(&other));
    let json = serde_json::to_value(named).unwrap();
    assert_eq!(json["of"], serde_json::json!({"kind": "comm", "pattern": "python3"}));
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
        ("[[exclude]]\nfile = '/a'\nuid = 3\n", "this one has uid, file"),
        ("[[exclude]]\nfile = '/a'\nregion = 'named'\n", "this one has file, region"),
        ("[[exclude]]\nregion = 'named'\nuid = 3\ncomm = 'a'\n", "this one has comm, uid, region"),
        ("[[exclude]]\nregion = 'secret'\n", "p.toml:2: `region=secret` is not a kind of region"),
        ("[[exclude]]\nfile = '/a'\nchildren = true\n", "p.toml:3: `children` has no meaning for a file"),
        ("[[exclude]]\ncomm = 'a'\non_restore = 'restart'\n", "p.toml:3: `on_restore` is about a `unit`"),
        ("[[exclude]]\ncomm = 'a'\nargs = '*'\n", "p.toml:3: `args` narrows `exe`"),
        ("[[exclude]]\nexe = '/a'\nargs = '['\n", "p.toml:3: The pattern of `args=[` is not a valid glob"),
        ("[save]\ndependents = \"drop\"\n", "p.toml:2: unknown variant `drop`"),
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
