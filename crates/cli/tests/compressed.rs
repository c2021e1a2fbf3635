//! A real VM whose image is compressed: nothing excluded is in it, and it runs again.

mod support;

use elision_testbed::{GuestOptions, RamMode, Spawn};
use std::time::Duration;
use support::{Images, copies, elision, json, restore, save};

#[test]
fn a_compressed_image_is_smaller_clean_and_runs() {
    for ram in [RamMode::Shared, RamMode::Plain] {
        let options = GuestOptions::new("6.1").ram(ram);
        let mut guest = options.boot().expect("the guest boots");
        guest.control().spawn(&Spawn::new("victim", "heap", "sleep=20ms").uid(1234)).expect("a victim");
        guest.control().spawn(&Spawn::new("bystander", "heap", "sleep=20ms")).expect("a bystander");
        let images = Images::new();
        let (plain, packed) = (images.path("plain"), images.path("packed"));
        let with_all = json(save(&guest, &plain, &[]).arg("--compress=1"));
        let saved = json(save(&guest, &packed, &["uid=1234"]).arg("--compress"));
        assert!(copies(&plain, &["victim"])[0] > 1000, "control: {ram:?}");
        let found = copies(&packed, &["victim", "bystander"]);
        assert!(found[0] == 0 && found[1] > 1000, "{ram:?}: {found:?}");
        for ram in [&with_all["ram"], &saved["ram"]] {
            let bytes = |name: &str| ram[name].as_u64().expect("a number");
            assert!(bytes("stored") < bytes("written") * 2 / 3, "{ram}");
        }
        assert!(!packed.join("ram.img").exists());
        assert!(elision().arg("verify").arg(&packed).status().expect("elision starts").success());
        let ps = json(elision().arg("ps").arg(&packed));
        assert!(ps.to_string().contains("1234"), "{ps}");
        drop(guest);

        let mut clones = [restore(&options, &packed), restore(&options, &packed)];
        for clone in &mut clones {
            let before = clone.control().count("bystander").expect("counters");
            std::thread::sleep(Duration::from_millis(300));
            assert!(clone.control().count("bystander").expect("counters") > before, "{ram:?}");
            assert!(clone.control().health(1).expect("it answers").errors.is_empty(), "{ram:?}");
            assert!(clone.console_problems().is_empty(), "{ram:?}: {:?}", clone.console_problems());
        }
        // A VM that was restored from unpacked memory is saved like any other.
        let again = images.path("again");
        json(&mut save(&clones[0], &again, &[]));
        assert_eq!(copies(&again, &["victim"]), [0], "{ram:?}");
    }
}
