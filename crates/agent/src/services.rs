//! Services that are restarted in a restored copy, by systemd.
//!
//! ```text
//! systemctl --no-block restart NAME...
//! ```
//! For systemd the service's processes were killed. It is asked to restart the service and not waited for, as a service may
//! take as long as it likes to start. Only services of the first service manager: those of users have managers of their own.

use crate::hooks;
use elision_wire::note;
use std::process::Command;
use std::time::{Duration, Instant};

const SYSTEMCTL: &str = "systemctl";
/// For systemd to take the jobs.
const LIMIT: Duration = Duration::from_secs(20);
/// Most services of one save.
const MOST: usize = 256;
/// As systemd has it (`UNIT_NAME_MAX`).
const LONGEST: usize = 255;

/// The names that can be those of services; of the others it is said that they are none.
pub(crate) fn check(names: &[String], notes: &mut Vec<String>) -> Vec<String> {
    let (mut good, bad): (Vec<_>, Vec<_>) = names.iter().cloned().partition(|name| is_service(name));
    for name in bad {
        note(notes, &format!("`{}` is no name of a service and will not be restarted", name.escape_debug()));
    }
    if good.len() > MOST {
        note(notes, &format!("of {} services only {MOST} will be restarted", good.len()));
        good.truncate(MOST);
    }
    good
}

/// Has them restarted. Gives those that systemd has taken jobs for.
pub(crate) fn restart(names: Vec<String>, notes: &mut Vec<String>) -> Vec<String> {
    let mut done = Vec::new();
    let until = Instant::now() + LIMIT;
    // One by one, so that one that is not there leaves the others alone.
    for name in names {
        let mut command = Command::new(SYSTEMCTL);
        match hooks::run_until(command.args(["--no-block", "restart", "--", &name]), until) {
            Ok(()) => done.push(name),
            Err(why) => note(notes, &format!("{name} is not restarted: {SYSTEMCTL}: {why}")),
        }
    }
    done
}

fn is_service(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@:_.\\-".contains(c);
    let stem = name.strip_suffix(".service").unwrap_or_default();
    !stem.is_empty() && !stem.starts_with('-') && name.len() <= LONGEST && stem.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_services_are_taken() {
        let names = |list: &[&str]| list.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let good = names(&["nginx.service", "getty@tty1.service", r"a\x2db.service"]);
        let mut notes = Vec::new();
        assert_eq!(check(&good, &mut notes), good);
        assert!(notes.is_empty());
        let bad = names(&[
            "",
            ".service",
            "-x.service",
            "a b.service",
            "nginx",
            "x.target",
            "a/b.service",
            "\n.service",
        ]);
        assert!(check(&bad, &mut notes).is_empty());
        assert_eq!(notes.len(), bad.len());
        notes.clear();
        assert_eq!(check(&vec!["a.service".to_owned(); MOST + 1], &mut notes).len(), MOST);
        assert_eq!(notes.len(), 1);
    }
}
