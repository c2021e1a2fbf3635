//! A played process: plants its secret, reports that it is ready, then keeps to its mode.

use crate::counter::{Counter, Counters};
use crate::idle::Idle;
use crate::places::{Plants, STACK_LEN};
use crate::region::Region;
use elision_actor::protocol::Spawned;
use elision_actor::secret::SECRET_LEN;
use rustix::process::{WaitOptions, waitpid};
use std::ffi::CString;
use std::hint::black_box;
use std::io::{self, Write};
use std::sync::mpsc;
use std::time::Duration;

/// What to play, from the command line and the environment.
pub(crate) struct Role {
    pub(crate) label: String,
    pub(crate) places: String,
    pub(crate) mode: String,
    pub(crate) seed: String,
    pub(crate) slot: usize,
    pub(crate) comm: Option<String>,
}

enum Mode {
    Loop(Idle),
    Threads(usize),
    Fork(usize),
    Crowd(usize),
    Share,
    End,
}

impl Role {
    /// Plays until a signal ends it; returns only in mode `end`.
    pub(crate) fn play(&self) -> io::Result<()> {
        if let Some(comm) = &self.comm {
            rustix::thread::set_name(&CString::new(comm.as_str())?)?;
        }
        let mode = Mode::parse(&self.mode)?;
        let counter = Counters::open()?.counter(self.slot);
        let plants = Plants::plant(&self.label, &self.seed, &self.places)?;
        let secret = plants.secret.unwrap_or_default();
        let registers = if plants.registers { secret } else { [0; SECRET_LEN] };
        let stack = plants.stack.then_some(secret);
        with_stack(stack, || match &mode {
            Mode::Loop(idle) => {
                self.report(&plants, Vec::new(), 1)?;
                idle.run(counter, &registers)
            }
            Mode::Threads(n) => {
                start_threads(*n, counter, stack, registers)?;
                self.report(&plants, Vec::new(), n + 1)?;
                Idle::Block.run(counter, &registers)
            }
            Mode::Fork(n) => {
                let children = fork_children(*n, counter, &plants, &secret, &registers)?;
                self.report(&plants, children, 1)?;
                loop {
                    counter.bump();
                    if waitpid(None, WaitOptions::empty()).is_err() {
                        Idle::Block.run(counter, &registers)
                    }
                }
            }
            Mode::Crowd(n) => {
                let children = crowd(*n)?;
                self.report(&plants, children, 1)?;
                Idle::Block.run(counter, &registers)
            }
            Mode::Share => {
                self.report(&plants, vec![sharing_child()?], 1)?;
                Idle::Block.run(counter, &registers)
            }
            Mode::End => self.report(&plants, Vec::new(), 1),
        })
    }

    /// Tells the server that everything is planted.
    fn report(&self, plants: &Plants, children: Vec<i32>, threads: usize) -> io::Result<()> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let planted = plants.planted.clone();
        let report = Spawned { label: self.label.clone(), pid, planted, children, threads };
        let mut line = serde_json::to_vec(&report)?;
        line.push(b'\n');
        io::stdout().write_all(&line)
    }
}

impl Mode {
    fn parse(text: &str) -> io::Result<Self> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("Bad mode {text}"));
        let number = |default: usize| {
            if value.is_empty() { Ok(default) } else { value.parse().map_err(|_| bad()) }
        };
        match name {
            "spin" => Ok(Self::Loop(Idle::Spin)),
            "sleep" => Ok(Self::Loop(Idle::Sleep(parse_time(value).ok_or_else(bad)?))),
            "block" => Ok(Self::Loop(Idle::Block)),
            "threads" => Ok(Self::Threads(number(64)?)),
            "fork" => Ok(Self::Fork(number(4)?)),
            "crowd" => Ok(Self::Crowd(number(1000)?)),
            "share" => Ok(Self::Share),
            "end" => Ok(Self::End),
            _ => Err(bad()),
        }
    }
}

/// `10ms`, `3s`, or an hour if empty.
fn parse_time(text: &str) -> Option<Duration> {
    if text.is_empty() {
        Some(Duration::from_secs(3600))
    } else if let Some(ms) = text.strip_suffix("ms") {
        ms.parse().ok().map(Duration::from_millis)
    } else {
        text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
    }
}

/// Runs `body` above a stack frame full of the secret.
fn with_stack<T>(secret: Option<[u8; SECRET_LEN]>, body: impl FnOnce() -> T) -> T {
    let Some(secret) = secret else { return body() };
    let mut frame = [0_u8; STACK_LEN];
    Region::of_slice(&mut frame).fill(&secret);
    black_box(&mut frame);
    let result = body();
    black_box(&mut frame);
    result
}

/// Starts `n` threads: of each sixteen, one spins; the others block, sleep long or sleep short.
fn start_threads(
    n: usize,
    counter: Counter,
    stack: Option<[u8; SECRET_LEN]>,
    registers: [u8; SECRET_LEN],
) -> io::Result<()> {
    let (ready, started) = mpsc::channel();
    for i in 0..n {
        let ready = ready.clone();
        let body = move || {
            with_stack(stack, || {
                let _ = ready.send(());
                drop(ready);
                let idle = match i {
                    _ if i % 16 == 5 => Idle::Spin,
                    _ if i % 3 == 0 => Idle::Block,
                    _ if i % 3 == 1 => Idle::Sleep(Duration::from_secs(3600)),
                    _ => Idle::Sleep(Duration::from_millis(20)),
                };
                idle.run(counter, &registers)
            })
        };
        std::thread::Builder::new().name(format!("played-{i}")).stack_size(128 << 10).spawn(body)?;
    }
    drop(ready);
    for _ in 0..n {
        started.recv_timeout(Duration::from_secs(60)).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Forks children that write half of the parent's heap anew and hold it.
fn fork_children(
    n: usize,
    counter: Counter,
    plants: &Plants,
    secret: &[u8; SECRET_LEN],
    registers: &[u8; SECRET_LEN],
) -> io::Result<Vec<i32>> {
    let (read, write) = rustix::pipe::pipe()?;
    let mut children = Vec::new();
    for i in 0..n {
        // SAFETY: this process has one thread, so the child may go on like any process.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                if let Some(heap) = plants.heap {
                    // From another offset, so that the bytes change and the pages are copied.
                    let skip = 8 * (1 + i % 3);
                    for at in (skip..heap.len() / 2 - SECRET_LEN).step_by(SECRET_LEN) {
                        heap.write(at, secret);
                    }
                }
                let _ = rustix::io::write(&write, b"r");
                let idle = match i % 3 {
                    0 => Idle::Sleep(Duration::from_secs(3600)),
                    1 => Idle::Block,
                    _ => Idle::Sleep(Duration::from_millis(20)),
                };
                idle.run(counter, registers)
            }
            child => children.push(child),
        }
    }
    let mut byte = [0];
    for _ in 0..n {
        rustix::io::read(&read, &mut byte)?;
    }
    Ok(children)
}

/// Forks children that do nothing but sleep.
fn crowd(n: usize) -> io::Result<Vec<i32>> {
    (0..n)
        .map(|_| {
            // SAFETY: this process has one thread, so the child may go on like any process.
            match unsafe { libc::fork() } {
                -1 => Err(io::Error::last_os_error()),
                0 => loop {
                    std::thread::park();
                },
                child => Ok(child),
            }
        })
        .collect()
}

/// Starts a process in this one's memory, as `vfork` does, that does nothing but sleep.
fn sharing_child() -> io::Result<i32> {
    extern "C" fn sleep(_: *mut libc::c_void) -> libc::c_int {
        loop {
            // SAFETY: it only waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let stack = vec![0_u128; 4096].leak().as_mut_ptr_range().end.cast();
    // SAFETY: the stack is the child's alone, and the child touches nothing else of the memory that it shares.
    match unsafe { libc::clone(sleep, stack, libc::CLONE_VM | libc::SIGCHLD, std::ptr::null_mut()) } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(child),
    }
}
