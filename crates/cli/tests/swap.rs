//! Pages of an excluded process in the guest's swap: refused and named, or let pass on the user's word and recorded.

mod support;

use elision_kernel::{FrameKind, Kernel, ProfileCache};
use elision_testbed::{Guest, GuestOptions, Spawn, Status, pages, search, secret};
use support::{Images, copies, elision, json, refuses, restore, save, sh, swap};

#[test]
fn pages_in_swap_are_refused_and_named_or_recorded() {
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on(&mut guest, &options);
    let victim =
        guest.control().spawn(&Spawn::new("victim", "heap=16M", "sleep").cgroup("/swapped").uid(1234));
    let pid = victim.expect("a process").pid;
    let images = Images::new();
    let image = images.path("vm.elision");
    let exclude = format!("pid={pid}");
    // The control: swap that nobody excluded uses is in nobody's way.
    json(&mut save(&guest, &image, &[&exclude]));
    std::fs::remove_dir_all(&image).expect("the image");

    sh(&mut guest, "echo 12M > /sys/fs/cgroup/swapped/memory.reclaim || true");
    let used = sh(&mut guest, &format!("grep VmSwap /proc/{pid}/status"));
    let kib: u64 = used.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    println!("in swap: {kib} KiB");
    assert!(kib > 4096, "control: the guest has little of it in swap: {used}");

    let parts = [
        format!("process {pid} (actor) has {kib} KiB in swap on /dev/loop0, which stays on the guest's disk"),
        "`swapoff /dev/loop0`".to_owned(),
    ];
    refuses(&mut save(&guest, &image, &[&exclude]), 3, &parts.each_ref().map(String::as_str));
    assert_eq!(images.names(), Vec::<String>::new());
    guest.control().ping().expect("the guest runs on");

    let planned = elision()
        .args(["plan", "--json", "--exclude", &exclude, "--qmp"])
        .arg(guest.endpoints().qmp_socket())
        .output()
        .expect("elision starts");
    assert_eq!(planned.status.code(), Some(3));
    let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).expect("JSON");
    assert_eq!(planned["would_save"], false, "{planned}");

    json(save(&guest, &image, &[&exclude]).arg("--best-effort"));
    let facts = json(elision().arg("inspect").arg(&image));
    let completeness = &facts["completeness"];
    assert_eq!(completeness["kind"], "best-effort", "{completeness}");
    let listed = completeness["unaccounted"].to_string();
    assert!(listed.contains(&format!("has {kib} KiB in swap")), "{listed}");
    let said = elision().arg("inspect").arg(&image).output().expect("elision starts");
    assert!(String::from_utf8_lossy(&said.stdout).contains("no, saved with --best-effort"));
    // Somebody else's pages in swap are not in the way either.
    std::fs::remove_dir_all(&image).expect("the image");
    let other = guest.control().spawn(&Spawn::new("other", "heap", "sleep")).expect("a process").pid;
    json(&mut save(&guest, &image, &[&format!("pid={other}")]));
    assert_eq!(guest.control().status(pid).expect("the guest answers"), Status::Running);
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}

/// A process of which most is in swap on a device; and its process id, and KiB in swap.
fn swapped_out(guest: &mut Guest, group: &str) -> (i32, u64) {
    let spawn = Spawn::new("victim", "heap=16M", "sleep").cgroup(group);
    let pid = guest.control().spawn(&spawn).expect("a process").pid;
    sh(guest, &format!("echo 12M > /sys/fs/cgroup/{group}/memory.reclaim || true"));
    (pid, in_swap(guest, pid))
}

fn in_swap(guest: &mut Guest, pid: i32) -> u64 {
    let used = sh(guest, &format!("grep VmSwap /proc/{pid}/status"));
    let kib = used.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    println!("in swap: {kib} KiB");
    kib
}

/// Reads one page of sixteen of a process's heap: its neighbours come into the swap cache, and into no page table.
fn read_ahead(guest: &mut Guest, pid: i32) {
    sh(
        guest,
        &format!(
            "while read area rights rest; do
                from=$((0x${{area%-*}} / 4096)) to=$((0x${{area#*-}} / 4096))
                case \"$rights\" in rw-p) ;; *) continue;; esac
                [ $((to - from)) -gt 2000 ] || continue
                while [ $from -lt $to ]; do
                    dd if=/proc/{pid}/mem of=/dev/null bs=4096 skip=$from count=1 2>/dev/null
                    from=$((from + 16))
                done
            done < /proc/{pid}/maps"
        ),
    );
}

/// Swap on a disk: without what stands there, nothing of the process is in the image.
fn pages_of_the_swap_cache_are_dropped(kernel: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    // Older kernels have more of what a disk needs as modules.
    let needed: &[&str] = if kernel == "6.1" { &["virtio_pci", "virtio_blk"] } else { &["virtio_blk"] };
    let (options, modules) = swap::with_disk(GuestOptions::new(kernel), needed, folder.path());
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on_at(&mut guest, &modules, "/dev/vda");
    let (pid, before) = swapped_out(&mut guest, "swapped");
    read_ahead(&mut guest, pid);
    let kib = in_swap(&mut guest, pid);
    assert!(kib > 4096 && before > kib, "control: {before} KiB, then {kib} KiB");
    let cached = sh(&mut guest, "grep SwapCached /proc/meminfo");
    println!("{kernel}: {cached}");
    let cached: u64 = cached.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!(cached > 256, "control: the swap cache has only {cached} KiB");

    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    let exclude = format!("pid={pid}");
    let parts =
        [format!("process {pid} (actor) has {kib} KiB in swap on /dev/vda, which stays on the guest's disk")];
    refuses(&mut save(&guest, &elided, &[&exclude]), 3, &parts.each_ref().map(String::as_str));
    json(&mut save(&guest, &plain, &[]));
    json(save(&guest, &elided, &[&exclude]).arg("--best-effort"));
    let (before, after) = (copies(&plain, &["victim"])[0], copies(&elided, &["victim"])[0]);
    println!("{kernel}: copies {before}, then {after}");
    assert!(before > 1000 && after == 0, "{before} copies, then {after}");
    std::fs::remove_dir_all(&elided).expect("the image");
    sh(&mut guest, "swapoff /dev/vda");
    json(&mut save(&guest, &elided, &[&exclude]));
    assert_eq!(copies(&elided, &["victim"]), [0]);
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}

#[test]
fn pages_of_the_swap_cache_are_dropped_on_7() {
    pages_of_the_swap_cache_are_dropped("7");
}

#[test]
fn pages_of_the_swap_cache_are_dropped_on_other_kernels() {
    if pages::in_full() {
        ["6.1", "6.12"].into_iter().for_each(pages_of_the_swap_cache_are_dropped);
    }
}

/// A page that only an excluded process maps can be the copy of what its parent has in swap since it forked.
#[test]
fn a_copy_of_what_another_process_has_in_swap_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let (options, modules) = swap::with_disk(GuestOptions::new("7"), &["virtio_blk"], folder.path());
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on_at(&mut guest, &modules, "/dev/vda");
    let parent = guest.control().spawn(&Spawn::new("family", "heap=16M", "crowd=1").cgroup("family"));
    let parent = parent.expect("two processes");
    let child = parent.children[0];
    sh(&mut guest, "echo 16M > /sys/fs/cgroup/family/memory.reclaim || true");
    let before = in_swap(&mut guest, child);
    read_ahead(&mut guest, child);
    let [of_child, of_parent] = [child, parent.pid].map(|pid| in_swap(&mut guest, pid));
    assert!(
        before > 8192 && of_child + 512 <= before,
        "control: the child has {before} KiB in swap, then {of_child}"
    );
    assert!(
        of_parent > of_child + 512,
        "control: the parent has {of_parent} KiB there, the child {of_child}"
    );

    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    // A few pages of the child are its own.
    json(save(&guest, &elided, &[&format!("pid={child}")]).arg("--best-effort"));
    let [all, kept] = [&plain, &elided].map(|image| copies(image, &["family"])[0]);
    println!("copies in memory: {all}, then {kept}");
    // What the child has alone goes: a page or so.
    assert!(kept <= all && all - kept < 256, "{all} copies, then {kept}");

    let (from, count) = (parent.planted[0].address / 4096, parent.planted[0].len / 4096);
    let sum =
        format!("dd if=/proc/{}/mem bs=4096 skip={from} count={count} 2>/dev/null | md5sum", parent.pid);
    let expected = sh(&mut guest, &sum);
    drop(guest);
    let mut restored = restore(&options, &elided);
    assert_eq!(sh(&mut restored, &sum), expected);
    assert_eq!(restored.console_problems(), Vec::<String>::new());
}

/// Swap in the guest's own memory: what it holds is compressed there and is refused.
fn pages_in_zram_are_refused(kernel: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let needed: &[&str] = if kernel == "6.1" { &["lzo_rle", "zram"] } else { &["zram"] };
    let (options, modules) = swap::with_disk(GuestOptions::new(kernel), needed, folder.path());
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on_at(&mut guest, &modules, "/dev/zram0");
    let (pid, kib) = swapped_out(&mut guest, "swapped");
    assert!(kib > 4096, "control: the guest has little of it in swap");
    let images = Images::new();
    let image = images.path("vm");
    let exclude = format!("pid={pid}");
    let parts = [
        format!(
            "process {pid} (actor) has {kib} KiB in swap on /dev/zram0, which is compressed in the guest's memory"
        ),
        "`swapoff /dev/zram0`".to_owned(),
    ];
    refuses(&mut save(&guest, &image, &[&exclude]), 3, &parts.each_ref().map(String::as_str));
    sh(&mut guest, "swapoff /dev/zram0 && echo 1 > /sys/block/zram0/reset");
    json(&mut save(&guest, &image, &[&exclude]));
    assert_eq!(copies(&image, &["victim"]), [0]);
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}

#[test]
fn pages_in_zram_are_refused_on_6_12() {
    pages_in_zram_are_refused("6.12");
}

#[test]
fn pages_in_zram_are_refused_on_other_kernels() {
    if pages::in_full() {
        ["6.1", "7"].into_iter().for_each(pages_in_zram_are_refused);
    }
}

/// A cache before the disk in the guest's own memory.
#[test]
fn pages_in_zswap_are_refused_on_7() {
    let folder = tempfile::tempdir().expect("a folder");
    let (options, modules) = swap::with_disk(GuestOptions::new("7"), &["virtio_blk"], folder.path());
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on_at(&mut guest, &modules, "/dev/vda");
    sh(&mut guest, "echo Y > /sys/module/zswap/parameters/enabled");
    let (pid, kib) = swapped_out(&mut guest, "swapped");
    let stored = sh(&mut guest, "grep Zswapped /proc/meminfo");
    let stored: u64 = stored.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!(kib > 4096 && stored > 4096, "control: {kib} KiB in swap, {stored} KiB in zswap");
    let images = Images::new();
    let image = images.path("vm");
    let exclude = format!("pid={pid}");
    let parts = [format!("process {pid} (actor) has {kib} KiB in swap on /dev/vda"), "(zswap)".to_owned()];
    refuses(&mut save(&guest, &image, &[&exclude]), 3, &parts.each_ref().map(String::as_str));
    let saved = json(&mut save(&guest, &image, &[]));
    let kept = saved["plan"]["kept_frames"].as_object().expect("counts");
    let compressed = kept.iter().find(|(what, _)| what.starts_with("compressed swap")).expect("it is said");
    assert!(compressed.1.as_u64() >= Some(stored / 4), "{compressed:?} of {stored} KiB");
    std::fs::remove_dir_all(&image).expect("the image");
    sh(&mut guest, "echo N > /sys/module/zswap/parameters/enabled; swapoff /dev/vda");
    json(&mut save(&guest, &image, &[&exclude]));
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}

/// How often the secret of a label stands in the guest's compressed swap.
fn in_compressed(guest: &Guest, label: &str) -> usize {
    let ram = guest.ram().expect("its RAM");
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    let scan = kernel.scan_descriptors();
    let found = search::find(&ram, &[secret(label)]).expect("a search");
    // A guest of this size has all its RAM in one piece.
    let is_compressed = |at: u64| scan.kind(elision_memory::Gpa(at).gfn()) == FrameKind::Compressed;
    found[0].iter().filter(|at| is_compressed(at.0)).count()
}

/// A kernel with compressed swap built in has its types: what it freed is found and cleared.
#[test]
fn what_zram_has_freed_is_cleared_on_7() {
    let folder = tempfile::tempdir().expect("a folder");
    let (options, modules) = swap::with_disk(GuestOptions::new("7").vcpus(1), &["zram"], folder.path());
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on_at(&mut guest, &modules, "/dev/zram0");
    let [victim, other] = ["victim", "other"].map(|label| {
        // Pages that begin with the secret: so do their compressed forms.
        let spawn = Spawn::new(label, "cow=4M", "sleep").cgroup(label);
        guest.control().spawn(&spawn).expect("a process")
    });
    // By turns, so that what is freed is among what stays.
    let by_turns = "for n in $(seq 60); do for group in victim other; do
        echo 128K > /sys/fs/cgroup/$group/memory.reclaim || true; done; done";
    sh(&mut guest, by_turns);
    // What the only CPU compressed last is a third's: who had the last turn that took something is by chance.
    let third = guest.control().spawn(&Spawn::new("third", "cow=1M", "sleep").cgroup("third"));
    let third = third.expect("a process").pid;
    for _ in 0..20 {
        sh(&mut guest, "echo 512K > /sys/fs/cgroup/third/memory.reclaim || true");
        if in_swap(&mut guest, third) > 0 {
            break;
        }
    }
    assert!(in_swap(&mut guest, third) > 0, "control: the third has nothing in compressed swap");
    guest.control().kill(victim.pid, 9).expect("it ends");
    let before = in_compressed(&guest, "victim");
    let images = Images::new();
    let image = images.path("vm");
    json(&mut save(&guest, &image, &[]));
    let after = copies(&image, &["victim", "other"]);
    println!("in compressed swap: {before}; in the image: {after:?}");
    assert!(before > 10, "control: only {before} copies of the process are left in compressed swap");
    assert_eq!(after[0], 0);
    assert!(after[1] > 10, "control: {after:?}");

    // What others have there is whole.
    let (from, count) = (other.planted[0].address / 4096, other.planted[0].len / 4096);
    let mem = format!("/proc/{}/mem", other.pid);
    let sum = format!("dd if={mem} bs=4096 skip={from} count={count} 2>/dev/null | md5sum");
    let expected = sh(&mut guest, &sum);
    drop(guest);
    let mut restored = restore(&options, &image);
    assert!(in_swap(&mut restored, other.pid) > 1024, "control: it is not in swap any more");
    assert_eq!(sh(&mut restored, &sum), expected);
    sh(&mut restored, "swapoff /dev/zram0 && echo 1 > /sys/block/zram0/reset");
    assert_eq!(restored.console_problems(), Vec::<String>::new());
}
