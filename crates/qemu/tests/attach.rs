//! Attaching to a real QEMU and taking its device state.

mod common;

use common::{Machine, wait_until};
use elision_memory::{Gpa, Ram};
use elision_qemu::{QemuError, Vm};
use serde_json::json;

#[test]
fn ram_is_found_and_read() {
    for (id, machine) in [("pc.ram", "q35"), ("mem", "pc")] {
        let m = Machine::start(id, 64, &["-M", machine, "-vga", "std"]);
        let mut vm = Vm::attach(&m.qmp()).unwrap();
        assert_eq!(vm.ram().block, id);
        assert_eq!(vm.process().pid, m.child.id());
        assert_eq!(vm.ram().file_len, 64 << 20);
        assert!(vm.ram().accounts_for_every_byte());
        assert!(!vm.uses_kvm());
        assert!(vm.process().command.iter().any(|a| a == machine));
        assert!(vm.machine_type().unwrap().unwrap().starts_with("pc-"));
        // SeaBIOS fills the interrupt vectors at address 0.
        let ram = Ram::shared(vm.ram_file(), vm.layout().clone()).unwrap();
        wait_until("SeaBIOS", || ram.word(Gpa(0x40)).is_some_and(|w| w != 0));
        vm.refresh_layout().unwrap();
    }
}

#[test]
fn an_unlinked_ram_file_is_found() {
    let m = Machine::start("pc.ram", 64, &[]);
    std::fs::remove_file(m.path("ram")).unwrap();
    let vm = Vm::attach(&m.qmp()).unwrap();
    assert!(vm.ram_file().metadata().unwrap().len() >= 64 << 20);
}

#[test]
fn private_ram_and_several_backends_are_named() {
    let plain = Machine::start_with(tempfile::tempdir().unwrap(), &["-m".into(), "64".into()]);
    let err = Vm::attach(&plain.qmp()).unwrap_err();
    assert!(matches!(err, QemuError::NotShared { .. }), "{err}");
    assert!(err.to_string().contains("elision run"), "{err}");
    let numa = "-m 128 -object memory-backend-memfd,id=m0,size=64M -object memory-backend-memfd,id=m1,size=64M \
                -numa node,memdev=m0 -numa node,memdev=m1";
    let options: Vec<String> = numa.split_whitespace().map(String::from).collect();
    let numa = Machine::start_with(tempfile::tempdir().unwrap(), &options);
    let err = Vm::attach(&numa.qmp()).unwrap_err();
    assert!(matches!(err, QemuError::SeveralBackends { ref names } if names.len() == 2), "{err}");
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
        assert_eq!(state.main_block(), Some(("mem", 64 << 20)), "round {round}");
        assert_eq!(state.dropped_pages(), 0, "shared RAM does not even come");
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
