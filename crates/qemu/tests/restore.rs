//! Saving a bare machine by hand and starting it again, more than once, from one RAM file.

mod common;

use common::{Machine, backends, wait_until};
use elision_memory::{FileOffset, Gpa, RamBlock};
use elision_qemu::{
    QemuError, Qmp, RestoreOptions, RestoreRequest, Restored, RestoredRam, Vm, for_restore, restore,
};
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Child;

const OPTIONS: [&str; 11] = [
    "-M",
    "q35",
    "-vga",
    "std",
    "-smp",
    "2",
    "-serial",
    "null",
    "-device",
    "vmgenid,guid=00000000-0000-0000-0000-000000000001",
    "-usb",
];

/// A word of RAM that SeaBIOS leaves alone.
const MARK: u64 = 0x70_0000;

/// Kills the VM at the end of its test.
struct Running(Restored);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.child.kill();
        let _ = self.0.child.wait();
    }
}

/// The same without the connection to it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Image {
    ram: PathBuf,
    state: PathBuf,
    command: Vec<String>,
}

/// Saves a VM and leaves it stopped. Gives the RAM as well.
fn save_to(vm: &mut Vm, folder: &Path) -> (Image, Vec<u8>) {
    vm.stop().unwrap();
    let ram = vm.open_ram().unwrap();
    let mut bytes = vec![0; 64 << 20];
    for (at, page) in (0..).step_by(4096).zip(bytes.chunks_mut(4096)) {
        ram.read(Gpa(at), page).unwrap();
    }
    let state = vm.device_state().unwrap();
    assert!(state.main_blocks().map(|(name, _)| name).eq(vm.ram().blocks.iter().map(|b| b.name.as_str())));
    let image = Image {
        ram: folder.join("ram.img"),
        state: folder.join("state.bin"),
        command: vm.process().command.clone(),
    };
    let mut file = vec![0; usize::try_from(vm.ram().file_len).unwrap()];
    assert!(ram.read_file(FileOffset(0), &mut file));
    std::fs::write(&image.ram, &file).unwrap();
    state.write_to(std::fs::File::create(&image.state).unwrap()).unwrap();
    (image, bytes)
}

fn save(m: &Machine, id: &str) -> Image {
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    let ram = vm.open_ram().unwrap();
    wait_until("SeaBIOS", || ram.word(Gpa(0x40)).is_some_and(|w| w != 0));
    vm.stop().unwrap();
    let state = vm.device_state().unwrap();
    assert_eq!(state.main_blocks().next().unwrap().0, id);
    let image =
        Image { ram: m.path("ram.img"), state: m.path("state.bin"), command: vm.process().command.clone() };
    std::fs::copy(m.path("ram"), &image.ram).unwrap();
    state.write_to(std::fs::File::create(&image.state).unwrap()).unwrap();
    vm.cont().unwrap();
    image
}

fn start(image: &Image, block: &str, qmp: &Path) -> elision_qemu::Result<Running> {
    load(image, block, qmp, true).map(Running)
}

fn load(image: &Image, block: &str, qmp: &Path, run: bool) -> elision_qemu::Result<Restored> {
    load_blocks(image, &[RamBlock::whole(block, 64 << 20)], qmp, run)
}

fn load_blocks(image: &Image, blocks: &[RamBlock], qmp: &Path, run: bool) -> elision_qemu::Result<Restored> {
    let guid = elision_qemu::fresh_guid()?;
    let ram = RestoredRam::new(&image.command[0], &image.ram, blocks)?;
    let options = RestoreOptions { ram: ram.files(), qmp, guid: &guid };
    let command = for_restore(&image.command, &options)?;
    let request =
        RestoreRequest { command: &command, qmp, state: &image.state, folder: None, log: None, run };
    restore(&request)
}

#[test]
fn two_clones_run_from_one_ram_file_that_stays_as_it_is() {
    for (id, folder) in [
        ("pc.ram", tempfile::tempdir().unwrap()),
        ("mem", tempfile::Builder::new().suffix("a,b").tempdir().unwrap()),
    ] {
        let m = Machine::start_in(folder, id, 64, &OPTIONS);
        let image = save(&m, id);
        let before = std::fs::read(&image.ram).unwrap();
        let mut clones: Vec<Running> =
            (0..2).map(|i| start(&image, id, &m.path(&format!("clone{i}"))).unwrap()).collect();
        for clone in &mut clones {
            let status = clone.0.qmp.execute("query-status", json!({})).unwrap();
            assert_eq!(status["status"], "running");
            // Still the machine that was saved: the firmware's copy in RAM is there.
            let dump = clone.0.qmp.human("xp/1gx 0xffff0").unwrap();
            let word = u64::from_le_bytes(before[0xf_fff0..0xf_fff8].try_into().unwrap());
            assert_ne!(word, 0);
            assert!(dump.contains(&format!("{word:#018x}")), "{dump}");
        }
        let guid = |c: &mut Running| c.0.qmp.execute("query-vm-generation-id", json!({})).unwrap();
        let (a, b) = (guid(&mut clones[0]), guid(&mut clones[1]));
        assert_ne!(a, b);
        // A clone that is reset writes all over its memory, and nobody else sees it.
        clones[0].0.qmp.execute("system_reset", json!({})).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(std::fs::read(&image.ram).unwrap() == before, "the image was changed");
        assert!(Vm::attach(&m.qmp()).unwrap().status().unwrap().running, "the source runs on");
    }
}

/// Whether a paused clone's RAM is this, but for the window to the display.
fn has(clone: &mut Qmp, dump: &Path, bytes: &[u8]) -> bool {
    [0..0xa_0000, 0x10_0000..bytes.len()].into_iter().all(|part: Range<usize>| {
        let arguments = json!({"val": part.start, "size": part.len(), "filename": dump});
        clone.execute("pmemsave", arguments).unwrap();
        std::fs::read(dump).unwrap() == bytes[part]
    })
}

#[test]
fn ram_of_any_backend_is_restored_and_so_is_a_restored_vm() {
    let folder = tempfile::tempdir().unwrap();
    for (options, id, _) in backends(folder.path()) {
        for machine in ["q35", "pc"] {
            println!("{options} {machine}");
            let m = Machine::start_words(&format!("-vga std {options} -machine {machine}"));
            let mut vm = Vm::attach(&m.qmp()).unwrap();
            let ram = vm.open_ram().unwrap();
            wait_until("SeaBIOS", || {
                ram.refresh();
                ram.word(Gpa(0x40)).is_some_and(|w| w != 0)
            });
            let (image, bytes) = save_to(&mut vm, m.folder.path());
            let Restored { child, mut qmp } = load(&image, id, &m.path("clone"), false).unwrap();
            let _clone = Ended(child);
            assert!(has(&mut qmp, &m.path("dump"), &bytes), "{options}: the first clone");
            qmp.execute("cont", json!({})).unwrap();
            drop(qmp);

            let again = tempfile::tempdir().unwrap();
            let mut vm = Vm::attach(&m.path("clone")).unwrap();
            assert!(!vm.shares_ram(), "{options}");
            let (image, bytes) = save_to(&mut vm, again.path());
            let Restored { child, mut qmp } = load(&image, id, &again.path().join("clone"), false).unwrap();
            let _second = Ended(child);
            assert!(has(&mut qmp, &m.path("dump"), &bytes), "{options}: the second clone");
        }
    }
}

#[test]
fn memory_of_several_nodes_is_restored_and_so_is_a_restored_vm() {
    for (backends, machine) in [
        (["memory-backend-memfd"; 2], "q35"),
        (["memory-backend-ram"; 2], "pc"),
        (["memory-backend-memfd", "memory-backend-ram"], "q35"),
    ] {
        println!("{backends:?} {machine}");
        // The second block does not begin where the first one ends.
        let node =
            |i: usize, mib| format!("-object {},id=m{i},size={mib}M -numa node,memdev=m{i}", backends[i]);
        let m = Machine::start_words(&format!(
            "-vga std -machine {machine} -m 64 {} {}",
            node(0, 31),
            node(1, 33)
        ));
        let mut vm = Vm::attach(&m.qmp()).unwrap();
        let ram = vm.open_ram().unwrap();
        let mut end = vec![0; 2 << 20];
        wait_until("tables in the second node", || {
            ram.refresh();
            ram.read(Gpa(62 << 20), &mut end).unwrap();
            end.iter().any(|byte| *byte != 0)
        });
        let (image, bytes) = save_to(&mut vm, m.folder.path());
        let blocks = vm.ram().blocks.clone();
        assert_eq!(blocks[1].offset.0, 32 << 20);
        let before = std::fs::read(&image.ram).unwrap();
        let Restored { child, mut qmp } = load_blocks(&image, &blocks, &m.path("clone"), false).unwrap();
        let _clone = Ended(child);
        assert!(has(&mut qmp, &m.path("dump"), &bytes), "{backends:?}: the first clone");
        qmp.execute("cont", json!({})).unwrap();
        drop(qmp);

        let again = tempfile::tempdir().unwrap();
        let mut vm = Vm::attach(&m.path("clone")).unwrap();
        assert!(!vm.shares_ram() && vm.ram().blocks == blocks, "{backends:?}");
        let (second, bytes) = save_to(&mut vm, again.path());
        let clone = again.path().join("clone");
        let Restored { child, mut qmp } = load_blocks(&second, &blocks, &clone, false).unwrap();
        let _second = Ended(child);
        assert!(has(&mut qmp, &m.path("dump"), &bytes), "{backends:?}: the second clone");
        assert!(std::fs::read(&image.ram).unwrap() == before, "the image was changed");
    }
}

#[test]
fn what_fails_says_why_and_leaves_no_process() {
    let m = Machine::start("pc.ram", 64, &OPTIONS);
    let mut image = save(&m, "pc.ram");
    let good = image.command.clone();

    image.command.extend(["-device".into(), "no-such-device".into()]);
    let err = start(&image, "pc.ram", &m.path("q1")).err().unwrap();
    assert!(
        matches!(err, QemuError::Restore { ref stderr, .. } if stderr.contains("no-such-device")),
        "{err}"
    );

    // A device more than the state has: QEMU starts and then cannot load.
    image.command = good.clone();
    image.command.extend(["-device".into(), "pvpanic".into(), "-m".into(), "64".into()]);
    image.command.retain(|w| w != "-usb");
    let err = start(&image, "pc.ram", &m.path("q2")).err().unwrap();
    assert!(matches!(err, QemuError::Restore { ref stderr, .. } if !stderr.is_empty()), "{err}");

    image.command = good;
    let whole = std::fs::read(&image.state).unwrap();
    std::fs::write(&image.state, &whole[..whole.len() / 2]).unwrap();
    let err = start(&image, "pc.ram", &m.path("q3")).err().unwrap();
    assert!(matches!(err, QemuError::Restore { .. }), "{err}");

    std::fs::write(&image.state, &whole).unwrap();
    image.command[0] = "/nonexistent/qemu".into();
    let err = start(&image, "pc.ram", &m.path("q4")).err().unwrap();
    assert!(matches!(err, QemuError::Io { .. }), "{err}");

    let folder = m.folder.path().to_string_lossy().into_owned();
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|p| {
        let command = std::fs::read_to_string(p.path().join("cmdline")).unwrap_or_default();
        command.contains(&folder) && command.contains("-incoming")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn a_vm_with_a_wiped_frame_restores_with_zeros_there() {
    let m = Machine::start("pc.ram", 64, &OPTIONS);
    let image = save(&m, "pc.ram");
    let file = std::fs::File::options().write(true).open(&image.ram).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &0x1122_3344_5566_7788_u64.to_le_bytes(), MARK).unwrap();
    let mut clone = start(&image, "pc.ram", &m.path("clone")).unwrap();
    let dump = clone.0.qmp.human(&format!("xp/1gx {MARK:#x}")).unwrap();
    assert!(dump.contains("0x1122334455667788"), "the RAM file is what the VM sees: {dump}");
}
