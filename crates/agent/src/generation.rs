//! The word by which a restored agent knows that it is one.
//!
//! A saver finds the page by what the agent says of it, and writes `Restored` into its copy while the word is `Calm`.
//! Every way to let processes run on begins with changing the word from `Calm` to `Idle` in one step. In a restored
//! copy this fails, wherever the agent was when the VM was stopped: there is no moment in which it could still let run
//! what a copy must not run.

use crate::error::{AgentError, Context};
use elision_wire::{Generation, Mark, Nonce, Word};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

const PAGE: usize = 4096;

/// As [`Mark`] draws it. A page of its own, as the saver writes to it.
#[repr(C, align(4096))]
struct MarkPage {
    magic: [AtomicU8; Mark::NONCE],
    nonce: [AtomicU8; Mark::WORD - Mark::NONCE],
    word: AtomicU32,
    rest: [AtomicU8; PAGE - Mark::LEN],
}

/// Zero until [`begin`], so that the program's file does not hold it.
static MARK: MarkPage = MarkPage {
    magic: [const { AtomicU8::new(0) }; Mark::NONCE],
    nonce: [const { AtomicU8::new(0) }; Mark::WORD - Mark::NONCE],
    word: AtomicU32::new(0),
    rest: [const { AtomicU8::new(0) }; PAGE - Mark::LEN],
};

/// A new life begins: with another nonce, and with nothing that stands still.
pub(crate) fn begin() -> Result<(), AgentError> {
    let mut nonce = [0; Mark::WORD - Mark::NONCE];
    let filled = getrandom(&mut nonce, GetRandomFlags::empty()).context("read", "random numbers")?;
    if filled != nonce.len() {
        return Err(AgentError::Other("The kernel gave too few random numbers".to_owned()));
    }
    MARK.word.store(Word::Idle as u32, Ordering::SeqCst);
    for (to, from) in MARK.nonce.iter().zip(nonce) {
        to.store(from, Ordering::SeqCst);
    }
    for (to, from) in MARK.magic.iter().zip(Mark::MAGIC) {
        to.store(from, Ordering::SeqCst);
    }
    Ok(())
}

/// What a host is told.
pub(crate) fn of_this_agent() -> Generation {
    let mut nonce = [0; 16];
    for (to, from) in nonce.iter_mut().zip(&MARK.nonce) {
        *to = from.load(Ordering::SeqCst);
    }
    let address = u64::try_from((&raw const MARK).addr()).unwrap_or(0);
    Generation { pid: std::process::id(), address, nonce: Nonce::from(nonce) }
}

/// Processes stand still now.
pub(crate) fn calm() {
    MARK.word.store(Word::Calm as u32, Ordering::SeqCst);
}

/// Processes may run on; false in a restored copy.
pub(crate) fn may_run_on() -> bool {
    let calm = Word::Calm as u32;
    let was = MARK.word.compare_exchange(calm, Word::Idle as u32, Ordering::SeqCst, Ordering::SeqCst);
    was.is_ok() || was == Err(Word::Idle as u32)
}

/// Whether this is a restored copy.
pub(crate) fn is_restored() -> bool {
    debug_assert!(MARK.rest.iter().all(|byte| byte.load(Ordering::Relaxed) == 0));
    MARK.word.load(Ordering::SeqCst) == Word::Restored as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_that_was_marked_while_calm_is_restored() {
        begin().unwrap();
        let first = of_this_agent();
        assert!(first.nonce.bytes().is_some() && first.address % PAGE as u64 == 0);
        assert!(may_run_on() && !is_restored());
        calm();
        assert!(may_run_on() && !is_restored());
        calm();
        MARK.word.store(Word::Restored as u32, Ordering::SeqCst); // what the saver does
        assert!(!may_run_on() && is_restored());
        begin().unwrap();
        assert!(!is_restored() && of_this_agent().nonce != first.nonce);
    }
}
