//! The page cache of files on real disks: left out of the image, read again from the disk after a restore, and
//! never written to it.

mod support;

use elision_testbed::programs::Files;
use elision_testbed::{Guest, GuestOptions, Spawn, modules, pages, secret};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Images, copies, json, refuses, restore, save, sh, swap};

/// A disk with one file system.
struct Disk {
    name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
}

const DISKS: [Disk; 4] = [
    Disk { name: "ext4", make: &["mke2fs", "-q", "-t", "ext4", "-E", AT_ONCE], check: &["e2fsck", "-fn"] },
    // Several blocks in a page.
    Disk {
        name: "ext4",
        make: &["mke2fs", "-q", "-t", "ext4", "-E", AT_ONCE, "-b", "1024"],
        check: &["e2fsck", "-fn"],
    },
    Disk { name: "xfs", make: &["mkfs.xfs", "-q", "-b", "size=1024"], check: &["xfs_repair", "-n"] },
    Disk { name: "btrfs", make: &["mkfs.btrfs", "-q"], check: &["btrfs", "check"] },
];
/// The kernel is to write nothing of its own later.
const AT_ONCE: &str = "lazy_itable_init=0,lazy_journal_init=0";
/// The least that xfs takes.
const DISK_BYTES: u64 = 320 << 20;
/// What a kernel has as modules.
fn modules_of(kernel: &str) -> Files {
    let mut names = vec!["virtio_blk", "xfs", "btrfs", "overlay"];
    if ["5.10", "6.1"].contains(&kernel) {
        names.insert(0, "virtio_pci");
    }
    let kernel = GuestOptions::new(kernel).kernel().expect("a kernel");
    modules::with_needs(&kernel, &names).expect("modules")
}

/// The files that are chosen on each disk, each with its number of copies.
const CHOSEN: [(&str, u64); 4] = [("small", 1), ("more", 150), ("deep/odd", 500), ("large", 40_000)];

/// Disks whose file system is understood: btrfs of older kernels keeps a tree of what it has read, that of newer
/// ones a structure for each large page, and only its module has the types of both.
fn understood(kernel: &str) -> &'static [Disk] {
    if kernel == "6.12" { &DISKS } else { &DISKS[..3] }
}

/// The chosen files of a disk. Small ones stand in blocks of btrfs itself.
fn chosen(disk: &Disk) -> impl Iterator<Item = (&'static str, u64)> {
    let least = if disk.name == "btrfs" { 150 } else { 1 };
    CHOSEN.into_iter().filter(move |(_, copies)| *copies >= least)
}

/// The machine with these disks.
fn machine(kernel: &str, disks: &[PathBuf]) -> GuestOptions {
    let mut options = GuestOptions::new(kernel);
    for disk in disks {
        options = options.extra(&["-drive", &format!("file={},if=virtio,format=raw", disk.display())]);
    }
    options.files(modules_of(kernel))
}

fn run(words: &[&str], disk: &Path) {
    let output =
        Command::new(words[0]).args(&words[1..]).arg(disk).output().expect("a tool for file systems");
    assert!(output.status.success(), "{words:?}: {}", support::words(&output));
}

fn load_modules(guest: &mut Guest, kernel: &str) {
    for (module, _) in modules_of(kernel) {
        sh(guest, &format!("insmod /{module}"));
    }
}

/// New disks, and a guest that has them mounted below `/disks`, with files that are on the disks and in the cache.
fn boot(kernel: &str, folder: &Images) -> (Guest, Vec<PathBuf>) {
    let kinds = understood(kernel);
    let disks: Vec<PathBuf> = (0..kinds.len()).map(|i| folder.path(&format!("disk{i}"))).collect();
    for (kind, disk) in kinds.iter().zip(&disks) {
        std::fs::File::create(disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
        run(kind.make, disk);
    }
    let options = machine(kernel, &disks);
    let mut guest = options.boot().expect("the guest boots");
    load_modules(&mut guest, kernel);
    for (device, (i, kind)) in ('a'..).zip(kinds.iter().enumerate()) {
        let at = format!("/disks/{i}");
        sh(&mut guest, &format!("mkdir -p {at} && mount -o noatime -t {} /dev/vd{device} {at}", kind.name));
        sh(&mut guest, &format!("mkdir -p {at}/secret/deep {at}/open"));
        for (file, copies) in chosen(kind) {
            sh(&mut guest, &format!("actor secret chosen {copies} > {at}/secret/{file}"));
        }
        sh(&mut guest, &format!("actor secret other 3000 > {at}/open/file"));
    }
    sh(&mut guest, "sync");
    (guest, disks)
}

fn sums(guest: &mut Guest) -> String {
    sh(guest, "find /disks -type f | sort | xargs sha256sum")
}

/// The places of a secret's first copy in each block of a disk.
fn blocks_with(disk: &Path, label: &str) -> Vec<usize> {
    let (bytes, secret) = (std::fs::read(disk).expect("a disk"), secret(label));
    let has = |block: &[u8]| block.windows(secret.len()).any(|part| part == secret);
    (0..).zip(bytes.chunks(4096)).filter(|(_, block)| has(block)).map(|(i, _)| i).collect()
}

#[test]
fn files_of_6_12_are_left_out_and_read_again() {
    left_out_and_read_again("6.12");
}

#[test]
fn files_of_all_kernels_are_left_out_and_read_again() {
    if pages::in_full() {
        ["6.1", "7", "5.10"].into_iter().for_each(left_out_and_read_again);
    }
}

fn left_out_and_read_again(kernel: &str) {
    let folder = Images::new();
    let (mut guest, disks) = boot(kernel, &folder);
    let kinds = understood(kernel);
    // A process that stays maps a chosen file. Pages of longer files are large on newer kernels.
    let file = if kernel == "7" { "file=4K" } else { "file" };
    sh(&mut guest, "mkdir -p /var/played /disks/0/secret/mapped");
    sh(&mut guest, "mount --bind /disks/0/secret/mapped /var/played");
    let mapper = guest.control().spawn(&Spawn::new("mapped", file, "block")).expect("a process");
    let place = mapper.planted.iter().find(|planted| planted.place == "file").expect("a mapping");
    let (page, pages) = (place.address / 4096, place.len / 4096);
    let memory =
        format!("dd if=/proc/{}/mem bs=4096 skip={page} count={pages} 2>/dev/null | sha256sum", mapper.pid);
    sh(&mut guest, "sync");
    let (before, mapped) = (sums(&mut guest), sh(&mut guest, &memory));
    let (plain, elided) = (folder.path("plain"), folder.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["file=/disks/*/secret/**"]));
    let labels = ["chosen", "other", "mapped"];
    let (was, is) = (copies(&plain, &labels), copies(&elided, &labels));
    println!("{kernel}: copies of {labels:?}: {was:?}, then {is:?}; {}", saved["plan"]);
    let planted: u64 = kinds.iter().flat_map(chosen).map(|(_, copies)| copies).sum();
    assert!(was[0] >= planted && was[1] >= 3000 * kinds.len() as u64, "control: {was:?}");
    assert_eq!(is[0], 0, "chosen files");
    assert!(is[1] >= 3000 * kinds.len() as u64, "files that were not chosen are gone");
    assert!(
        was[2] >= pages * 128 + is[2] && is[2] < 100,
        "the process has its own copies, and no more: {is:?}"
    );

    // Nothing is written to the disks after the save: all was, and reading leaves no mark.
    guest.endpoints().stop().expect("the guest stops");
    let own: Vec<PathBuf> = (0..kinds.len()).map(|i| folder.path(&format!("own{i}"))).collect();
    for (disk, own) in disks.iter().zip(&own) {
        std::fs::copy(disk, own).expect("a copy");
    }
    drop(guest);
    let options = machine(kernel, &own);
    let mut restored = restore(&options, &elided);
    assert_eq!(sh(&mut restored, &memory), mapped, "what the process sees of the file");
    assert_eq!(sums(&mut restored), before, "after the restore");
    assert_eq!(swap::pressure(&mut restored, &options), None);
    assert_eq!(sums(&mut restored), before, "under memory pressure");
    sh(&mut restored, "actor secret later 100 > /disks/0/open/later && rm /disks/0/open/later && sync");
    sh(&mut restored, "echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(sums(&mut restored), before, "on the disks");
    sh(&mut restored, &format!("kill -9 {}; umount /var/played && umount /disks/*", mapper.pid));
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
    drop(restored);
    for ((kind, disk), own) in kinds.iter().zip(&disks).zip(&own) {
        run(kind.check, own);
        let (was, is) = (blocks_with(disk, "chosen"), blocks_with(own, "chosen"));
        assert!(was.len() > 300, "control: {} blocks of {} hold a copy", was.len(), kind.name);
        assert_eq!(is, was, "blocks of {} that hold a copy", kind.name);
    }
}

#[test]
fn btrfs_is_refused_where_it_is_not_understood() {
    if pages::in_full() {
        for kernel in ["5.10", "6.1", "7"] {
            let folder = Images::new();
            let disk = folder.path("disk");
            std::fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
            run(DISKS[3].make, &disk);
            let mut guest = machine(kernel, &[disk]).boot().expect("the guest boots");
            load_modules(&mut guest, kernel);
            sh(
                &mut guest,
                "mkdir /disk && mount -t btrfs /dev/vda /disk && actor secret x 40000 > /disk/file && sync",
            );
            refuses(
                &mut save(&guest, &folder.path("image"), &["file=/disk/file"]),
                3,
                &["/disk/file", "btrfs"],
            );
        }
    }
}

/// What is not on a disk yet, or stands where it cannot be taken out, is refused; what is in memory only, below
/// an overlay, or private to excluded processes goes.
#[test]
fn files_are_refused_waited_for_or_left_out() {
    let kernel = "6.12";
    let folder = Images::new();
    let (mut guest, _disks) = boot(kernel, &folder);
    let image = folder.path("image");
    // Memory behind which the kernel has a file without a name.
    guest.control().spawn(&Spawn::new("huge", "hugetlb", "block")).expect("a process");

    sh(&mut guest, "actor secret tiny > /disks/3/secret/tiny && sync");
    let choice = ["file=/disks/3/secret/tiny"];
    refuses(&mut save(&guest, &image, &choice), 3, &["/disks/3/secret/tiny", "so small", "btrfs"]);
    refuses(&mut save(&guest, &image, &["file=/no/such/file"]), 3, &["Nothing in the guest matches"]);

    sh(&mut guest, "actor secret dirty 1000 > /disks/2/open/dirty");
    let choice = ["file=/disks/2/open/dirty"];
    refuses(&mut save(&guest, &image, &choice), 3, &["/disks/2/open/dirty (32 KiB)", "--dirty wait"]);
    assert!(!image.exists(), "half an image");
    let (before, waited) = (folder.path("before"), folder.path("waited"));
    json(&mut save(&guest, &before, &[]));
    // The guest writes what is so old, in hundredths of a second.
    sh(
        &mut guest,
        "cd /proc/sys/vm && echo 500 > dirty_expire_centisecs && echo 100 > dirty_writeback_centisecs",
    );
    json(save(&guest, &waited, &choice).args(["--dirty", "wait"]));
    let counts = [&before, &waited].map(|image| copies(image, &["dirty", "other"]));
    println!("waited for: {counts:?}");
    assert!(counts[0][0] >= 1000 && counts[1][0] == 0 && counts[1][1] > 0, "{counts:?}");

    sh(&mut guest, "mkdir -p /mnt/upper /merged && mount -t tmpfs none /mnt");
    sh(&mut guest, "mkdir -p /disks/0/lower /disks/0/upper /disks/0/work");
    sh(&mut guest, "actor secret below 300 > /disks/0/lower/file");
    let layers = "lowerdir=/disks/0/lower,upperdir=/disks/0/upper,workdir=/disks/0/work";
    sh(&mut guest, &format!("mount -t overlay -o {layers} overlay /merged"));
    sh(&mut guest, "actor secret above 300 > /merged/new && cat /merged/file > /dev/null");
    sh(&mut guest, "actor secret memory 300 > /mnt/file");
    for (label, place) in [("opened", "/disks/1/open/own"), ("charged", "/disks/2/open/own")] {
        sh(&mut guest, &format!("actor secret {label} 300 > {place}"));
    }
    sh(&mut guest, "sync; echo 3 > /proc/sys/vm/drop_caches; cat /merged/* /disks/0/open/file > /dev/null");
    let group = "/sys/fs/cgroup/elision.slice";
    sh(&mut guest, &format!("echo +memory > /sys/fs/cgroup/cgroup.subtree_control; mkdir -p {group}"));
    let reader = "cat /disks/2/open/own > /dev/null; exec sleep 1000 < /disks/1/open/own";
    sh(
        &mut guest,
        &format!(
            "sh -c 'echo $$ > {group}/cgroup.procs; cat /disks/1/open/own; {reader}' > /dev/null 2>&1 &"
        ),
    );
    let labels = ["below", "above", "memory", "opened", "charged", "other"];
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !sh(&mut guest, "ps").contains("sleep 1000") {
        assert!(std::time::Instant::now() < until, "the reader does not come to rest");
    }
    let (plain, elided) = (folder.path("plain"), folder.path("elided"));
    json(&mut save(&guest, &plain, &["cgroup=elision.slice"]));
    let choice = ["file=/merged/*", "file=/mnt/file", "cgroup=elision.slice"];
    json(save(&guest, &elided, &choice).args(["--cache", "exclude"]));
    let (was, is) = (copies(&plain, &labels), copies(&elided, &labels));
    println!("{labels:?}: {was:?}, then {is:?}");
    assert!(was.iter().all(|n| *n >= 300), "control: {was:?}");
    assert_eq!(is[..5], [0; 5]);
    assert!(is[5] > 0, "files of nobody's choice are gone");
}
