//! Turns a QEMU command into one that restores an image.
//!
//! Replaced: the RAM backend (a private mapping of the image's RAM, so that pages come in as they are
//! touched and the image never changes), the QMP socket, the GUID of a `vmgenid` device. Added:
//! `-incoming defer`. Taken away: what would fork, stop, preallocate, or load something else. Everything
//! else stays, `-kernel` and `-initrd` too: QEMU needs the same machine on both sides.

use super::options::{Item, Keys, QemuCommand, bad, escape};
use crate::error::{QemuError, Result};
use serde_json::Value;
use std::path::Path;

const DROPPED_FLAGS: [&str; 4] = ["daemonize", "S", "mem-prealloc", "preconfig"];
const DROPPED_OPTIONS: [&str; 4] = ["incoming", "loadvm", "pidfile", "mem-path"];

/// What a restored VM uses in place of what its command says.
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// The image's RAM file, which must be exactly `ram_len` bytes long.
    pub ram: &'a Path,
    /// Length of the RAM.
    pub ram_len: u64,
    /// Name of the RAM block in the device state.
    pub block: &'a str,
    /// Where QEMU is to listen.
    pub qmp: &'a Path,
    /// GUID for a `vmgenid` device; see [`fresh_guid`].
    pub guid: &'a str,
}

/// The command that restores an image.
pub fn for_restore(command: &[String], options: &RestoreOptions<'_>) -> Result<Vec<String>> {
    let mut command = QemuCommand::parse(command)?;
    let before = match numa_backend(&command)? {
        Some(id) if id == options.block => Some(id),
        Some(id) => {
            let why =
                format!("its only NUMA node has the RAM {id:?}, the image {:?}: name it so", options.block);
            return Err(bad(why));
        }
        None => command.memory_backend(),
    };
    if let Some(id) = &before {
        command.remove_backend(id);
    }
    command.remove_backend(options.block);
    command.remove_control();
    command.items.retain(|item| match item {
        Item::Flag(name) => !DROPPED_FLAGS.contains(&name.as_str()),
        Item::Option(name, _) => !DROPPED_OPTIONS.contains(&name.as_str()),
        Item::Positional(_) => true,
    });
    set_size(&mut command, options.ram_len)?;
    let path = options.ram.to_str().ok_or_else(|| bad("the image's path is not UTF-8"))?;
    let (id, path) = (escape(options.block), escape(path));
    command.add(
        "object",
        format!("memory-backend-file,id={id},size={}B,mem-path={path},share=off", options.ram_len),
    );
    if before.as_deref() != Some(options.block) {
        command.add("machine", format!("memory-backend={id}"));
    }
    set_guid(&mut command, options.guid);
    command.add_control(options.qmp);
    command.add("incoming", "defer");
    Ok(command.words())
}

/// The backend of the only NUMA node that has RAM, if nodes have RAM.
fn numa_backend(command: &QemuCommand) -> Result<Option<String>> {
    let nodes = command.values(&["numa"]).map(|v| Keys::parse(v, "type"));
    let mut nodes = nodes.filter(|k| k.get("memdev").is_some() || k.get("mem").is_some());
    match (nodes.next(), nodes.next()) {
        (None, _) => Ok(None),
        (Some(node), None) if node.get("mem").is_none() => Ok(node.get("memdev").map(String::from)),
        _ => Err(bad("RAM divided among NUMA nodes (-numa) is not supported")),
    }
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

    fn restored(command: &str) -> String {
        let options = RestoreOptions {
            ram: Path::new("/images/a,b/ram.img"),
            ram_len: 1 << 30,
            block: "mem",
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
    fn ram_of_several_nodes_or_of_another_name_is_refused() {
        let options =
            RestoreOptions { ram: Path::new("/r"), ram_len: 1, block: "a", qmp: Path::new("/q"), guid: "g" };
        let refused = |command: &str| for_restore(&words(command), &options).is_err();
        assert!(!refused("qemu -numa node,memdev=a"));
        for numa in ["node,memdev=a -numa node,memdev=b", "node,memdev=b", "node,mem=1G"] {
            assert!(refused(&format!("qemu -numa {numa}")), "{numa}");
        }
    }

    #[test]
    fn guids_differ() {
        let (a, b) = (fresh_guid().unwrap(), fresh_guid().unwrap());
        assert_eq!(a.len(), 36);
        assert_ne!(a, b);
    }
}
