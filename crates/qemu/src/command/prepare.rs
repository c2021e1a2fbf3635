//! Makes a QEMU command fit for saving: shared RAM and a QMP socket, where it has none.
//!
//! The RAM file is a memfd that QEMU inherits and opens by `/proc/self/fd/N`: it needs no place in a file
//! system and is gone with the VM. QEMU's own memfd backend would do too, but QEMU 10 sends its content with
//! the device state.

use super::options::{Item, Keys, QemuCommand, bad, escape, parse_size};
use crate::error::{QemuError, Result};
use rustix::fs::MemfdFlags;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// QEMU's default for a PC.
const DEFAULT_RAM: u64 = 128 << 20;
const MIB: u64 = 1 << 20;
const RAM_ID: &str = "pc.ram";

/// A command that can be started, with what was added to it.
#[derive(Debug)]
pub struct Prepared {
    /// The command, program first.
    pub command: Vec<String>,
    /// What was added or changed, in words. Empty if the command was fit already.
    pub additions: Vec<String>,
    /// The QMP socket.
    pub qmp: PathBuf,
    /// The RAM file, which QEMU must inherit: keep it open until QEMU runs.
    pub ram: Option<OwnedFd>,
}

impl Prepared {
    /// The command to spawn or to replace this process by.
    #[must_use]
    pub fn to_command(&self) -> std::process::Command {
        let mut words = self.command.iter();
        let mut command = std::process::Command::new(words.next().map(String::as_str).unwrap_or_default());
        command.args(words);
        command
    }
}

/// Prepares a QEMU command. `qmp` is the socket to add if the command has none.
pub fn prepare(command: &[String], qmp: &Path) -> Result<Prepared> {
    let Some(size) = needed_ram(&QemuCommand::parse(command)?)? else {
        let (command, additions, qmp) = rewrite(command, qmp, None)?;
        return Ok(Prepared { command, additions, qmp, ram: None });
    };
    // Without CLOEXEC: QEMU is to inherit it.
    let doing = "make the RAM file";
    let ram = rustix::fs::memfd_create("elision-ram", MemfdFlags::empty()).map_err(QemuError::os(doing))?;
    rustix::fs::ftruncate(&ram, size).map_err(QemuError::os(doing))?;
    let (command, additions, qmp) = rewrite(command, qmp, Some(ram.as_raw_fd()))?;
    Ok(Prepared { command, additions, qmp, ram: Some(ram) })
}

/// The size of the RAM file to make, or `None` if the command's RAM is shared already.
fn needed_ram(command: &QemuCommand) -> Result<Option<u64>> {
    let numa = command.values(&["numa"]).map(|v| Keys::parse(v, "type"));
    if numa.into_iter().any(|k| k.get("memdev").is_some() || k.get("mem").is_some()) {
        return Err(bad("RAM divided among NUMA nodes (-numa) is not supported: remove the nodes' memory"));
    }
    if command.values(&["mem-path"]).next().is_some() {
        return Err(bad("-mem-path gives private RAM: use -object memory-backend-file,id=pc.ram,size=SIZE,\
             mem-path=PATH,share=on -machine memory-backend=pc.ram instead"));
    }
    if let Some(id) = command.memory_backend() {
        let object = command.backend_object(&id);
        let object = object.ok_or_else(|| bad(format!("its RAM backend {id:?} is defined nowhere")))?;
        let share = object.get("share");
        let shared = matches!(share, Some("on" | "yes" | "true" | "y"));
        match object.get("qom-type") {
            Some("memory-backend-file") if shared => return Ok(None),
            Some("memory-backend-memfd") if shared || share.is_none() => return Ok(None),
            Some("memory-backend-file") => {
                return Err(bad(format!(
                    "its RAM backend {id:?} is a private mapping of a file: add share=on if the VM may change that file"
                )));
            }
            Some("memory-backend-ram" | "memory-backend-memfd") => {}
            other => return Err(bad(format!("its RAM backend {id:?} has the unknown type {other:?}"))),
        }
    }
    command.ram_size().map(Some)
}

fn rewrite(
    command: &[String],
    qmp: &Path,
    ram: Option<RawFd>,
) -> Result<(Vec<String>, Vec<String>, PathBuf)> {
    let mut command = QemuCommand::parse(command)?;
    let mut additions = vec![];
    if let Some(fd) = ram {
        let size = command.ram_size()?;
        let before = command.memory_backend();
        let id = before.clone().unwrap_or_else(|| RAM_ID.to_string());
        command.remove_backend(&id);
        let object = format!(
            "memory-backend-file,id={},size={size}B,mem-path=/proc/self/fd/{fd},share=on",
            escape(&id)
        );
        let what =
            if before.is_some() { "instead of its private RAM" } else { "so that its memory can be read" };
        additions.push(format!("shared RAM of {} MiB, {what}: -object {object}", size / MIB));
        command.add("object", object);
        if before.is_none() {
            let machine = format!("memory-backend={id}");
            additions.push(format!("the machine's use of it: -machine {machine}"));
            command.add("machine", machine);
        }
    }
    let socket = command.control_socket().unwrap_or_else(|| {
        command.add_control(qmp);
        additions.push(format!("a QMP socket: {}", qmp.display()));
        qmp.to_path_buf()
    });
    Ok((command.words(), additions, socket))
}

impl QemuCommand {
    /// The id of the machine's RAM backend, if it names one.
    pub(crate) fn memory_backend(&self) -> Option<String> {
        let values = self.values(&["machine", "M"]);
        values.filter_map(|v| Keys::parse(v, "type").get("memory-backend").map(String::from)).last()
    }

    /// Size of the VM's RAM in bytes, from `-m` in any form.
    pub(crate) fn ram_size(&self) -> Result<u64> {
        let mut size = DEFAULT_RAM;
        for value in self.values(&["m"]) {
            if let Some(text) = Keys::parse(value, "size").get("size") {
                size = parse_size(text, MIB)
                    .filter(|&s| s > 0)
                    .ok_or_else(|| bad(format!("-m {value} is no size")))?;
            }
        }
        Ok(size)
    }

    pub(crate) fn backend_object(&self, id: &str) -> Option<Keys> {
        self.values(&["object"]).map(|v| Keys::parse(v, "qom-type")).find(|k| is_backend(k, id))
    }

    pub(crate) fn remove_backend(&mut self, id: &str) {
        self.items.retain(|item| {
            !matches!(item, Item::Option(name, value) if name == "object" && is_backend(&Keys::parse(value, "qom-type"), id))
        });
    }
}

fn is_backend(keys: &Keys, id: &str) -> bool {
    keys.get("id") == Some(id) && keys.get("qom-type").is_some_and(|t| t.starts_with("memory-backend-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn what_is_missing_is_added() {
        let ram = "-object memory-backend-file,id=pc.ram,size={}B,mem-path=/proc/self/fd/7,share=on -machine memory-backend=pc.ram";
        let qmp = "-qmp unix:/run/q,,x,server=on,wait=off";
        for (options, size) in [
            ("", 128 << 20),
            ("-m 512", 512 << 20),
            ("-m 512M -M q35", 512 << 20),
            ("--m size=2G,slots=2,maxmem=4G -machine type=pc,accel=tcg", 2_u64 << 30),
            ("-machine q35 -m 1.5G", 3 << 29),
        ] {
            let command = words(&format!("qemu {options}"));
            assert_eq!(needed_ram(&QemuCommand::parse(&command).unwrap()).unwrap(), Some(size));
            let (out, additions, socket) = rewrite(&command, Path::new("/run/q,x"), Some(7)).unwrap();
            let options = options.replace("--m", "-m");
            let expected = format!("qemu {options} {} {qmp}", ram.replace("{}", &size.to_string()));
            assert_eq!(out, words(&expected));
            assert_eq!((additions.len(), socket), (3, PathBuf::from("/run/q,x")));
        }
    }

    #[test]
    fn a_fit_command_is_left_alone() {
        for (options, qmp) in [
            (
                "-object memory-backend-file,id=r,size=1G,mem-path=/x,share=on -M q35,memory-backend=r -qmp unix:/q,server=on",
                "/q",
            ),
            (
                "-object memory-backend-memfd,id=r,size=1G -machine memory-backend=r -qmp unix:/q,server,nowait -qmp-pretty unix:/p,server=on",
                "/q",
            ),
            (
                r#"-object {"qom-type":"memory-backend-file","id":"r","share":true} -M memory-backend=r -chardev socket,id=c,path=/c,server=on -mon chardev=c,mode=control"#,
                "/c",
            ),
        ] {
            let command = words(&format!("qemu {options}"));
            assert_eq!(needed_ram(&QemuCommand::parse(&command).unwrap()).unwrap(), None, "{options}");
            let (out, additions, socket) = rewrite(&command, Path::new("/other"), None).unwrap();
            assert_eq!((out, additions, socket), (command, vec![], PathBuf::from(qmp)));
        }
    }

    #[test]
    fn sockets_that_do_not_listen_do_not_count() {
        for options in [
            "-qmp stdio",
            "-qmp tcp:localhost:4444,server=on",
            "-qmp unix:/client",
            "-monitor unix:/m,server=on",
            "-mon chardev=c",
        ] {
            let (_, additions, socket) =
                rewrite(&words(&format!("qemu {options}")), Path::new("/mine"), None).unwrap();
            assert_eq!((additions.len(), socket), (1, PathBuf::from("/mine")), "{options}");
        }
    }

    #[test]
    fn private_backends_are_replaced_or_refused() {
        let command = words(
            "qemu -m 1G -object memory-backend-ram,id=mem,size=1G -M q35,memory-backend=mem -object rng-random,id=r",
        );
        let parsed = QemuCommand::parse(&command).unwrap();
        assert_eq!(needed_ram(&parsed).unwrap(), Some(1 << 30));
        let (out, _, _) = rewrite(&command, Path::new("/q"), Some(3)).unwrap();
        let objects = QemuCommand::parse(&out).unwrap();
        let objects: Vec<&str> = objects.values(&["object"]).collect();
        assert_eq!(
            objects,
            [
                "rng-random,id=r",
                "memory-backend-file,id=mem,size=1073741824B,mem-path=/proc/self/fd/3,share=on"
            ]
        );
        for options in [
            "-object memory-backend-file,id=r,size=1G,mem-path=/x -M memory-backend=r",
            "-M memory-backend=nowhere",
            "-mem-path /x",
            "-numa node,memdev=m0",
            "-m many",
            "-m 0",
        ] {
            let parsed = QemuCommand::parse(&words(&format!("qemu {options}"))).unwrap();
            assert!(matches!(needed_ram(&parsed), Err(QemuError::Command { .. })), "{options}");
        }
    }
}
