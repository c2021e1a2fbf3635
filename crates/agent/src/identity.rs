//! What makes a clone another machine than its source: name and machine id. Leases of DHCP and keys of servers are for
//! hooks, as only the guest's owner knows them.

use crate::error::{AgentError, Context};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs;
use std::path::Path;

const HOSTNAME: &str = "/etc/hostname";
const MACHINE_ID: &str = "/etc/machine-id";

/// Gives the machine another name, now and after a reboot.
pub(crate) fn set_hostname(name: &str) -> Result<(), AgentError> {
    if !is_hostname(name) {
        return Err(AgentError::Other(format!("`{}` cannot be the name of a machine", name.escape_debug())));
    }
    rustix::system::sethostname(name.as_bytes()).context("set", "the machine's name")?;
    replace(Path::new(HOSTNAME), &format!("{name}\n"))
}

/// Makes a new `/etc/machine-id`; gives it.
pub(crate) fn new_machine_id() -> Result<String, AgentError> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("read", "random numbers")?;
    // As systemd makes them: a random UUID.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let id: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    replace(Path::new(MACHINE_ID), &format!("{id}\n"))?;
    Ok(id)
}

/// Labels of letters, digits and dashes, as RFC 1123 has them.
fn is_hostname(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 64 && name.split('.').all(is_label)
}

/// A new content for a file, whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), AgentError> {
    let beside = path.with_extension("elision-new");
    fs::write(&beside, text).context("write", &beside)?;
    fs::rename(&beside, path).context("replace", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_machines_are_told_from_others() {
        for name in ["web", "web-2.example.org", "7"] {
            assert!(is_hostname(name), "{name}");
        }
        for name in ["", "-a", "a-", "a..b", "a b", "a\n", "ä", &"a".repeat(65)] {
            assert!(!is_hostname(name), "{name}");
        }
    }
}
