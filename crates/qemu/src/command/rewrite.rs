//! Turns a QEMU command into one that restores an image.
//!
//! Replaced: the RAM backend (a private mapping of the image's RAM, so that pages come in as they are
//! touched and the image never changes), the QMP socket, the GUID of a `vmgenid` device. Added:
//! `-incoming defer`. Taken away: what would fork, stop, preallocate, or load something else. Everything
//! else stays, `-kernel` and `-initrd` too: QEMU needs the same machine on both sides.

use super::options::{Item, Keys, QemuCommand, bad, escape};
use crate::error::{QemuError, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

const DROPPED_FLAGS: [&str; 4] = ["daemonize", "S", "mem-prealloc", "preconfig"];
const DROPPED_OPTIONS: [&str; 4] = ["incoming", "loadvm", "pidfile", "mem-path"];

/// What a restored VM uses in place of what its command says.
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// Where each RAM block is, in the order of the image; see [`RestoredRam`](crate::RestoredRam).
    pub ram: &'a [BlockFile],
    /// Where QEMU is to listen.
    pub qmp: &'a Path,
    /// GUID for a `vmgenid` device; see [`fresh_guid`].
    pub guid: &'a str,
}

/// The file that a RAM block of a restored VM is mapped from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockFile {
    /// Name of the block in the device state.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
    /// The file.
    pub path: PathBuf,
    /// Where the block begins in it. Other starts than 0 need QEMU 8.1.
    pub offset: u64,
    /// Whether the VM writes to the file. Otherwise what it writes is its own, and the file never changes.
    pub shared: bool,
}

impl BlockFile {
    fn object(&self) -> Result<String> {
        let Self { len, offset, .. } = self;
        let path = self.path.to_str().ok_or_else(|| bad("the image's path is not UTF-8"))?;
        let (id, path) = (escape(&self.name), escape(path));
        let offset = if *offset == 0 { String::new() } else { format!(",offset={offset}B") };
        let share = if self.shared { "on" } else { "off" };
        Ok(format!("memory-backend-file,id={id},size={len}B,mem-path={path}{offset},share={share}"))
    }
}

/// The command that restores an image.
pub fn for_restore(command: &[String], options: &RestoreOptions<'_>) -> Result<Vec<String>> {
    let mut command = QemuCommand::parse(command)?;
    let before = command.memory_backend();
    let nodes = command.node_backends()?;
    check_nodes(&nodes, options.ram)?;
    let replaced = before.iter().chain(&nodes).chain(options.ram.iter().map(|block| &block.name));
    replaced.for_each(|id| command.remove_backend(id));
    command.remove_control();
    command.items.retain(|item| match item {
        Item::Flag(name) => !DROPPED_FLAGS.contains(&name.as_str()),
        Item::Option(name, _) => !DROPPED_OPTIONS.contains(&name.as_str()),
        Item::Positional(_) => true,
    });
    set_size(&mut command, options.ram.iter().map(|block| block.len).sum())?;
    for block in options.ram {
        command.add("object", block.object()?);
    }
    if let ([], [block]) = (nodes.as_slice(), options.ram) {
        if before.as_deref() != Some(&block.name) {
            command.add("machine", format!("memory-backend={}", escape(&block.name)));
        }
    }
    set_guid(&mut command, options.guid);
    command.add_control(options.qmp);
    command.add("incoming", "defer");
    Ok(command.words())
}

/// Nodes must have the RAM blocks of the image, and several blocks must be those of nodes.
fn check_nodes(nodes: &[String], blocks: &[BlockFile]) -> Result<()> {
    let names: Vec<&str> = blocks.iter().map(|block| block.name.as_str()).collect();
    let same = nodes.len() == names.len() && nodes.iter().all(|node| names.contains(&node.as_str()));
    if same || (nodes.is_empty() && names.len() == 1) {
        return Ok(());
    }
    let (nodes, names) = (nodes.join(", "), names.join(", "));
    Err(bad(if nodes.is_empty() {
        format!(
            "the image has the RAM of several NUMA nodes ({names}): give each node its own (-numa node,memdev=ID)"
        )
    } else {
        format!("its NUMA nodes have the RAM {nodes}, the image {names}: name it so")
    }))
}

/// A GUID that no other VM has.
pub fn fresh_guid() -> Result<String> {
    let text =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(QemuError::io("make a GUID"))?;
    Ok(text.trim().to_string())
}

/// Makes `-m` say what the image has, keeping its other keys.
fn set_size(command: &mut QemuCommand, len: u64) -> Result<()> {
    if command.ram_size().is_ok_and(|size| size == len) {
        return Ok(());
    }
    let mut value = format!("size={len}B");
    for (key, text) in command.values(&["m"]).flat_map(|v| Keys::parse(v, "size").0) {
        if key != "size" {
            value.push_str(&format!(",{key}={}", escape(&text)));
        }
    }
    command.remove_option(|name, _| name == "m");
    command.add("m", value);
    Ok(())
}

/// Gives a `vmgenid` device with a fixed GUID a new one, so that the guest can tell that it was cloned.
fn set_guid(command: &mut QemuCommand, guid: &str) {
    for item in &mut command.items {
        let Item::Option(name, value) = item else { continue };
        let keys = Keys::parse(value, "driver");
        if name != "device" || keys.get("driver") != Some("vmgenid") {
            continue;
        }
        if let Ok(Value::Object(mut object)) = serde_json::from_str(value) {
            object.insert("guid".into(), guid.into());
            *value = Value::Object(object).to_string();
            continue;
        }
        let mut text = String::from("vmgenid");
        for (key, v) in keys.0.iter().filter(|(k, _)| k != "guid" && k != "driver") {
            text.push_str(&format!(",{key}={}", escape(v)));
        }
        *value = format!("{text},guid={guid}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    fn block(name: &str, offset: u64) -> BlockFile {
        BlockFile {
            name: name.into(),
            len: 1 << 30,
            path: "/images/a,b/ram.img".into(),
            offset,
            shared: false,
        }
    }

    fn restored(command: &str) -> String {
        let options = RestoreOptions {
            ram: &[block("mem", 0)],
            qmp: Path::new("/run/q"),
            guid: "11111111-2222-3333-4444-555555555555",
        };
        for_restore(&words(command), &options).unwrap().join(" ")
    }

    const RAM: &str =
        "-object memory-backend-file,id=mem,size=1073741824B,mem-path=/images/a,,b/ram.img,share=off";
    const END: &str = "-qmp unix:/run/q,server=on,wait=off -incoming defer";

    #[test]
    fn the_backend_is_replaced_wherever_it_stands() {
        for (before, after) in [
            (
                "qemu -m 1G -object memory-backend-file,id=mem,size=1G,mem-path=/dev/shm/x,share=on -M q35,memory-backend=mem -kernel k -initrd i",
                format!("qemu -m 1G -M q35,memory-backend=mem -kernel k -initrd i {RAM} {END}"),
            ),
            (
                "qemu -m 1024 disk.img",
                format!("qemu -m 1024 disk.img {RAM} -machine memory-backend=mem {END}"),
            ),
            (
                "qemu -m 1024 -object memory-backend-ram,id=other,size=1G -machine memory-backend=other,usb=on",
                format!(
                    "qemu -m 1024 -machine memory-backend=other,usb=on {RAM} -machine memory-backend=mem {END}"
                ),
            ),
            (
                "qemu -m 1024 -mem-path /x -mem-prealloc",
                format!("qemu -m 1024 {RAM} -machine memory-backend=mem {END}"),
            ),
        ] {
            assert_eq!(restored(before), after, "{before}");
        }
    }

    #[test]
    fn the_size_follows_the_image() {
        let end = format!("{RAM} -machine memory-backend=mem {END}");
        assert_eq!(restored("qemu"), format!("qemu -m size=1073741824B {end}"));
        let after = format!("qemu -m size=1073741824B,slots=2,maxmem=8G {end}");
        assert_eq!(restored("qemu -m 2G,slots=2,maxmem=8G"), after);
    }

    #[test]
    fn monitors_and_what_would_disturb_go() {
        let before = "qemu -m 1G -daemonize -S -incoming defer -loadvm x -pidfile /p -qmp unix:/a,server=on -qmp-pretty stdio \
                      -chardev socket,id=c,path=/b,server=on -mon chardev=c,mode=control -chardev null,id=d -mon chardev=d";
        let after =
            format!("qemu -m 1G -chardev null,id=d -mon chardev=d {RAM} -machine memory-backend=mem {END}");
        assert_eq!(restored(before), after);
    }

    #[test]
    fn a_clone_gets_a_generation_of_its_own() {
        let guid = "guid=11111111-2222-3333-4444-555555555555";
        let out = restored("qemu -m 1G -device vmgenid,guid=aaaa,id=v -device virtio-rng-pci,id=vmgenid");
        assert!(
            out.contains(&format!("-device vmgenid,id=v,{guid} -device virtio-rng-pci,id=vmgenid")),
            "{out}"
        );
        let out = restored(r#"qemu -m 1G -device {"driver":"vmgenid","guid":"aaaa"}"#);
        assert!(
            out.contains(r#""guid":"11111111-2222-3333-4444-555555555555""#) && !out.contains("aaaa"),
            "{out}"
        );
    }

    #[test]
    fn any_backend_gives_way_to_the_image() {
        let machine = "-machine memory-backend=mem";
        for (before, after) in [
            (
                "-m 1G -object memory-backend-memfd,id=mem,size=1G,hugetlb=on,share=off -machine pc,memory-backend=mem",
                "-m 1G -machine pc,memory-backend=mem",
            ),
            (
                "-m size=1G,slots=2,maxmem=4G -M q35 -object memory-backend-ram,size=1G,id=mem -machine memory-backend=mem",
                "-m size=1G,slots=2,maxmem=4G -M q35 -machine memory-backend=mem",
            ),
            (
                r#"-m 1G -object {"qom-type":"memory-backend-ram","id":"mem","size":1073741824} -M memory-backend=mem"#,
                "-m 1G -M memory-backend=mem",
            ),
            (
                "-m 1G -object memory-backend-ram,id=mem,size=1G -numa node,nodeid=0,memdev=mem -numa cpu,node-id=0",
                "-m 1G -numa node,nodeid=0,memdev=mem -numa cpu,node-id=0",
            ),
        ] {
            assert_eq!(restored(&format!("qemu {before}")), format!("qemu {after} {RAM} {END}"));
        }
        // An id that the image does not know is overruled, and RAM without any backend gets one.
        for before in ["-m 1G -M pc", "-m 1G -M pc,accel=kvm"] {
            assert_eq!(restored(&format!("qemu {before}")), format!("qemu {before} {RAM} {machine} {END}"));
        }
    }

    #[test]
    fn each_node_gets_its_block() {
        let mut copy = block("b", 0);
        (copy.path, copy.shared) = ("/proc/self/fd/5".into(), true);
        let before = "qemu -m 2G -object memory-backend-memfd,id=a,size=1G,share=on -object memory-backend-ram,id=b,size=1G";
        let nodes = "-numa node,nodeid=0,memdev=a -numa node,nodeid=1,memdev=b";
        for (second, place) in [
            (block("b", 1 << 30), "mem-path=/images/a,,b/ram.img,offset=1073741824B,share=off"),
            (copy, "mem-path=/proc/self/fd/5,share=on"),
        ] {
            let ram = [block("a", 0), second];
            let options = RestoreOptions { ram: &ram, qmp: Path::new("/run/q"), guid: "g" };
            let out = for_restore(&words(&format!("{before} {nodes}")), &options).unwrap().join(" ");
            let first = RAM.replace("id=mem", "id=a");
            let expected = format!(
                "qemu -m 2G {nodes} {first} -object memory-backend-file,id=b,size=1073741824B,{place} {END}"
            );
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn ram_of_other_nodes_or_of_another_name_is_refused() {
        let refused = |command: &str, names: &[&str]| {
            let ram: Vec<_> = names.iter().map(|name| block(name, 0)).collect();
            let options = RestoreOptions { ram: &ram, qmp: Path::new("/q"), guid: "g" };
            for_restore(&words(command), &options).is_err()
        };
        let two = "qemu -numa node,memdev=a -numa node,memdev=b";
        assert!(!refused("qemu -numa node,memdev=a", &["a"]) && !refused(two, &["b", "a"]));
        for (command, names) in [
            (two, &["a"][..]),
            (two, &["a", "c"]),
            ("qemu -numa node,memdev=b", &["a"]),
            ("qemu -numa node,mem=1G", &["a"]),
            ("qemu -m 2G", &["a", "b"]),
        ] {
            assert!(refused(command, names), "{command} {names:?}");
        }
    }

    #[test]
    fn guids_differ() {
        let (a, b) = (fresh_guid().unwrap(), fresh_guid().unwrap());
        assert_eq!(a.len(), 36);
        assert_ne!(a, b);
    }
}
