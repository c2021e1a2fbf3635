//! Turns the command of one VM into one for a clone beside it, with files of its own in a folder.
//!
//! ```text
//! -drive file=disk.img,format=raw     ->  an overlay FOLDER/disk-1.qcow2 over disk.img
//! sockets on which QEMU listens       ->  FOLDER/name of the socket
//! files to which QEMU writes text     ->  FOLDER/name of the file
//! ```
//! What many VMs cannot have at the same time and what has no place in a folder is refused: ports of the host, and
//! disks that are given in other ways. Everything that is only read stays.

use super::options::{Item, Keys, QemuCommand, bad, escape};
use crate::error::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A disk of a clone: what the clone writes goes to `path`, what it did not write is read from `base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The overlay, in qcow2.
    pub path: PathBuf,
    /// The disk of the VM that was saved.
    pub base: PathBuf,
    /// Its format. It is never guessed: a guest could write what looks like another one.
    pub format: String,
}

/// The command of a clone, and the overlays that must be there before it starts.
pub fn for_clone(command: &[String], folder: &Path) -> Result<(Vec<String>, Vec<Overlay>)> {
    let mut command = QemuCommand::parse(command)?;
    // With `-snapshot` QEMU itself makes overlays, and removes them at its end.
    let keeps_disks = command.items.contains(&Item::Flag("snapshot".into()));
    command.remove_control();
    let mut own = Own { folder, names: BTreeSet::new(), overlays: Vec::new() };
    for item in &mut command.items {
        match item {
            Item::Flag(name) if name == "s" => return Err(shared("-s listens on a port of the host")),
            Item::Positional(_) if keeps_disks => {}
            Item::Positional(path) => return Err(disk(path)),
            Item::Option(name, value) => own.change(name, value, keeps_disks)?,
            Item::Flag(_) => {}
        }
    }
    Ok((command.words(), own.overlays))
}

/// What a clone has for itself.
struct Own<'a> {
    folder: &'a Path,
    names: BTreeSet<String>,
    overlays: Vec<Overlay>,
}

impl Own<'_> {
    fn change(&mut self, name: &str, value: &mut String, keeps_disks: bool) -> Result<()> {
        match name {
            "drive" if !keeps_disks => self.drive(value),
            "hda" | "hdb" | "hdc" | "hdd" | "mtdblock" | "sd" | "pflash" if !keeps_disks => Err(disk(value)),
            "blockdev" => match Keys::parse(value, "driver").get("read-only") {
                Some("on" | "true") => Ok(()),
                _ => Err(disk(value)),
            },
            "chardev" => self.chardev(value),
            "serial" | "parallel" | "monitor" | "debugcon" | "vnc" => self.device(name, value),
            "D" => {
                *value = self.place(Path::new(value))?;
                Ok(())
            }
            "netdev" | "nic" | "net" if Keys::parse(value, "type").get("hostfwd").is_some() => {
                Err(shared(&format!("-{name} {value} forwards a port of the host")))
            }
            "gdb" | "spice" | "incoming" if value.contains("tcp") || value.contains("port=") => {
                Err(shared(&format!("-{name} {value} listens on a port of the host")))
            }
            _ => Ok(()),
        }
    }

    fn drive(&mut self, value: &mut String) -> Result<()> {
        let mut keys = Keys::parse(value, "file");
        let is_on = |key: &str| matches!(keys.get(key), Some("on" | "true" | "yes"));
        let is_cdrom = keys.get("media") == Some("cdrom");
        if is_on("readonly") || is_on("read-only") || is_on("snapshot") || is_cdrom {
            return Ok(());
        }
        let Some(file) = keys.get("file").filter(|file| !file.is_empty()) else { return Err(disk(value)) };
        if file.contains(':') {
            return Err(disk(value)); // another protocol, or a description
        }
        let base = std::path::absolute(file).map_err(|e| bad(format!("the disk {file}: {e}")))?;
        let path = self.folder.join(format!("disk-{}.qcow2", self.overlays.len() + 1));
        let Some(format) = keys.get("format").map(String::from) else {
            return Err(bad(format!("it does not say the format of {file}: add format=raw or format=qcow2")));
        };
        keys.0.retain(|(key, _)| key != "file" && key != "format");
        keys.0.push(("file".into(), text(&path)?));
        keys.0.push(("format".into(), "qcow2".into()));
        self.overlays.push(Overlay { path, base, format });
        *value = joined(&keys);
        Ok(())
    }

    fn chardev(&mut self, value: &mut String) -> Result<()> {
        let mut keys = Keys::parse(value, "backend");
        let listens = matches!(keys.get("server"), Some("on" | "true" | "yes"));
        let (is_file, is_socket) =
            (keys.get("backend") == Some("file"), keys.get("backend") == Some("socket"));
        if is_socket && listens && keys.get("port").is_some() {
            return Err(shared(&format!("-chardev {value} listens on a port of the host")));
        }
        let is_own = |key: &str| key == "logfile" || (key == "path" && (is_file || (is_socket && listens)));
        let mut changed = false;
        for (_, path) in keys.0.iter_mut().filter(|(key, _)| is_own(key)) {
            *path = self.place(Path::new(path))?;
            changed = true;
        }
        if changed {
            *value = joined(&keys);
        }
        Ok(())
    }

    /// `unix:PATH,server=on`, `file:PATH`, and others.
    fn device(&mut self, name: &str, value: &mut String) -> Result<()> {
        if let Some(path) = value.strip_prefix("file:") {
            *value = format!("file:{}", self.place(Path::new(path))?);
        } else if let Some(rest) = value.strip_prefix("unix:") {
            let (path, options) =
                rest.split_once(',').map_or((rest, None), |(path, rest)| (path, Some(rest)));
            if name == "vnc" || options.is_some_and(|options| options.contains("server")) {
                let options = options.map_or_else(String::new, |options| format!(",{options}"));
                *value = format!("unix:{}{options}", escape(&self.place(Path::new(path))?));
            }
        } else if (name == "vnc" && value != "none")
            || value.starts_with("tcp:")
            || value.starts_with("telnet:")
        {
            return Err(shared(&format!("-{name} {value} listens on a port of the host")));
        }
        Ok(())
    }

    /// Where something with this name stands in the clone's folder.
    fn place(&mut self, path: &Path) -> Result<String> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| bad(format!("{} has no name", path.display())))?;
        if !self.names.insert(name.to_owned()) {
            let why = format!("two of its files have the name {name}: give one of them another");
            return Err(bad(why));
        }
        text(&self.folder.join(name))
    }
}

/// In the form with commas.
fn joined(keys: &Keys) -> String {
    let parts = keys.0.iter().map(|(key, value)| match key.as_str() {
        "backend" => escape(value),
        _ => format!("{key}={}", escape(value)),
    });
    parts.collect::<Vec<_>>().join(",")
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(String::from).ok_or_else(|| bad(format!("{} is not UTF-8", path.display())))
}

fn shared(what: &str) -> crate::QemuError {
    bad(format!("{what}, which only one VM can: give a command without it"))
}

fn disk(what: &str) -> crate::QemuError {
    bad(format!(
        "it does not say in a way that is understood where the disk {what} is: give it as -drive file=..."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloned(command: &str) -> Result<(String, Vec<Overlay>)> {
        let words: Vec<_> = command.split_whitespace().map(String::from).collect();
        for_clone(&words, Path::new("/clones/1")).map(|(words, overlays)| (words.join(" "), overlays))
    }

    #[test]
    fn what_is_written_is_the_clone_s_own() {
        let (command, overlays) = cloned(
            "qemu -m 1G -drive file=/d/a.img,format=raw,if=virtio,cache=none -drive /d/b.qcow2,format=qcow2 \
             -drive file=/d/ro.img,readonly=on -drive file=/d/cd.iso,media=cdrom -cdrom /d/x.iso -kernel vmlinuz \
             -serial file:console.log -qmp unix:/run/q,server=on,wait=off -monitor unix:/run/m,server,nowait \
             -chardev socket,id=c,path=/run/c.sock,server=on,wait=off -chardev socket,id=v,path=/run/fs.sock \
             -chardev file,id=f,path=/var/log/vm.log -netdev user,id=n -vnc none",
        )
        .unwrap();
        assert_eq!(
            command,
            "qemu -m 1G -drive if=virtio,cache=none,file=/clones/1/disk-1.qcow2,format=qcow2 \
             -drive file=/clones/1/disk-2.qcow2,format=qcow2 \
             -drive file=/d/ro.img,readonly=on -drive file=/d/cd.iso,media=cdrom -cdrom /d/x.iso -kernel vmlinuz \
             -serial file:/clones/1/console.log -monitor unix:/clones/1/m,server,nowait \
             -chardev socket,id=c,path=/clones/1/c.sock,server=on,wait=off -chardev socket,id=v,path=/run/fs.sock \
             -chardev file,id=f,path=/clones/1/vm.log -netdev user,id=n -vnc none"
        );
        let overlay = |n, base: &str, format: &str| Overlay {
            path: format!("/clones/1/disk-{n}.qcow2").into(),
            base: base.into(),
            format: format.into(),
        };
        assert_eq!(overlays, [overlay(1, "/d/a.img", "raw"), overlay(2, "/d/b.qcow2", "qcow2")]);
        let (command, overlays) = cloned("qemu -snapshot disk.img -drive file=/d/a.img").unwrap();
        assert_eq!((command.as_str(), overlays.len()), ("qemu -snapshot disk.img -drive file=/d/a.img", 0));
    }

    #[test]
    fn what_only_one_vm_can_have_is_refused() {
        for (command, part) in [
            ("qemu disk.img", "-drive file="),
            ("qemu -hda disk.img", "-drive file="),
            ("qemu -blockdev driver=file,filename=x,node-name=d", "-drive file="),
            ("qemu -drive file=nbd://host/x", "-drive file="),
            ("qemu -drive file=/d/a.img", "format=raw"),
            ("qemu -nic user,hostfwd=tcp::2222-:22", "port of the host"),
            ("qemu -serial tcp::4444,server", "port of the host"),
            ("qemu -chardev socket,id=c,port=4,host=0,server=on", "port of the host"),
            ("qemu -vnc :1", "port of the host"),
            ("qemu -s", "port of the host"),
            ("qemu -serial file:a/log -debugcon file:b/log", "have the name log"),
        ] {
            let error = cloned(command).unwrap_err().to_string();
            assert!(error.contains(part), "{command}: {error}");
        }
        assert!(cloned("qemu -blockdev driver=file,filename=x,node-name=d,read-only=on").is_ok());
    }
}
