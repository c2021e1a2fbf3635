//! What was started by `elision-agent run NAME`: memory of every child, what stands in pipes and sockets, and the cache of files that
//! it has open or had open. All of it is in an image without `container=NAME`, and nothing in one with it.

mod support;

#[path = "support/agent.rs"]
#[allow(dead_code)] // this file uses a part
mod port;

use elision_testbed::{Guest, GuestOptions, modules};
use port::options;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Images, copies_of, json, save, sh};

const DISK_BYTES: u64 = 64 << 20;
/// The driver of the disk, which a kernel may have as a module.
const DRIVER: &str = "virtio_blk";

/// Started in the container. Each secret is a short text again and again, which stands once in this file.
const INSIDE: &str = "#!/bin/sh
again() { yes $1 | head -c 65536; }
shell=$(again of-the-shell-4711)
setsid sh -c 'daemon=$(yes of-a-daemon-4711 | head -c 65536); echo >/run/ready.daemon; sleep 100001; echo $daemon' </dev/null &
mkfifo /run/fifo
exec 5<>/run/fifo
yes in-a-pipe-4711 | head -c 16384 >&5
again in-an-open-file-4711 > /disk/open
again in-a-closed-file-4711 > /disk/closed
sync
exec 6</disk/open
echo >/run/ready.shell
sleep 100000
echo $shell
";
/// Started beside it; what it has stays.
const OUTSIDE: &str = "#!/bin/sh
outside=$(yes of-another-4711 | head -c 65536)
echo >/run/ready.outside
sleep 100002
echo $outside
";

const SECRETS: [&str; 5] =
    ["of-the-shell", "of-a-daemon", "in-a-pipe", "in-an-open-file", "in-a-closed-file"];

/// How often the text stands in an image, as a part that is longer than once.
fn found(image: &Path, text: &str) -> u64 {
    let again: Vec<u8> = format!("{text}-4711\n").bytes().cycle().take(160).collect();
    // A shell keeps lines as they are, and words of one variable too.
    copies_of(image, &again[64..128])
}

fn with_disk(folder: &Images) -> (GuestOptions, Vec<String>) {
    let disk = folder.path("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk).status();
    assert!(made.expect("mke2fs").success());
    let base = options("6.12");
    let needed = modules::with_needs(&base.kernel().expect("a kernel"), &[DRIVER]).unwrap_or_default();
    let names = needed.iter().map(|(name, _)| name.clone()).collect();
    let mut files = needed;
    for (name, text) in [("inside", INSIDE), ("outside", OUTSIDE)] {
        let script = folder.path(name);
        std::fs::write(&script, text).expect("a script");
        files.push((format!("bin/{name}"), script));
    }
    let drive = format!("file={},if=virtio,format=raw", disk.display());
    (base.files(files).extra(&["-drive", &drive]), names)
}

fn wait_for(guest: &mut Guest, file: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    while sh(guest, &format!("[ -e {file} ] && echo yes || echo no")).trim() != "yes" {
        assert!(Instant::now() < until, "{file} is not there: {}", sh(guest, "cat /run/*.log"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn nothing_of_a_container_is_in_an_image_without_it() {
    let images = Images::new();
    let (options, modules) = with_disk(&images);
    let mut guest = options.boot().expect("the guest boots");
    for module in modules {
        sh(&mut guest, &format!("insmod /{module} 2>/dev/null; true"));
    }
    sh(&mut guest, "mkdir /disk && mount -t ext4 -o noatime /dev/vda /disk");
    sh(&mut guest, "setsid elision-agent run vault -- inside </dev/null >/run/inside.log 2>&1 &");
    sh(&mut guest, "setsid outside </dev/null >/run/outside.log 2>&1 &");
    for name in ["daemon", "shell", "outside"] {
        wait_for(&mut guest, &format!("/run/ready.{name}"));
    }

    let (whole, image) = (images.path("whole"), images.path("image"));
    json(&mut save(&guest, &whole, &[]));
    let saved =
        json(save(&guest, &image, &["container=vault"]).args(["--cache", "exclude", "--dirty", "wait"]));
    assert!(saved["excluded"].as_array().is_some_and(|list| list.len() >= 4), "{saved}");
    let there = SECRETS.map(|text| found(&whole, text));
    let left = SECRETS.map(|text| found(&image, text));
    let outside = found(&image, "of-another");
    println!("{SECRETS:?}: {there:?}, then {left:?}; of another process {outside}");
    assert!(there.iter().all(|n| *n > 0), "control: {there:?}");
    assert_eq!(left, [0; SECRETS.len()]);
    assert!(outside > 0, "control: what stays is in the image");
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}
