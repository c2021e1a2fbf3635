//! A guest that runs, from its boot to the removal of its files.

use crate::console::Console;
use crate::control::Control;
use crate::endpoints::Endpoints;
use crate::error::{Context, Error};
use crate::options::{GuestOptions, RamMode};
use crate::qmp;
use crate::truth::Truth;
use crate::{paths, spawner};
use elision_actor::protocol::READY_LINE;
use elision_memory::{FileOffset, ProcessRam, ProcessRun, Ram, RamLayout};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A boot takes 3 s alone and far longer on a busy machine.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// QEMU ends at once, unless the machine is very busy.
const QUIT_LIMIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// Some kernels panic early in one of a few emulated boots.
const ATTEMPTS: u32 = 3;

/// A running guest. Dropping it ends QEMU and removes its files.
#[derive(Debug)]
pub struct Guest {
    endpoints: Endpoints,
    layout: RamLayout,
    ram: RamMode,
    control: Control,
    process: Process,
}

/// Ends QEMU and removes its folder.
#[derive(Debug)]
struct Process {
    child: Option<Child>,
    endpoints: Endpoints,
}

impl Guest {
    pub(crate) fn boot(options: &GuestOptions) -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            match Self::boot_once(options, BOOT_LIMIT) {
                Err(Error::NotReady { .. }) if attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// One boot within a time limit.
    pub(crate) fn boot_once(options: &GuestOptions, limit: Duration) -> Result<Self, Error> {
        let endpoints = Endpoints::new(paths::new_guest_folder()?);
        let mut process = Process { child: None, endpoints: endpoints.clone() };
        let words = options.command_in(endpoints.folder())?;
        let log = File::create(endpoints.qemu_log()).context("create", endpoints.qemu_log())?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = process.child.insert(spawner::spawn(command)?);

        let until = Instant::now() + limit;
        while !endpoints.console().text().contains(READY_LINE) {
            let ended = child.try_wait().context("wait for", endpoints.folder())?;
            let reason = match ended {
                Some(status) => format!("QEMU ended early ({status})"),
                None if Instant::now() > until => format!("nothing after {} s", limit.as_secs()),
                None => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            return Err(not_ready(&endpoints, reason));
        }
        Self::connected(options, endpoints, process, limit)
    }

    pub(crate) fn attach(
        options: &GuestOptions,
        endpoints: Endpoints,
        limit: Duration,
    ) -> Result<Self, Error> {
        let process = Process { child: None, endpoints: endpoints.clone() };
        Self::connected(options, endpoints, process, limit)
    }

    fn connected(
        options: &GuestOptions,
        endpoints: Endpoints,
        process: Process,
        limit: Duration,
    ) -> Result<Self, Error> {
        let control = endpoints
            .connect(limit)
            .map_err(|e| not_ready(&endpoints, format!("it did not answer ({e})")))?;
        Ok(Self { layout: options.layout()?, ram: options.ram_mode(), endpoints, control, process })
    }

    /// Requests to the guest.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// Its sockets and files.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Its console.
    #[must_use]
    pub fn console(&self) -> Console {
        self.endpoints.console()
    }

    /// Where its RAM stands in the RAM file.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Its RAM: shared, it is seen as it changes; otherwise it is copied as it is read.
    pub fn ram(&self) -> Result<Ram, Error> {
        if self.ram == RamMode::Shared {
            let path = self.endpoints.ram_file();
            let file = File::open(&path).context("open", &path)?;
            return Ok(Ram::shared(&file, self.layout.clone())?);
        }
        let pid = qmp::listener(&self.endpoints.qmp_socket())?;
        // Each node has a half.
        let count = if matches!(self.ram, RamMode::Nodes(_)) { 2 } else { 1 };
        let len = self.layout.file_len() / count;
        let mut runs = Vec::new();
        for i in 0..count {
            let offset = FileOffset(i * len);
            let gpa = self.layout.gpa_of(offset).unwrap_or_default();
            let answer = self.endpoints.monitor(&format!("gpa2hva {gpa}"))?;
            let address = answer.trim().rsplit_once(" is 0x").map(|(_, hex)| u64::from_str_radix(hex, 16));
            let Some(Ok(address)) = address else { return Err(Error::NoAddress(answer)) };
            runs.push(ProcessRun { offset, len, address, file: None });
        }
        Ok(Ram::of_process(ProcessRam { pid, runs }, self.layout.clone())?)
    }

    /// Process id of QEMU, if this guest was booted here.
    #[must_use]
    pub fn qemu_pid(&self) -> Option<u32> {
        self.process.child.as_ref().map(Child::id)
    }

    /// What the guest's own kernel says; `symbols` and `types` are large and can be left out.
    pub fn truth(&mut self, symbols: bool, types: bool) -> Result<Truth, Error> {
        self.endpoints.truth(&mut self.control, symbols, types)
    }

    /// Console lines that show a damaged or stalled kernel.
    #[must_use]
    pub fn console_problems(&self) -> Vec<String> {
        self.console().problems()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        match &mut self.child {
            Some(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                let _ = quit(&self.endpoints);
            }
        }
        let _ = std::fs::remove_dir_all(self.endpoints.folder());
    }
}

/// Ends QEMU and waits until it is gone: until then it has its files open.
fn quit(endpoints: &Endpoints) -> Result<(), Error> {
    let socket = endpoints.qmp_socket();
    let pid = i32::try_from(qmp::listener(&socket)?).ok().and_then(Pid::from_raw);
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    endpoints.qmp("quit", &json!({}))?;
    if let Some(process) = process {
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&QUIT_LIMIT));
        ended.map_err(std::io::Error::from).context("await the end of the QEMU of", &socket)?;
    }
    Ok(())
}

fn not_ready(endpoints: &Endpoints, reason: String) -> Error {
    Error::NotReady { reason, console: endpoints.last_words() }
}
