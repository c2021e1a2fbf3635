//! What makes a clone another machine than its source: name, machine id and boot id. Leases of DHCP and keys of servers are for
//! hooks, as only the guest's owner knows them.

use crate::error::{AgentError, Context};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs;
use std::path::Path;

const HOSTNAME: &str = "/etc/hostname";
const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NEW_BOOT_ID: &str = "/run/elision-agent/boot_id";

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
    let id = uuid()?; // as systemd makes them
    replace(Path::new(MACHINE_ID), &format!("{id}\n"))?;
    Ok(id)
}

/// Gives this boot another id. The kernel keeps its own, but whoever asks reads another file in that place; who asked before
/// (the journal and the first process) goes on with what they know.
pub(crate) fn new_boot_id() -> Result<String, AgentError> {
    let id = uuid()?;
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)]
        .map(|(from, to)| id.get(from..to).unwrap_or_default());
    let text = parts.join("-");
    let file = Path::new(NEW_BOOT_ID);
    fs::create_dir_all(file.parent().unwrap_or(file)).context("create the folder of", file)?;
    replace(file, &format!("{text}\n"))?;
    rustix::mount::mount_bind(file, BOOT_ID).context("mount over", Path::new(BOOT_ID))?;
    Ok(text)
}

/// A random UUID without dashes.
fn uuid() -> Result<String, AgentError> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("read", "random numbers")?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
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
