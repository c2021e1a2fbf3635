//! The QMP sockets of a QEMU command, in their three forms.
//!
//! ```text
//! -qmp unix:PATH,server=on,wait=off        -qmp-pretty likewise
//! -chardev socket,id=ID,path=PATH,server=on -mon chardev=ID,mode=control
//! ```

use super::options::{Item, Keys, QemuCommand, escape};
use std::path::{Path, PathBuf};

const DIRECT: [&str; 2] = ["qmp", "qmp-pretty"];

impl QemuCommand {
    /// The path of the first QMP socket on which QEMU listens.
    pub(crate) fn control_socket(&self) -> Option<PathBuf> {
        let direct = self.values(&DIRECT).find_map(|value| {
            let keys = Keys::parse(value.strip_prefix("unix:")?, "path");
            listens(&keys).then(|| keys.get("path").map(PathBuf::from))?
        });
        direct.or_else(|| {
            let ids = self.control_chardevs();
            self.values(&["chardev"]).map(|v| Keys::parse(v, "backend")).find_map(|keys| {
                let ours = keys.get("id").is_some_and(|id| ids.iter().any(|i| i == id));
                (ours && listens(&keys)).then(|| keys.get("path").map(PathBuf::from))?
            })
        })
    }

    /// Takes all QMP monitors away.
    pub(crate) fn remove_control(&mut self) {
        let ids = self.control_chardevs();
        self.remove_option(|name, value| match name {
            "qmp" | "qmp-pretty" => true,
            "mon" => is_control(value),
            "chardev" => {
                Keys::parse(value, "backend").get("id").is_some_and(|id| ids.iter().any(|i| i == id))
            }
            _ => false,
        });
    }

    pub(crate) fn add_control(&mut self, socket: &Path) {
        let path = escape(&socket.to_string_lossy());
        self.items.push(Item::Option("qmp".into(), format!("unix:{path},server=on,wait=off")));
    }

    fn control_chardevs(&self) -> Vec<String> {
        let monitors = self.values(&["mon"]).filter(|v| is_control(v));
        monitors.filter_map(|v| Keys::parse(v, "chardev").get("chardev").map(String::from)).collect()
    }
}

fn is_control(mon: &str) -> bool {
    Keys::parse(mon, "chardev").get("mode") == Some("control")
}

fn listens(keys: &Keys) -> bool {
    matches!(keys.get("server"), Some("on" | "yes" | "true" | "y"))
}
