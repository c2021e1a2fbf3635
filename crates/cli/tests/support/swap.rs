//! Swap in a guest: on a loop device.

use super::{modules, sh};
use elision_testbed::{Guest, GuestOptions};

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
