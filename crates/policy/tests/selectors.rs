//! What each kind of selector matches, and what it refuses.

use elision_policy::{ProcessFacts, Selector};
use proptest::prelude::*;

const PSQL: ProcessFacts<'static> = ProcessFacts {
    pid: 42,
    comm: "psql",
    exe: Some("/usr/lib/postgresql/15/bin/psql"),
    args: Some("-h db prod --file=/srv/a.sql"),
    uid: 1000,
    cgroup: Some("/user.slice/user-1000.slice/session-2.scope"),
    tty: Some("pts/3"),
};

#[test]
fn selectors_match_what_they_say_and_nothing_else() {
    let table: &[(&str, bool)] = &[
        ("pid=42", true),
        ("pid=4", false),
        ("comm=psql", true),
        ("comm=psq", false),
        ("comm=*", false), // names are not globs
        ("exe=/usr/lib/postgresql/15/bin/psql", true),
        ("exe=/usr/lib/postgresql/*/bin/psql", true),
        ("exe=/usr/lib/postgresql/1?/bin/psql", true),
        ("exe=/usr/lib/postgresql/1[0-4]/bin/psql", false),
        ("exe=/usr/*/psql", false), // `*` does not cross a slash
        ("exe=/usr/**/psql", true), // `**` does
        ("exe=**/psql", true),
        ("exe=**/psq", false),
        ("exe=/usr/lib/postgresql/{14,15}/bin/*", true),
        ("uid=1000", true),
        ("uid=0", false),
        ("cgroup=/user.slice/user-1000.slice/session-2.scope", true),
        ("cgroup=/user.slice", true), // with descendants
        ("cgroup=user.slice/", true),
        ("cgroup=/user.slice/user-*.slice", true),
        ("cgroup=/", true),
        ("cgroup=/user", false), // not a part of a name
        ("cgroup=/user.slice/user-1.slice", false),
        ("cgroup=**/session-2.scope", true),
        ("tty=pts/3", true),
        ("tty=/dev/pts/3", true),
        ("tty=pts3", true),
        ("tty=pts/33", false),
        ("tty=tty3", false),
        ("unit=session-2.scope", true),
        ("unit=session-*.scope", true),
        ("unit=session-2", false),
        ("unit=user-1000.slice", true),
        ("container=0123456789ab", false),
    ];
    for (text, expected) in table {
        let selector: Selector = text.parse().unwrap();
        assert_eq!(selector.matches(&PSQL), *expected, "{text}");
        assert!(selector.children && !selector.optional);
    }
}

#[test]
fn a_fact_that_is_not_there_never_matches() {
    let kernel_thread = ProcessFacts { exe: None, cgroup: None, tty: None, ..PSQL };
    for text in ["exe=/**", "cgroup=/", "tty=pts/3"] {
        let selector: Selector = text.parse().unwrap();
        assert!(selector.matches(&PSQL), "{text}: control");
        assert!(!selector.matches(&kernel_thread), "{text}");
    }
}

#[test]
fn files_and_regions_are_no_processes() {
    for text in ["file=/**", "region=named", "region=secretmem", "region=dontdump"] {
        let selector: Selector = text.parse().unwrap();
        assert!(!selector.matches(&PSQL) && !selector.children, "{text}");
        assert!(selector.is_about(&PSQL), "{text}: of all processes");
    }
}

#[test]
fn other_spellings_of_the_guest_are_understood() {
    let replaced = ProcessFacts { exe: Some("/usr/bin/vim (deleted)"), tty: Some("/dev/ttyS0"), ..PSQL };
    for text in ["exe=/usr/bin/vim", "tty=ttyS0", "tty=/dev/ttyS0"] {
        assert!(text.parse::<Selector>().unwrap().matches(&replaced), "{text}");
    }
    let kernel_name = ProcessFacts { tty: Some("pts3"), ..PSQL };
    assert!("tty=pts/3".parse::<Selector>().unwrap().matches(&kernel_name));
}

#[test]
fn what_cannot_match_is_refused_with_advice() {
    let table = [
        ("psql", "KIND=PATTERN"),
        ("name=psql", "`name` is not a kind"),
        ("PID=1", "`PID` is not a kind"),
        ("comm=", "is empty"),
        ("tty=/dev/", "is empty"),
        ("pid=0", "not a process id"),
        ("pid=-3", "not a process id"),
        ("pid=4294967296", "not a process id"),
        ("uid=root", "give the number"),
        ("comm=systemd-journald", "first 15"),
        ("comm=systemd-journald", "comm=systemd-journal,"),
        ("exe=psql", "exe=**/psql"),
        ("exe=/usr/[bin", "not a valid glob"),
        ("cgroup=/a{b", "not a valid glob"),
        ("comm=a\nb", "control characters"),
        ("file=etc/passwd", "file=**/etc/passwd"),
        ("file=/[", "not a valid glob"),
        ("unit=system.slice/a.service", "with cgroup="),
        ("container=/docker/1", "with cgroup="),
        ("region=secret", "named, secretmem, dontdump"),
    ];
    for (text, part) in table {
        let message = text.parse::<Selector>().unwrap_err().to_string();
        assert!(message.contains(part), "{text:?}: {message}");
    }
    assert!("comm=systemd-journal".parse::<Selector>().is_ok(), "15 bytes are a whole name");
    let long = format!("exe=/{}", "a".repeat(5000));
    assert!(long.parse::<Selector>().unwrap_err().to_string().contains("4096"));
}

proptest! {
    #[test]
    fn any_text_is_a_selector_or_an_error(text in ".{0,80}", kind in 0..elision_policy::Kind::ALL.len()) {
        let _ = text.parse::<Selector>();
        let text = format!("{}={text}", elision_policy::Kind::ALL[kind]);
        if let Ok(selector) = text.parse::<Selector>() {
            let again: Selector = selector.to_string().parse().unwrap();
            prop_assert_eq!(again, selector.clone());
            let _ = selector.matches(&PSQL);
        }
    }
}
