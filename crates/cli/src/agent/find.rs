//! The socket of the agent's port, told by QEMU.
//!
//! ```text
//! qom-list /machine/peripheral, /machine/peripheral-anon      devices; ports are of type virtserialport
//! qom-get PATH name                                           "org.elision.agent.0"
//! qom-get PATH chardev                                        "charchannel1"
//! query-chardev                                               {label, filename: "unix:PATH,server=on", frontend-open}
//! ```
//! `frontend-open` tells whether a program in the guest has opened the port.

use elision_qemu::{QemuError, Vm};
use elision_wire::PORT;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where devices of a command line stand, with and without an id.
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];
/// Most devices that are asked for their name.
const MOST_DEVICES: usize = 1000;

/// The agent's port of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentPort {
    /// Its socket on the host.
    pub(crate) socket: PathBuf,
    /// Whether a program in the guest listens.
    pub(crate) open: bool,
}

/// Finds the port; `None` if the VM has none with a socket.
pub(crate) fn port(vm: &mut Vm) -> Result<Option<AgentPort>, QemuError> {
    let folder = vm.process().folder.clone();
    let qmp = vm.qmp();
    for place in DEVICES {
        let devices = qmp.execute("qom-list", json!({"path": place}))?;
        for device in devices.as_array().into_iter().flatten().take(MOST_DEVICES) {
            if device["type"] != "child<virtserialport>" {
                continue;
            }
            let path = format!("{place}/{}", device["name"].as_str().unwrap_or_default());
            let mut get =
                |property: &str| qmp.execute("qom-get", json!({"path": path, "property": property}));
            if get("name")? != PORT {
                continue;
            }
            let label = get("chardev")?;
            let devices = qmp.execute("query-chardev", json!({}))?;
            let device = devices.as_array().into_iter().flatten().find(|d| d["label"] == label);
            return Ok(device.and_then(|device| of_chardev(device, &folder)));
        }
    }
    Ok(None)
}

fn of_chardev(device: &Value, folder: &Path) -> Option<AgentPort> {
    let name = device["filename"].as_str()?;
    let name = name.strip_prefix("disconnected:").unwrap_or(name);
    let path = name.strip_prefix("unix:")?;
    // A path may hold a comma; what QEMU adds begins with the last of these.
    let path = path.rsplit_once(",server").map_or(path, |(path, _)| path);
    Some(AgentPort { socket: folder.join(path), open: device["frontend-open"] != false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_read_from_what_qemu_says() {
        let folder = Path::new("/vm");
        let port = |filename: &str, open: bool| {
            of_chardev(&json!({"label": "a", "filename": filename, "frontend-open": open}), folder)
        };
        let found = |path: &str, open| Some(AgentPort { socket: path.into(), open });
        assert_eq!(port("disconnected:unix:/run/a.sock,server=on", true), found("/run/a.sock", true));
        assert_eq!(port("unix:a,b.sock,server=on", false), found("/vm/a,b.sock", false));
        assert_eq!(port("pty:/dev/pts/3", true), None);
    }
}
