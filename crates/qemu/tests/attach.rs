//! Attaching to a real QEMU and taking its device state.

mod common;

use common::{Machine, backends, wait_until};
use elision_memory::{Gpa, RamBlock};
use elision_qemu::{QemuError, Vm};
use serde_json::json;
use std::path::Path;

#[test]
fn ram_is_found_and_read() {
    for (id, machine) in [("pc.ram", "q35"), ("mem", "pc")] {
        let m = Machine::start(id, 64, &["-M", machine, "-vga", "std"]);
        let mut vm = Vm::attach(&m.qmp()).unwrap();
        assert_eq!(vm.ram().blocks, [RamBlock::whole(id, 64 << 20)]);
        assert_eq!(vm.process().pid, m.child.id());
        assert_eq!(vm.ram().file_len, 64 << 20);
        assert!(vm.ram().accounts_for_every_byte());
        assert!(!vm.uses_kvm());
        assert!(vm.process().command.iter().any(|a| a == machine));
        assert!(vm.machine_type().unwrap().unwrap().starts_with("pc-"));
        // SeaBIOS fills the interrupt vectors at address 0.
        let ram = vm.open_ram().unwrap();
        wait_until("SeaBIOS", || ram.word(Gpa(0x40)).is_some_and(|w| w != 0));
        vm.refresh_layout().unwrap();
    }
}

#[test]
fn an_unlinked_ram_file_is_found() {
    let m = Machine::start("pc.ram", 64, &[]);
    // QEMU listens before it has made its RAM.
    wait_until("the RAM file", || m.path("ram").exists());
    std::fs::remove_file(m.path("ram")).unwrap();
    let vm = Vm::attach(&m.qmp()).unwrap();
    assert!(vm.ram_files().unwrap()[0].metadata().unwrap().len() >= 64 << 20);
}

/// Memory of QEMU itself that counts as used, in KiB.
fn used(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ram_of_any_backend_is_what_qemu_says() {
    let folder = tempfile::tempdir().unwrap();
    for (options, id, shared) in backends(folder.path()) {
        for machine in ["q35", "pc"] {
            let m = Machine::start_words(&format!("-vga std {options} -machine {machine}"));
            let mut vm = Vm::attach(&m.qmp()).unwrap();
            assert_eq!((vm.ram().blocks[0].name.as_str(), vm.shares_ram()), (id, shared), "{options:?}");
            if !shared {
                let err = vm.ram_files().unwrap_err();
                assert!(matches!(err, QemuError::NotShared { .. }), "{err}");
                assert!(err.to_string().contains("elision run"), "{err}");
            }
            let ram = vm.open_ram().unwrap();
            wait_until("SeaBIOS", || {
                ram.refresh();
                ram.word(Gpa(0x40)).is_some_and(|w| w != 0)
            });
            vm.stop().unwrap();
            ram.refresh();
            let before = (used(vm.process().pid), ram.populated());
            let mut bytes = vec![0; 64 << 20];
            ram.read(Gpa(0), &mut bytes).unwrap();
            let after = (used(vm.process().pid), ram.populated());
            if !shared {
                assert!(after.0 < before.0 + 2048, "{options:?}: {} KiB grew to {}", before.0, after.0);
                assert_eq!(before.1, after.1, "{options:?}");
            }
            // QEMU's own copy of it, but for the window to the display.
            for (start, len) in [(0, 0xa_0000), (0x10_0000, (64 << 20) - 0x10_0000)] {
                let file = m.path("dump");
                let arguments = json!({"val": start, "size": len, "filename": file});
                vm.qmp().execute("pmemsave", arguments).unwrap();
                assert!(bytes[start..start + len] == std::fs::read(&file).unwrap(), "{options:?}");
            }
            assert!(bytes.iter().any(|b| *b != 0));
            ram.check().unwrap();
        }
    }
}

/// Bytes of physical memory as QEMU itself copies them.
fn by_qemu(vm: &mut Vm, file: &Path, start: u64, len: u64) -> Vec<u8> {
    vm.qmp().execute("pmemsave", json!({"val": start, "size": len, "filename": file})).unwrap();
    std::fs::read(file).unwrap()
}

#[test]
fn memory_of_several_nodes_is_what_qemu_says() {
    const MIB: u64 = 1 << 20;
    // The first node ends amid a huge page, and the second one goes on above the hole.
    for (backends, machine, sizes, shared) in [
        (["memory-backend-memfd"; 2], "q35", [65, 63], true),
        (["memory-backend-ram"; 2], "pc", [65, 63], false),
        (["memory-backend-memfd", "memory-backend-ram"], "q35", [1501, 2595], false),
        (["memory-backend-memfd,share=off", "memory-backend-memfd"], "pc", [1501, 2595], false),
        (["memory-backend-memfd"; 2], "pc", [1501, 2595], true),
    ] {
        let node = |i: usize| {
            let [backend, size] = [backends[i].to_owned(), sizes[i].to_string()];
            format!("-object {backend},id=m{i},size={size}M -numa node,memdev=m{i}")
        };
        let all: u64 = sizes.iter().sum();
        let m = Machine::start_words(&format!("-machine {machine} -m {all} {} {}", node(0), node(1)));
        let mut vm = Vm::attach(&m.qmp()).unwrap();
        assert_eq!(vm.shares_ram(), shared, "{backends:?}");
        assert!(vm.ram().accounts_for_every_byte());
        let blocks: Vec<_> = vm.ram().blocks.iter().map(|b| (b.name.as_str(), b.offset.0)).collect();
        assert_eq!(blocks, [("m0", 0), ("m1", (sizes[0] + 1) * MIB)]);
        assert_eq!(vm.layout().ram_bytes(), all * MIB);
        let ram = vm.open_ram().unwrap();
        // SeaBIOS leaves tables at the end of the memory below 4 GiB, which the second node has.
        let below = vm.layout().regions().iter().filter(|r| r.gpa.0 < 4 << 30).map(|r| r.gpa.0 + r.len).max();
        let last = below.unwrap() - 2 * MIB;
        let mut end = vec![0; 2 << 20];
        wait_until("tables in the second node", || {
            ram.refresh();
            ram.read(Gpa(last), &mut end).unwrap();
            end.iter().any(|byte| *byte != 0)
        });
        vm.stop().unwrap();
        ram.refresh();
        for start in [MIB, sizes[0] * MIB - MIB, sizes[0] * MIB, last] {
            let mut bytes = vec![0; 1 << 20];
            ram.read(Gpa(start), &mut bytes).unwrap();
            assert!(bytes == by_qemu(&mut vm, &m.path("dump"), start, MIB), "{backends:?} at {start:#x}");
        }
        ram.check().unwrap();
        let state = vm.device_state().unwrap();
        assert_eq!(state.main_blocks().map(|(_, used)| used).sum::<u64>(), all * MIB);
    }
}

#[test]
fn memory_that_is_no_node_s_is_named() {
    let dimm =
        "-m 128M,slots=1,maxmem=1G -object memory-backend-ram,id=d0,size=128M -device pc-dimm,memdev=d0";
    let m = Machine::start_words(dimm);
    let err = Vm::attach(&m.qmp()).unwrap_err();
    assert!(
        matches!(err, QemuError::OtherBackends { ref names } if names.contains(&"d0".to_string())),
        "{err}"
    );
}

#[test]
fn a_second_client_is_told_what_to_do() {
    let m = Machine::start("pc.ram", 64, &[]);
    let _first = Vm::attach(&m.qmp()).unwrap();
    let err = Vm::attach(&m.qmp()).unwrap_err();
    assert!(matches!(err, QemuError::Busy { .. }), "{err}");
}

#[test]
fn device_state_is_taken_again_and_again() {
    let m = Machine::start(
        "mem",
        64,
        &["-M", "q35", "-vga", "std", "-smp", "2", "-cpu", "max", "-serial", "null"],
    );
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    assert!(matches!(vm.device_state(), Err(QemuError::State { .. })), "a running VM is refused");
    let before = settings(&mut vm);
    for round in 0..3 {
        vm.stop().unwrap();
        let state = vm.device_state().unwrap();
        assert!(state.main_blocks().eq([("mem", 64 << 20)]), "round {round}");
        assert_eq!(state.passed_pages(), 0, "shared RAM does not even come");
        let vcpus = state.vcpus().unwrap();
        assert_eq!(vcpus.iter().map(|v| v.index).collect::<Vec<_>>(), [0, 1]);
        assert!(vcpus[1].halted, "the second vCPU waits to be woken");
        assert_eq!(vm.status().unwrap().name, "postmigrate");
        let again = vm.device_state().unwrap_err();
        assert!(matches!(again, QemuError::State { .. }), "{again}");
        vm.cont().unwrap();
        assert!(vm.status().unwrap().running);
    }
    assert_eq!(settings(&mut vm), before);
}

fn settings(vm: &mut Vm) -> (serde_json::Value, serde_json::Value) {
    let capabilities = vm.qmp().execute("query-migrate-capabilities", json!({})).unwrap();
    let parameters = vm.qmp().execute("query-migrate-parameters", json!({})).unwrap();
    (capabilities, parameters["max-bandwidth"].clone())
}

#[test]
fn a_prepared_command_can_be_attached() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("q,mp");
    let command = "qemu-system-x86_64 -accel tcg -display none -nodefaults -m 1.5G -M q35,usb=on";
    let command: Vec<String> = command.split(' ').map(String::from).collect();
    let prepared = elision_qemu::prepare(&command, &qmp).unwrap();
    assert_eq!(prepared.additions.len(), 3);
    let child = prepared.to_command().stdin(std::process::Stdio::null()).spawn().unwrap();
    let m = Machine { folder, child };
    wait_until("the QMP socket", || std::os::unix::net::UnixStream::connect(&qmp).is_ok());
    let mut vm = Vm::attach(&qmp).unwrap();
    assert_eq!(vm.ram().blocks, [RamBlock::whole("pc.ram", 3 << 29)]);
    vm.stop().unwrap();
    assert_eq!(vm.device_state().unwrap().passed_pages(), 0);
    // The command that now runs is fit as it is.
    let again = elision_qemu::prepare(&vm.process().command, &qmp).unwrap();
    assert!(again.additions.is_empty() && again.ram.is_empty(), "{:?}", again.additions);
    assert_eq!(again.qmp, qmp);
    drop(m);
}

#[test]
fn a_prepared_command_shares_the_memory_of_all_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("qmp");
    let command = "qemu-system-x86_64 -accel tcg -display none -nodefaults -m 128 -object memory-backend-ram,id=a,size=64M \
                   -object memory-backend-memfd,id=b,size=64M,share=off -numa node,memdev=a -numa node,memdev=b";
    let command: Vec<String> = command.split_whitespace().map(String::from).collect();
    let prepared = elision_qemu::prepare(&command, &qmp).unwrap();
    assert_eq!((prepared.additions.len(), prepared.ram.len()), (3, 2));
    let child = prepared.to_command().stdin(std::process::Stdio::null()).spawn().unwrap();
    let _m = Machine { folder, child };
    wait_until("the QMP socket", || std::os::unix::net::UnixStream::connect(&qmp).is_ok());
    let mut vm = Vm::attach(&qmp).unwrap();
    assert!(vm.shares_ram());
    vm.stop().unwrap();
    assert_eq!(vm.device_state().unwrap().passed_pages(), 0, "QEMU leaves out what is shared");
}

#[test]
fn memory_that_qemu_sends_after_all_is_dropped() {
    // Private RAM is not left out by QEMU: the stream has all of it.
    let options =
        ["-m", "64", "-object", "memory-backend-ram,id=pc.ram,size=64M", "-machine", "memory-backend=pc.ram"];
    let m = Machine::start_with(tempfile::tempdir().unwrap(), &options.map(String::from));
    let mut qmp = elision_qemu::Qmp::connect(&m.qmp()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    qmp.execute("stop", json!({})).unwrap();
    let file = m.path("stream");
    qmp.execute("migrate", json!({"uri": format!("exec:cat > {}", file.display())})).unwrap();
    wait_until("the migration", || qmp.execute("query-migrate", json!({})).unwrap()["status"] == "completed");
    let firmware = std::fs::read(&file).unwrap();
    let state =
        elision_qemu::DeviceState::read(&firmware[..], &[RamBlock::whole("pc.ram", 64 << 20)]).unwrap();
    assert_eq!(state.passed_pages(), (64 << 20) / 4096);
    let mut plain = vec![];
    state.write_to(&mut plain).unwrap();
    assert!(plain.len() < 1 << 20 && plain.len() < firmware.len(), "{} of {}", plain.len(), firmware.len());
}

#[test]
fn ram_above_the_pci_hole_is_found() {
    for (machine, below) in [("q35", 2_u64 << 30), ("pc", 3 << 30)] {
        let m = Machine::start("pc.ram", 5120, &["-M", machine, "-vga", "std"]);
        let mut vm = Vm::attach(&m.qmp()).unwrap();
        assert!(vm.ram().accounts_for_every_byte());
        let offset = vm.layout().offset_of(Gpa(4 << 30), 8).unwrap();
        assert_eq!(offset.0, below);
        assert_eq!(vm.layout().offset_of(Gpa(below), 8), None);
        // What the VM's own view has above 4 GiB is what the file has at that offset.
        let file = std::fs::File::options().write(true).open(m.path("ram")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &0x1122_3344_u64.to_le_bytes(), below + 0x1000)
            .unwrap();
        let dump = vm.qmp().human("xp/1gx 0x100001000").unwrap();
        assert!(dump.contains("0x0000000011223344"), "{dump}");
    }
}
