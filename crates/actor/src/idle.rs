//! The endless loops of played threads. Each turn through user mode adds one to the counter, and
//! the vector registers hold the secret for as long as the loop runs.

use crate::counter::Counter;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{AsRawFd, OwnedFd};
use std::arch::asm;
use std::time::Duration;

/// What a thread does between two turns.
pub(crate) enum Idle {
    /// Nothing: it never leaves user mode by itself.
    Spin,
    /// Sleeps in a timer.
    Sleep(Duration),
    /// Reads from a pipe nobody writes to.
    Block,
}

impl Idle {
    /// Runs the loop for good; `registers` go into the SSE registers.
    pub(crate) fn run(&self, counter: Counter, registers: &[u8; SECRET_LEN]) -> ! {
        match self {
            Self::Spin => spin(counter, registers),
            Self::Sleep(time) => {
                let time = libc::timespec {
                    tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(time.subsec_nanos()),
                };
                call(counter, registers, libc::SYS_nanosleep, std::ptr::from_ref(&time).addr(), 0)
            }
            Self::Block => {
                let (read, _write) = empty_pipe();
                let mut byte = 0_u8;
                let fd = usize::try_from(read.as_raw_fd()).unwrap_or(usize::MAX);
                call(counter, registers, libc::SYS_read, fd, std::ptr::from_mut(&mut byte).addr())
            }
        }
    }
}

fn empty_pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().expect("a pipe for a thread that blocks")
}

macro_rules! with_registers {
    ($($line:literal),* ; $($operands:tt)*) => {
        asm!(
            "movdqu xmm0, [rsi]", "movdqu xmm1, [rsi + 16]", "movdqu xmm2, [rsi]", "movdqu xmm3, [rsi + 16]",
            "movdqu xmm4, [rsi]", "movdqu xmm5, [rsi + 16]", "movdqu xmm6, [rsi]", "movdqu xmm7, [rsi + 16]",
            "movdqu xmm8, [rsi]", "movdqu xmm9, [rsi + 16]", "movdqu xmm10, [rsi]", "movdqu xmm11, [rsi + 16]",
            "movdqu xmm12, [rsi]", "movdqu xmm13, [rsi + 16]", "movdqu xmm14, [rsi]", "movdqu xmm15, [rsi + 16]",
            $($line),*,
            $($operands)*
        )
    };
}

fn spin(counter: Counter, registers: &[u8; SECRET_LEN]) -> ! {
    // SAFETY: reads 32 bytes of `registers`, then only adds to the counter's word, which stays
    // mapped for the life of the process.
    unsafe {
        with_registers!("2:", "lock inc qword ptr [rcx]", "pause", "jmp 2b";
            in("rsi") registers.as_ptr(), in("rcx") counter.address(), options(noreturn))
    }
}

fn call(counter: Counter, registers: &[u8; SECRET_LEN], number: i64, first: usize, second: usize) -> ! {
    // SAFETY: as in `spin`; the system call is nanosleep or a read of one byte, and what its two
    // arguments point to is on the caller's stack, whose function never returns.
    unsafe {
        with_registers!("2:", "lock inc qword ptr [r12]", "mov rax, r13", "mov rdi, r14", "mov rsi, r15",
            "mov edx, 1", "syscall", "jmp 2b";
            in("rsi") registers.as_ptr(), in("r12") counter.address(), in("r13") number,
            in("r14") first, in("r15") second, options(noreturn))
    }
}
