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
    /// The RAM files, which QEMU must inherit: keep them open until QEMU runs.
    pub ram: Vec<OwnedFd>,
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

/// Shared RAM that a command lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Needed {
    /// Id of its backend.
    id: String,
    /// In bytes.
    size: u64,
    /// Whether the command uses a backend of this id.
    is_used: bool,
}

/// Prepares a QEMU command. `qmp` is the socket to add if the command has none.
pub fn prepare(command: &[String], qmp: &Path) -> Result<Prepared> {
    let needed = needed_ram(&QemuCommand::parse(command)?)?;
    let doing = "make the RAM file";
    let mut ram = vec![];
    for Needed { size, .. } in &needed {
        // Without CLOEXEC: QEMU is to inherit it.
        let file = rustix::fs::memfd_create("elision-ram", MemfdFlags::empty());
        let file = file.map_err(QemuError::os(doing))?;
        rustix::fs::ftruncate(&file, *size).map_err(QemuError::os(doing))?;
        ram.push(file);
    }
    let given: Vec<_> = needed.into_iter().zip(ram.iter().map(AsRawFd::as_raw_fd)).collect();
    let (command, additions, qmp) = rewrite(command, qmp, &given)?;
    Ok(Prepared { command, additions, qmp, ram })
}

/// The RAM files to make: none for RAM that is shared already.
fn needed_ram(command: &QemuCommand) -> Result<Vec<Needed>> {
    if command.values(&["mem-path"]).next().is_some() {
        return Err(bad("-mem-path gives private RAM: use -object memory-backend-file,id=pc.ram,size=SIZE,\
             mem-path=PATH,share=on -machine memory-backend=pc.ram instead"));
    }
    let mut needed = vec![];
    for id in command.node_backends()? {
        let object = private_backend(command, &id)?;
        let Some(object) = object else { continue };
        let size = object.get("size").and_then(|text| parse_size(text, MIB)).filter(|&size| size > 0);
        let size = size.ok_or_else(|| bad(format!("its RAM backend {id:?} has no size")))?;
        needed.push(Needed { id, size, is_used: true });
    }
    if command.node_backends()?.is_empty() {
        let size = command.ram_size()?;
        match command.memory_backend() {
            None => needed.push(Needed { id: RAM_ID.to_string(), size, is_used: false }),
            Some(id) if private_backend(command, &id)?.is_some() => {
                needed.push(Needed { id, size, is_used: true });
            }
            Some(_) => {}
        }
    }
    Ok(needed)
}

/// A RAM backend, if it is private to QEMU and can be replaced by a shared one.
fn private_backend(command: &QemuCommand, id: &str) -> Result<Option<Keys>> {
    let object = command.backend_object(id);
    let object = object.ok_or_else(|| bad(format!("its RAM backend {id:?} is defined nowhere")))?;
    let share = object.get("share");
    let shared = matches!(share, Some("on" | "yes" | "true" | "y"));
    match object.get("qom-type") {
        Some("memory-backend-file") if shared => Ok(None),
        Some("memory-backend-memfd") if shared || share.is_none() => Ok(None),
        Some("memory-backend-file") => Err(bad(format!(
            "its RAM backend {id:?} is a private mapping of a file: add share=on if the VM may change that file"
        ))),
        Some("memory-backend-ram" | "memory-backend-memfd") => Ok(Some(object)),
        other => Err(bad(format!("its RAM backend {id:?} has the unknown type {other:?}"))),
    }
}

fn rewrite(
    command: &[String],
    qmp: &Path,
    ram: &[(Needed, RawFd)],
) -> Result<(Vec<String>, Vec<String>, PathBuf)> {
    let mut command = QemuCommand::parse(command)?;
    let mut additions = vec![];
    for (Needed { id, size, is_used }, fd) in ram {
        command.remove_backend(id);
        let object = format!(
            "memory-backend-file,id={},size={size}B,mem-path=/proc/self/fd/{fd},share=on",
            escape(id)
        );
        let what = if *is_used { "instead of its private RAM" } else { "so that its memory can be read" };
        additions.push(format!("shared RAM of {} MiB, {what}: -object {object}", size / MIB));
        command.add("object", object);
        if !is_used {
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

    /// The rewritten command with descriptors from 7 on.
    fn given(command: &[String], qmp: &Path, needed: Vec<Needed>) -> (Vec<String>, Vec<String>, PathBuf) {
        let ram: Vec<_> = needed.into_iter().zip(7..).collect();
        rewrite(command, qmp, &ram).unwrap()
    }

    #[test]
    fn private_memory_of_nodes_is_replaced_one_by_one() {
        let shared = "-object memory-backend-memfd,id=b,size=512M";
        let nodes = "-numa node,memdev=a -numa node,memdev=b -numa node,memdev=c";
        let command = words(&format!(
            "qemu -m 2G -object memory-backend-ram,id=a,size=1G {shared} -object memory-backend-memfd,id=c,size=512M,share=off {nodes}"
        ));
        let needed = needed_ram(&QemuCommand::parse(&command).unwrap()).unwrap();
        let sizes: Vec<_> = needed.iter().map(|n| (n.id.as_str(), n.size)).collect();
        assert_eq!(sizes, [("a", 1 << 30), ("c", 512 << 20)]);
        let (out, additions, _) = given(&command, Path::new("/q"), needed);
        let object = |id, size: u32, fd| {
            format!("-object memory-backend-file,id={id},size={size}B,mem-path=/proc/self/fd/{fd},share=on")
        };
        let (a, c) = (object("a", 1 << 30, 7), object("c", 512 << 20, 8));
        let expected = format!("qemu -m 2G {shared} {nodes} {a} {c} -qmp unix:/q,server=on,wait=off");
        assert_eq!((out.join(" "), additions.len()), (expected, 3));
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
            let needed = needed_ram(&QemuCommand::parse(&command).unwrap()).unwrap();
            assert_eq!(needed, [Needed { id: "pc.ram".into(), size, is_used: false }]);
            let (out, additions, socket) = given(&command, Path::new("/run/q,x"), needed);
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
            assert_eq!(needed_ram(&QemuCommand::parse(&command).unwrap()).unwrap(), [], "{options}");
            let (out, additions, socket) = given(&command, Path::new("/other"), vec![]);
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
            let command = words(&format!("qemu {options}"));
            let (_, additions, socket) = given(&command, Path::new("/mine"), vec![]);
            assert_eq!((additions.len(), socket), (1, PathBuf::from("/mine")), "{options}");
        }
    }

    #[test]
    fn private_backends_are_replaced_or_refused() {
        let command = words(
            "qemu -m 1G -object memory-backend-ram,id=mem,size=1G -M q35,memory-backend=mem -object rng-random,id=r",
        );
        let parsed = QemuCommand::parse(&command).unwrap();
        let needed = needed_ram(&parsed).unwrap();
        assert_eq!(needed, [Needed { id: "mem".into(), size: 1 << 30, is_used: true }]);
        let (out, _, _) = given(&command, Path::new("/q"), needed);
        let objects = QemuCommand::parse(&out).unwrap();
        let objects: Vec<&str> = objects.values(&["object"]).collect();
        assert_eq!(
            objects,
            [
                "rng-random,id=r",
                "memory-backend-file,id=mem,size=1073741824B,mem-path=/proc/self/fd/7,share=on"
            ]
        );
        for options in [
            "-object memory-backend-file,id=r,size=1G,mem-path=/x -M memory-backend=r",
            "-M memory-backend=nowhere",
            "-mem-path /x",
            "-numa node,memdev=m0",
            "-numa node,mem=1G",
            "-object memory-backend-ram,id=m0 -numa node,memdev=m0",
            "-m many",
            "-m 0",
        ] {
            let parsed = QemuCommand::parse(&words(&format!("qemu {options}"))).unwrap();
            assert!(matches!(needed_ram(&parsed), Err(QemuError::Command { .. })), "{options}");
        }
    }
}
