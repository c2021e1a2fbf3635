//! A vCPU that is made to take an interrupt runs no further instruction of what it was running.
//!
//! The guest is a boot sector that counts in a loop and has a handler for one vector.

mod common;

use common::{Machine, wait_until};
use elision_memory::{Gpa, RamBlock};
use elision_qemu::{RestoreOptions, RestoreRequest, Restored, RestoredRam, Vm, for_restore, restore};
use std::path::Path;
use std::time::Duration;

const VECTOR: u8 = 0xec;
/// Where the loop counts; the handler counts in the word behind it.
const COUNTER: u64 = 0x7000;

const PROGRAM: [&[u8]; 13] = [
    &[0xfa],                                     // 7c00  cli
    &[0x31, 0xc0],                               // 7c01  xor ax, ax
    &[0x8e, 0xd8],                               // 7c03  mov ds, ax
    &[0x8e, 0xd0],                               // 7c05  mov ss, ax
    &[0xbc, 0x00, 0x7c],                         // 7c07  mov sp, 0x7c00
    &[0xc7, 0x06, 0xb0, 0x03, 0x1f, 0x7c],       // 7c0a  mov word [0xec * 4], handler
    &[0xa3, 0xb2, 0x03],                         // 7c10  mov [0xec * 4 + 2], ax
    &[0xfb],                                     // 7c13  sti
    &[0x66, 0xff, 0x06, 0x00, 0x70],             // 7c14  spin: inc dword [0x7000]
    &[0xeb, 0xf9],                               // 7c19  jmp spin
    &[0x90, 0x90, 0x90, 0x90],                   // 7c1b  nop
    &[0x66, 0xff, 0x06, 0x04, 0x70, 0xfa, 0xf4], // 7c1f  handler: inc dword [0x7004]; cli; hlt
    &[0xeb, 0xfd],                               // 7c26  jmp to the hlt
];

fn boot_sector() -> Vec<u8> {
    let mut sector = PROGRAM.concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1440 * 1024, 0);
    sector
}

/// Starts the image and returns the counters a while later.
fn run(command: &[String], ram: &Path, state: &Path, qmp: &Path) -> (u32, u32) {
    let guid = elision_qemu::fresh_guid().unwrap();
    let ram = RestoredRam::new(&command[0], ram, &[RamBlock::whole("pc.ram", 64 << 20)]).unwrap();
    let options = RestoreOptions { ram: ram.files(), qmp, guid: &guid };
    let command = for_restore(command, &options).unwrap();
    let request = RestoreRequest { command: &command, qmp, state, folder: None, log: None, run: true };
    let Restored { mut child, mut qmp } = restore(&request).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let text = qmp.human(&format!("xp/2wx {COUNTER:#x}"));
    child.kill().unwrap();
    child.wait().unwrap();
    let text = text.unwrap();
    let words: Vec<u32> =
        text.split_whitespace().filter_map(|w| u32::from_str_radix(w.strip_prefix("0x")?, 16).ok()).collect();
    (words[0], words[1])
}

#[test]
fn no_instruction_runs_before_the_interrupt() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, boot_sector()).unwrap();
    let drive = format!("if=floppy,format=raw,readonly=on,file={}", disk.display());
    let m = Machine::start("pc.ram", 64, &["-M", "pc", "-drive", &drive]);
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    let ram = vm.open_ram().unwrap();
    let counter = || ram.word(Gpa(COUNTER)).unwrap() & 0xffff_ffff;
    wait_until("the loop", || {
        let before = counter();
        std::thread::sleep(Duration::from_millis(5));
        before != 0 && counter() > before
    });
    let image = m.path("ram.img");
    for _ in 0..5 {
        vm.stop().unwrap();
        let mut state = vm.device_state().unwrap();
        std::fs::copy(m.path("ram"), &image).unwrap();
        let stopped_at = u32::try_from(counter()).unwrap();
        vm.cont().unwrap();
        if state.vcpus().unwrap()[0].rflags & 0x200 == 0 {
            continue; // inside the firmware's timer interrupt
        }
        let command = vm.process().command.clone();
        let file = m.path("state.bin");
        state.write_to(std::fs::File::create(&file).unwrap()).unwrap();
        let (count, handled) = run(&command, &image, &file, &m.path("control"));
        assert!(count > stopped_at && handled == 0, "the control runs on: {count} {stopped_at} {handled}");
        state.raise_interrupt(0, VECTOR).unwrap();
        state.write_to(std::fs::File::create(&file).unwrap()).unwrap();
        let (count, handled) = run(&command, &image, &file, &m.path("clone"));
        assert_eq!((count, handled), (stopped_at, 1));
        return;
    }
    panic!("the guest was in its firmware five times");
}
