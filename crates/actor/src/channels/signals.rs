//! Signals that wait because their receiver does not want them, and timers that will send one.

use super::Scene;
use super::lent::pieces;
use std::io;
use std::mem::zeroed;

/// A signal that queues.
const SIGNAL: libc::c_int = 40;
/// Signals in the queue.
const COUNT: usize = 128;
/// The fields of a signal follow its number, error and code.
const FIELDS: usize = 16;

/// Signals with 32 bytes of their sender's choice.
pub(super) fn queued(scene: &mut Scene<'_>) -> io::Result<()> {
    block()?;
    scene.whisper(|secret| {
        // SAFETY: all zero is a valid value; the fields have room for the secret; the call reads all of it.
        unsafe {
            let mut info: libc::siginfo_t = zeroed();
            (info.si_signo, info.si_code) = (SIGNAL, libc::SI_QUEUE);
            (&raw mut info).cast::<u8>().add(FIELDS).copy_from_nonoverlapping(secret.as_ptr(), secret.len());
            let receiver = libc::getppid();
            for _ in 0..COUNT {
                let sent = libc::syscall(libc::SYS_rt_sigqueueinfo, receiver, SIGNAL, &raw const info);
                check(sent)?;
            }
        }
        Ok(())
    })
}

/// Timers with 8 bytes each: half of them have sent their signal.
pub(super) fn timers(scene: &mut Scene<'_>) -> io::Result<()> {
    block()?;
    let events = scene.lend(|secret| {
        pieces(secret).map(|piece| {
            // SAFETY: all zero is a valid value, with the notification by a signal.
            let mut event: libc::sigevent = unsafe { zeroed() };
            event.sigev_signo = SIGNAL;
            event.sigev_value.sival_ptr =
                std::ptr::without_provenance_mut(usize::try_from(piece).unwrap_or(0));
            event
        })
    })?;
    let first: *mut libc::sigevent = events.as_ptr().cast();
    for i in 0..4 {
        let mut timer = 0_i32;
        let event = first.wrapping_add(i);
        // SAFETY: the event outlives the call, and the kernel writes the timer's number.
        let made =
            unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, event, &raw mut timer) };
        check(made)?;
        if i % 2 == 0 {
            // SAFETY: all zero is a valid value, and the time outlives the call.
            unsafe {
                let mut time: libc::itimerspec = zeroed();
                time.it_value.tv_nsec = 1;
                let old = std::ptr::null_mut::<libc::itimerspec>();
                check(libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const time, old))?;
            }
        }
    }
    Ok(())
}

fn block() -> io::Result<()> {
    // SAFETY: the set outlives the calls.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, SIGNAL);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
