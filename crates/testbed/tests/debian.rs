//! A guest with a Debian system: systemd has started what the packages bring.
//!
//! Only in the full form of the tests, as the disk takes minutes to build.

use elision_testbed::{GuestOptions, debian, pages};

#[test]
fn systemd_starts_what_the_packages_bring() {
    if !pages::in_full() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    debian::disk(&["redis-server"], &disk).expect("a disk");
    let mut guest =
        GuestOptions::new("6.12").memory_mib(1024).root_disk(&disk).boot().expect("the guest boots");
    let said = guest.control().sh("redis-cli ping; systemctl is-system-running").expect("the guest answers");
    assert_eq!(said.output.lines().collect::<Vec<_>>(), ["PONG", "running"]);
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}
