//! A real guest: what is played in it is found in its RAM, and what it says about itself fits.

use elision_memory::{Gva, PAGE_SIZE};
use elision_testbed::{
    Control, Endpoints, Guest, GuestOptions, RamMode, SECRET_LEN, Spawn, Spawned, Status, counters, search,
    secret,
};
use std::path::Path;
use std::time::{Duration, Instant};

type Result<T = ()> = std::result::Result<T, elision_testbed::Error>;

#[test]
fn what_is_played_is_found_and_what_is_not_played_is_not() -> Result {
    let mut guest = GuestOptions::new("6.1").boot()?;
    secrets_stand_in_ram(&mut guest)?;
    the_counter_in_ram_is_the_counter_of_the_guest(&mut guest)?;
    ground_truth_leads_to_the_secret(&mut guest)?;
    options_of_a_process_show_in_the_guest(&mut guest)?;
    ends_are_seen_by_the_parent(&mut guest)?;
    let health = guest.control().health(1)?;
    assert!(health.checks >= 8 && health.errors.is_empty(), "{health:?}");
    assert_eq!(guest.console_problems(), Vec::<String>::new());
    Ok(())
}

fn secrets_stand_in_ram(guest: &mut Guest) -> Result {
    let places = "heap=1M,stack,thp,hugetlb,shm=256K,memfd=256K,tmpfs=256K,file,cow,xmm,pipe-unread";
    let played = guest.control().spawn(&Spawn::new("everywhere", places, "sleep"))?;
    for place in ["thp", "hugetlb"] {
        let planted = played.planted.iter().find(|p| p.place == place).expect("it was asked for");
        assert_eq!(planted.huge, planted.len, "{place} is not in huge pages");
    }
    let found = search::find(&guest.ram()?, &["everywhere", "never played"].map(secret))?;
    let expected: u64 = played.planted.iter().map(|p| p.len).sum::<u64>() / SECRET_LEN as u64 / 2;
    assert!(found[0].len() as u64 > expected, "{} of {expected}", found[0].len());
    assert_eq!(found[1].len(), 0, "the control is found as well");
    Ok(())
}

fn the_counter_in_ram_is_the_counter_of_the_guest(guest: &mut Guest) -> Result {
    guest.control().spawn(&Spawn::new("spinner", "heap=64K", "spin"))?;
    guest.control().spawn(&Spawn::new("sleeper", "heap=64K", "sleep"))?;
    let ram = guest.ram()?;
    let before = counters::count(&ram, "spinner")?.expect("the counter stands in RAM");
    let until = Instant::now() + Duration::from_secs(60);
    while counters::count(&ram, "spinner")? <= Some(before) {
        assert!(Instant::now() < until, "a spinning process counts");
        std::thread::sleep(Duration::from_millis(20));
    }
    guest.endpoints().stop()?;
    let stopped = counters::count(&ram, "spinner")?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(counters::count(&ram, "spinner")?, stopped, "a stopped guest does not count");
    guest.endpoints().cont()?;
    assert_eq!(counters::count(&ram, "sleeper")?, Some(1));
    assert_eq!(guest.control().count("sleeper")?, Some(1));
    assert_eq!(counters::count(&ram, "never played")?, None);
    Ok(())
}

fn ground_truth_leads_to_the_secret(guest: &mut Guest) -> Result {
    let played = guest.control().spawn(&Spawn::new("mapped", "shm=64K,thp", "block"))?;
    let truth = guest.truth(false, false)?;
    assert!(truth.symbols().is_empty() && truth.btf().is_none());
    check_planted(guest, &played, "mapped", &truth)?;
    let maps = truth.maps(played.pid);
    assert!(maps.iter().any(|m| m.path == "[stack]") && maps.iter().any(|m| m.path == "/bin/actor"));
    let frames = guest.layout().frame_limit().0;
    assert_eq!(truth.frame_flags().len() as u64, frames, "one word of flags for each frame");
    assert!(truth.pids().contains(&1) && !truth.buddy().is_empty());

    let types = guest.truth(true, true)?;
    assert!(types.btf().is_some_and(|b| b.starts_with(&[0x9f, 0xeb])));
    let text = types.symbols().into_iter().find(|s| s.name == "init_task");
    assert!(text.is_some_and(|s| s.address >> 63 == 1), "addresses are not hidden");
    Ok(())
}

/// Every planted page that is present holds the secret in the frame that the pagemap names.
fn check_planted(
    guest: &Guest,
    played: &Spawned,
    label: &str,
    truth: &elision_testbed::truth::Truth,
) -> Result<u64> {
    let ram = guest.ram()?;
    let pagemap = truth.pagemap(played.pid);
    let mut highest = 0;
    for planted in &played.planted {
        let start = planted.address.next_multiple_of(PAGE_SIZE as u64);
        let range = Gva(start)..Gva(planted.address + planted.len);
        let pages: Vec<_> = pagemap.iter().filter(|p| range.contains(&p.gva)).collect();
        assert!(pages.len() as u64 >= planted.len / PAGE_SIZE as u64 - 1, "{} is not present", planted.place);
        for page in pages {
            let gfn = page.gfn().expect("no swap in this guest");
            let mut bytes = [0; PAGE_SIZE];
            ram.read_frame(gfn, &mut bytes)?;
            let holds = bytes.windows(SECRET_LEN).any(|w| w == secret(label));
            assert!(holds, "{} at {} in frame {gfn}", planted.place, page.gva);
            highest = highest.max(gfn.0);
        }
    }
    Ok(highest)
}

fn options_of_a_process_show_in_the_guest(guest: &mut Guest) -> Result {
    let spawn = Spawn::new("dressed", "heap=64K", "threads=8").uid(1234).cgroup("/elision.slice/pod-abc");
    let played = guest.control().spawn(&spawn.tty("pty").comm("a (b) c").exe("/opt/dressed"))?;
    let plain = guest.control().spawn(&Spawn::new("plain", "heap=64K", "sleep"))?;
    let all = guest.control().processes()?;
    let of = |pid: i32| all.iter().find(|p| p.pid == pid).expect("it runs");
    let dressed = of(played.pid);
    assert_eq!((dressed.uid, dressed.ppid, dressed.threads), (1234, 1, 9));
    assert_eq!((dressed.comm.as_str(), dressed.exe.as_str()), ("a (b) c", "/opt/dressed"));
    assert_eq!(dressed.cgroup, "/elision.slice/pod-abc");
    assert_eq!(dressed.tty_nr >> 8, 136, "a pty's device number");
    assert_eq!((of(plain.pid).uid, of(plain.pid).tty_nr, of(plain.pid).cgroup.as_str()), (0, 0, "/"));

    let truth = guest.truth(false, false)?;
    let pid = played.pid;
    assert_eq!((truth.uid(pid), truth.ppid(pid)), (Some(1234), Some(1)));
    assert_eq!((truth.comm(pid), truth.exe(pid)), ("a (b) c".to_owned(), Some("/opt/dressed".to_owned())));
    assert_eq!(truth.cgroup(pid).as_deref(), Some("/elision.slice/pod-abc"));
    assert_eq!(truth.tty_nr(pid), Some(dressed.tty_nr));
    assert_eq!(truth.threads(pid).len(), 9);
    Ok(())
}

fn ends_are_seen_by_the_parent(guest: &mut Guest) -> Result {
    let control = guest.control();
    let ended = control.spawn(&Spawn::new("ended", "heap=64K", "end"))?;
    assert!(matches!(wait(control, ended.pid)?, Status::Exited { code: 0, at_ns } if at_ns > 0));
    let parent = control.spawn(&Spawn::new("parent", "heap=64K", "fork=3"))?;
    assert_eq!(parent.children.len(), 3);
    assert_eq!(control.status(parent.pid)?, Status::Running);
    let before = control.clock()?;
    control.kill(parent.pid, 9)?;
    assert!(matches!(wait(control, parent.pid)?, Status::Signalled { signal: 9, at_ns } if at_ns > before));
    assert_eq!(control.status(9_999_999)?, Status::Unknown);
    let crowd = control.crowd(20, &Spawn::new("crowd", "heap=16K,stack", "sleep"))?;
    assert_eq!(crowd.len(), 20);
    assert_eq!(crowd[19].label, "crowd-19");
    let result = control.sh("echo out; echo err >&2; exit 3")?;
    assert_eq!(result.output, "out\nerr\n");
    assert!(matches!(result.status, Status::Exited { code: 3, .. }));
    let refused = control.spawn(&Spawn::new("odd", "nowhere", "sleep"));
    assert!(matches!(refused, Err(elision_testbed::Error::Refused { .. })), "{refused:?}");
    Ok(())
}

fn wait(control: &mut Control, pid: i32) -> Result<Status> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match control.status(pid)? {
            Status::Running if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            status => return Ok(status),
        }
    }
}

#[test]
fn a_guest_with_ram_above_the_pci_hole_is_read_by_its_layout() -> Result {
    let mut guest = GuestOptions::new("6.1").memory_mib(5120).vcpus(1).four_level().boot()?;
    let played = guest.control().spawn(&Spawn::new("high", "shm=1M", "sleep"))?;
    let truth = guest.truth(false, false)?;
    let highest = check_planted(&guest, &played, "high", &truth)?;
    assert!(highest >= (4 << 30) / PAGE_SIZE as u64, "the secret stands above the hole: {highest:#x}");
    Ok(())
}

#[test]
fn a_restored_guest_answers_and_goes_on() -> Result {
    let options = GuestOptions::new("6.1").ram(RamMode::Plain).vcpus(1);
    let mut guest = options.boot()?;
    let played = guest.control().spawn(&Spawn::new("moved", "heap=64K", "sleep=10ms"))?;
    let found = search::find(&guest.ram()?, &["moved", "never played"].map(secret))?;
    assert!(!found[0].is_empty() && found[1].is_empty(), "RAM that is not shared is searched: {found:?}");
    let state = guest.endpoints().folder().join("state");
    guest.endpoints().stop()?;
    let arguments = serde_json::json!({"uri": format!("exec:cat > {}", state.display())});
    guest.endpoints().qmp("migrate", &arguments)?;
    while guest.endpoints().run_state()? != "postmigrate" {
        std::thread::sleep(Duration::from_millis(20));
    }

    let folder = GuestOptions::new_folder()?;
    let mut words = options.command_in(&folder)?;
    words.extend(["-incoming".to_owned(), format!("exec:cat {}", state.display())]);
    let mut qemu = std::process::Command::new(&words[0]).args(&words[1..]).spawn().expect("QEMU starts");
    let restored = run_on(&Endpoints::new(&folder)).and_then(|()| options.attach(&folder));
    let restored = restored.and_then(|restored| goes_on(restored, played.pid));
    qemu.kill().and_then(|()| qemu.wait()).expect("QEMU was ours");
    assert!(!folder.exists(), "the folder of an attached guest is removed");
    restored
}

/// Lets a guest run whose source was stopped when it was saved.
fn run_on(endpoints: &Endpoints) -> Result {
    let until = Instant::now() + Duration::from_secs(60);
    while endpoints.run_state().map_or(true, |state| state == "inmigrate") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    endpoints.cont()
}

fn goes_on(mut restored: Guest, pid: i32) -> Result {
    let (clock, count) = (restored.control().clock()?, restored.control().count("moved")?);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(restored.control().status(pid)?, Status::Running);
    assert!(restored.control().clock()? > clock + 200_000_000);
    assert!(restored.control().count("moved")? > count);
    assert!(restored.console().last_tick().is_some(), "it ticks on its new console");
    let health = restored.control().health(1)?;
    assert_eq!(health.errors, Vec::<String>::new());
    assert!(Path::new(&restored.endpoints().qmp_socket()).exists());
    Ok(())
}
