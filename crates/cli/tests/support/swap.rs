//! Swap in a guest: on a loop device, whose module comes over the guest's serial port.

use super::sh;
use elision_testbed::{Guest, GuestOptions, modules};
use std::process::Command;

/// Output of a program on the host.
fn host(command: &mut Command) -> String {
    let output = command.output().expect("a program");
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Gives the guest 64 MiB of swap, and groups with a limit of memory.
pub(crate) fn turn_on(guest: &mut Guest, options: &GuestOptions) {
    let kernel = options.kernel().expect("a kernel");
    let module = modules::get(&kernel, "loop").expect("its loop module");
    let packed = host(Command::new("sh").args(["-c", "gzip -9c \"$0\" | base64 -w 0"]).arg(&module));
    sh(guest, &format!("echo {packed} | base64 -d | gunzip > /tmp/loop.ko && insmod /tmp/loop.ko"));
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
