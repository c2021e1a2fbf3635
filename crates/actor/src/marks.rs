//! Marked memory full of the secret. What is reported is the marked part of it.
//!
//! | name | what |
//! |---|---|
//! | `marked-memfd` | a memfd `elision:played`, mapped shared |
//! | `marked-private` | the same, mapped private and not open any more |
//! | `marked-hugetlb` | a huge page of a memfd of that name |
//! | `dontdump` | the middle of two transparent huge pages, from one into the other |
//! | `dontdump-shared` | the second half of shared anonymous memory |
//! | `dontdump-forked` | private memory marked after a fork; the child has it unmarked |

use crate::region::{HUGE, PAGE, Region};
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, madvise};
use std::io;

const NAME: &str = "elision:played";
const LEN: usize = 1 << 20;

/// Plants in the marked memory of that name, if there is one. `held` keeps descriptors open.
pub(crate) fn plant(
    name: &str,
    secret: &[u8; SECRET_LEN],
    held: &mut Vec<OwnedFd>,
) -> io::Result<Option<Region>> {
    let marked = match name {
        "marked-memfd" => {
            let (file, region) = named(LEN, true, MemfdFlags::CLOEXEC, secret)?;
            held.push(file);
            region
        }
        "marked-private" => named(LEN, false, MemfdFlags::CLOEXEC, secret)?.1,
        "marked-hugetlb" => named(HUGE, true, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB, secret)?.1,
        "dontdump" => {
            let region = Region::transparent_huge(2 * HUGE)?;
            region.fill(secret);
            left_out_of_dumps(region.part(HUGE / 2, HUGE))?
        }
        "dontdump-shared" => {
            let region = Region::anonymous(LEN, true, false)?;
            region.fill(secret);
            left_out_of_dumps(region.part(LEN / 2, LEN / 2))?
        }
        "dontdump-forked" => {
            let region = Region::anonymous(16 * PAGE, false, false)?;
            region.fill(secret);
            // SAFETY: this process has one thread, so the child may go on like any process.
            match unsafe { libc::fork() } {
                -1 => return Err(io::Error::last_os_error()),
                0 => loop {
                    std::thread::park();
                },
                _ => left_out_of_dumps(region)?,
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(marked))
}

fn named(
    len: usize,
    shared: bool,
    flags: MemfdFlags,
    secret: &[u8; SECRET_LEN],
) -> io::Result<(OwnedFd, Region)> {
    let file = memfd_create(NAME, flags)?;
    ftruncate(&file, len as u64)?;
    let region = Region::of_file(file.as_fd(), len, shared)?;
    region.fill(secret);
    Ok((file, region))
}

fn left_out_of_dumps(region: Region) -> io::Result<Region> {
    // SAFETY: the advice changes what dumps hold, and nothing for the program.
    unsafe { madvise(region.word(0).cast(), region.len(), Advice::LinuxDontDump) }?;
    Ok(region)
}
