//! Edits of a real device state: what a real QEMU keeps, and what is left of it after clearing.

mod common;

use common::{Machine, wait_until};
use elision_qemu::{DeviceState, Vm};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn stopped_state(vm: &mut Vm) -> DeviceState {
    vm.stop().unwrap();
    let state = vm.device_state().unwrap();
    vm.cont().unwrap();
    state
}

#[test]
fn keys_read_by_the_guest_stay_in_the_ring_until_they_are_cleared() {
    let m = Machine::start("pc.ram", 64, &["-M", "q35"]);
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    std::thread::sleep(Duration::from_millis(700)); // SeaBIOS sets the keyboard up
    for key in ["s", "e", "c", "r", "e", "t"] {
        vm.qmp().human(&format!("sendkey {key} 1")).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut state = stopped_state(&mut vm);
    let ring = |state: &DeviceState| state.field("ps2kbd", 0, "parent_obj/queue.data").unwrap().to_vec();
    // Set 1 scan codes, as the controller translates them, of "s", "c" and "t".
    let has = |state: &DeviceState| [0x1f, 0x2e, 0x14].iter().all(|code| ring(state).contains(code));
    assert!(has(&state), "the control: QEMU keeps the keys, {:x?}", ring(&state));
    assert!(state.clear_keyboard().nonzero >= 12);
    assert!(ring(&state).iter().filter(|&&b| b != 0).count() <= 16, "only what waits may be left");
    assert!(!has(&state));
}

#[test]
fn serial_bytes_read_by_the_guest_stay_in_the_fifo_until_they_are_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let serial = folder.path().join("serial");
    let option = format!("unix:{},server=on,wait=off", serial.display());
    let m = Machine::start("pc.ram", 64, &["-serial", &option, "-S"]);
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    // What the guest's driver does: FIFO on, with room for 14 bytes.
    vm.qmp().human("o/1b 0x3fa 0xc1").unwrap();
    let mut peer = UnixStream::connect(&serial).unwrap();
    peer.write_all(b"PASSWORD").unwrap();
    let line_status = |vm: &mut Vm| vm.qmp().human("i/1b 0x3fd").unwrap();
    wait_until("a byte in the FIFO", || line_status(&mut vm).trim().ends_with("0x61"));
    std::thread::sleep(Duration::from_millis(100));
    for byte in ["0x50", "0x41", "0x53"] {
        let read = vm.qmp().human("i/1b 0x3f8").unwrap();
        assert!(read.trim().ends_with(byte), "{read}");
    }
    let mut state = vm.device_state().unwrap();
    let path = "state/serial/recv_fifo/recv_fifo/data";
    let fifo = |state: &DeviceState| state.field("serial", 0, path).unwrap().to_vec();
    assert_eq!(fifo(&state)[..8], *b"PASSWORD", "the control: QEMU keeps what was read");
    state.clear_serial();
    assert_eq!(fifo(&state), *b"\0\0\0SWORD\0\0\0\0\0\0\0\0");
}

#[test]
fn the_screen_of_the_firmware_is_blanked() {
    let m = Machine::start("pc.ram", 64, &["-vga", "std"]);
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let mut state = stopped_state(&mut vm);
    let text = |state: &DeviceState| {
        let mut out = vec![];
        state.write_to(&mut out).unwrap();
        // Text mode: characters in one plane, attributes in the next.
        out.windows(13).any(|w| w.iter().step_by(4).copied().eq(*b"SeaB"))
    };
    assert!(text(&state), "the control: SeaBIOS greets on the screen");
    let blanked = state.blank_video();
    assert!(blanked.pages > 0 && blanked.left.is_empty());
    assert!(!text(&state));
}

#[test]
fn vector_registers_of_every_vcpu_can_be_cleared() {
    let m = Machine::start("pc.ram", 64, &["-smp", "2", "-cpu", "max"]);
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    let mut state = stopped_state(&mut vm);
    for vcpu in 0..2 {
        // 8 x87 registers and 16 vector registers of at least 256 bits.
        assert!(state.clear_vector_state(vcpu).unwrap().bytes >= 8 * 10 + 16 * 32);
        assert_eq!(state.field("cpu", vcpu, "env.mxcsr"), Some(&[0, 0, 0x1f, 0x80][..]));
        assert!(state.clear_general_registers(vcpu).is_err(), "firmware runs in real mode");
    }
}

#[test]
fn packets_that_a_network_card_sent_stay_in_it_until_they_are_cleared() {
    let options = ["-M", "q35", "-netdev", "user,id=n,restrict=on", "-device", "e1000,netdev=n,bootindex=0"];
    let m = Machine::start("pc.ram", 64, &options);
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    // The firmware asks for an address as it boots from the network.
    let asked = |state: &DeviceState| {
        let (card, _) = state.sections().find(|(name, _)| name.ends_with("/e1000")).expect("a card");
        let sent = state.field(card, 0, "tx.data").expect("what it sent");
        sent.windows(9).any(|w| w == b"PXEClient")
    };
    let begin = Instant::now();
    let mut state = stopped_state(&mut vm);
    while !asked(&state) {
        assert!(begin.elapsed() < Duration::from_secs(120), "the control: the card has sent nothing");
        std::thread::sleep(Duration::from_millis(500));
        state = stopped_state(&mut vm);
    }
    assert!(state.clear_network().nonzero >= 100);
    assert!(!asked(&state));
}
