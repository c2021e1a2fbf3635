//! Sockets of which not everything is known that they hold: refused and named, or let pass on the user's word and
//! recorded.

mod support;

use elision_testbed::{GuestOptions, Spawn};
use support::{Images, elision, json, modules, refuses, save};

/// Places of the actor, the modules that they need, and what is said of them.
const KINDS: [(&str, Option<&str>, &str); 3] = [
    ("mptcp", None, "a socket of MPTCP"),
    ("af-alg", Some("af_alg"), "a socket of the kernel's cryptography (AF_ALG)"),
    ("tls", Some("tls"), "a socket of TCP with tls in the kernel"),
];

#[test]
fn sockets_that_are_not_known_are_refused_and_named_or_recorded() {
    let options = GuestOptions::new("7");
    let mut guest = options.boot().expect("the guest boots");
    let images = Images::new();
    let image = images.path("vm.elision");
    let known = guest.control().spawn(&Spawn::new("known", "tcp-unread", "block")).expect("a process").pid;
    for (place, module, what) in KINDS {
        if let Some(module) = module {
            modules::load(&mut guest, &options, module);
        }
        let spawn = Spawn::new(place, place, "block").uid(1234);
        let pid = guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{place}: {e}")).pid;
        let words = format!("process {pid} has {what}: what it holds is not known");
        refuses(&mut save(&guest, &image, &[&format!("pid={pid}")]), 3, &[&words]);
        assert_eq!(images.names(), Vec::<String>::new());
    }
    // The control: what nobody excluded has is in nobody's way.
    json(&mut save(&guest, &image, &[&format!("pid={known}")]));
    std::fs::remove_dir_all(&image).expect("the image");

    json(save(&guest, &image, &["uid=1234"]).arg("--best-effort"));
    let facts = json(elision().arg("inspect").arg(&image));
    let listed = facts["completeness"]["unaccounted"].to_string();
    assert!(KINDS.iter().all(|(.., what)| listed.contains(what)), "{listed}");
    guest.control().ping().expect("the guest runs on");
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}
