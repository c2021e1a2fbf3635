//! Copies a running VM and starts the copy, with times: `clone QMP-SOCKET FOLDER [VECTOR]`.
//!
//! With a vector, every vCPU that was in user mode loses its registers and takes that interrupt first.

use elision_qemu::{RestoreOptions, RestoreRequest, RestoredRam, Vm, for_restore, fresh_guid, restore};
use std::error::Error;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, folder, vector @ ..] = arguments.as_slice() else {
        return Err("usage: clone QMP-SOCKET FOLDER [VECTOR]".into());
    };
    let folder = PathBuf::from(folder);
    let (ram, state_file, qmp) = (folder.join("ram.img"), folder.join("state.bin"), folder.join("qmp"));
    let begin = Instant::now();
    let mut vm = Vm::attach(socket.as_ref())?;
    println!("attached in {:.1?}: {:?}", begin.elapsed(), vm.ram());

    let begin = Instant::now();
    vm.stop()?;
    println!("stopped after {:.1?}", begin.elapsed());
    let device = Instant::now();
    let mut state = vm.device_state()?;
    println!("device state in {:.1?}, {} pages of RAM passed", device.elapsed(), state.passed_pages());
    let mut copy = File::create(&ram)?;
    for (block, mut file) in vm.ram().blocks.iter().zip(vm.ram_files()?) {
        copy.seek(SeekFrom::Start(block.offset.0))?;
        std::io::copy(&mut file, &mut copy)?;
    }
    vm.cont()?;
    println!("the VM stood still for {:.1?}, RAM copied byte by byte", begin.elapsed());

    for vcpu in state.vcpus()? {
        println!(
            "vCPU {}: rip {} cpl {} flags {:#x} cr3 {:#x}",
            vcpu.index, vcpu.rip, vcpu.cpl, vcpu.rflags, vcpu.cr3
        );
        if let ([vector], true) = (vector, vcpu.in_user_mode()) {
            println!("  vector registers {:?}", state.clear_vector_state(vcpu.index)?);
            println!("  general registers {:?}", state.clear_general_registers(vcpu.index)?);
            state.raise_interrupt(vcpu.index, vector.parse()?)?;
        }
    }
    println!(
        "keyboard {:?}, serial {:?}, video {:?}",
        state.clear_keyboard(),
        state.clear_serial(),
        state.blank_video()
    );
    state.write_to(File::create(&state_file)?)?;
    println!("{} bytes of device state", state_file.metadata()?.len());

    let (command, guid) = (vm.process().command.clone(), fresh_guid()?);
    let program = command.first().map(String::as_str).unwrap_or_default();
    let ram = RestoredRam::new(program, &ram, &vm.ram().blocks)?;
    let options = RestoreOptions { ram: ram.files(), qmp: &qmp, guid: &guid };
    let command = for_restore(&command, &options)?;
    println!("{}", command.join(" "));
    let log = folder.join("log");
    let request = RestoreRequest {
        command: &command,
        qmp: &qmp,
        state: &state_file,
        folder: Some(&vm.process().folder),
        log: Some(&log),
        run: true,
    };
    let begin = Instant::now();
    let restored = restore(&request)?;
    println!("process {} runs the copy after {:.1?}", restored.child.id(), begin.elapsed());
    Ok(())
}
