//! Swap in a guest: on a loop device, on a disk, in zram.

use super::{modules, sh};
use elision_testbed::{Guest, GuestOptions};
use std::fs::File;
use std::path::Path;

/// Gives the guest 64 MiB of swap, and groups with a limit of memory.
pub(crate) fn turn_on(guest: &mut Guest, options: &GuestOptions) {
    modules::load(guest, options, "loop");
    sh(guest, "dd if=/dev/zero of=/tmp/swap bs=1M count=64 && losetup /dev/loop0 /tmp/swap");
    sh(guest, "mkswap /dev/loop0 && swapon /dev/loop0");
    sh(guest, "echo +memory > /sys/fs/cgroup/cgroup.subtree_control");
}

/// Work that needs more memory than its group has: what is wrong with its data afterwards. The pages go to swap
/// and come back.
pub(crate) fn pressure(guest: &mut Guest, options: &GuestOptions) -> Option<String> {
    turn_on(guest, options);
    let group = "/sys/fs/cgroup/pressed";
    sh(guest, &format!("mkdir {group} && echo 16M > {group}/memory.max"));
    let work = "head -c 40000000 /dev/urandom | tee /tmp/pressed | md5sum > /tmp/sum";
    sh(guest, &format!("sh -c 'echo $$ > {group}/cgroup.procs; {work}'"));
    let swapped = sh(guest, &format!("cat {group}/memory.swap.current"));
    assert!(swapped.trim().parse::<u64>().expect("a number") > 1 << 20, "control: nothing went to swap");
    sh(guest, &format!("sh -c 'echo $$ > {group}/cgroup.procs; md5sum < /tmp/pressed > /tmp/again'"));
    let same = sh(guest, "cmp /tmp/sum /tmp/again && echo same || true");
    (!same.contains("same")).then(|| format!("data changed under memory pressure: {same}"))
}

/// Options with modules, and with a disk of 64 MiB, `/dev/vda`, in `folder`; and the files to load, in order.
pub(crate) fn with_disk(options: GuestOptions, names: &[&str], folder: &Path) -> (GuestOptions, Vec<String>) {
    let disk = folder.join("swap");
    File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a disk");
    let drive = format!("file={},if=none,id=swap,format=raw,cache=unsafe", disk.display());
    let options = options.extra(&["-drive", &drive, "-device", "virtio-blk-pci,drive=swap"]);
    let files = elision_testbed::modules::with_needs(&options.kernel().expect("a kernel"), names);
    let files = files.expect("modules");
    let load = files.iter().map(|(name, _)| name.clone()).collect();
    (options.files(files), load)
}

/// Loads modules, switches a device on as swap, and makes groups with a limit of memory.
pub(crate) fn turn_on_at(guest: &mut Guest, modules: &[String], device: &str) {
    for module in modules {
        sh(guest, &format!("insmod /{module}"));
    }
    if device.contains("zram") {
        sh(guest, "echo 64M > /sys/block/zram0/disksize");
    }
    sh(guest, &format!("mkswap {device} && swapon {device}"));
    sh(guest, "echo +memory > /sys/fs/cgroup/cgroup.subtree_control");
}
