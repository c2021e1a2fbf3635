//! Where a played process can hold its secret.
//!
//! | name | what |
//! |---|---|
//! | `heap` | a large allocation full of it, one with odd offsets, and many small ones |
//! | `stack` | 16 KiB of the stack of every thread |
//! | `thp` | private memory in transparent huge pages |
//! | `thp-rest` | a transparent huge page of which all but the first 4 KiB was given back |
//! | `hugetlb` | a reserved huge page |
//! | `shm` | shared anonymous memory |
//! | `memfd` | a mapped memfd |
//! | `tmpfs` | a mapped file in `/tmp` |
//! | `file` | a file on the root filesystem, mapped private and only read |
//! | `cow` | a private mapping of a file, written |
//! | `xmm` | all sixteen SSE registers of every looping thread |
//! | the name of marked memory | see [`crate::marks`] |
//! | the name of a channel | see [`crate::channels`] |

use crate::channels;
use crate::marks;
use crate::region::{HUGE, PAGE, Region};
use elision_actor::protocol::Planted;
use elision_actor::secret::{SECRET_LEN, secret};
use rustix::fd::{AsFd, OwnedFd};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// Bytes of stack that hold the secret.
pub(crate) const STACK_LEN: usize = 16 << 10;

/// What one process has planted, and the descriptors that keep it there.
#[derive(Default)]
pub(crate) struct Plants {
    pub(crate) planted: Vec<Planted>,
    /// Not known to a process that plants in channels of the kernel only.
    pub(crate) secret: Option<[u8; SECRET_LEN]>,
    /// The private memory that forked children write to.
    pub(crate) heap: Option<Region>,
    pub(crate) stack: bool,
    pub(crate) registers: bool,
    held: Vec<OwnedFd>,
}

impl Plants {
    /// Plants everything in `places`.
    pub(crate) fn plant(label: &str, seed: &str, places: &str) -> io::Result<Self> {
        let mut plants = Self::default();
        for place in places.split(',').filter(|p| !p.is_empty()) {
            let (name, size) = place.split_once('=').unwrap_or((place, ""));
            let size = if size.is_empty() { None } else { Some(parse_size(size)?) };
            if let Some(filled) = channels::fill(name, label, seed, &mut plants.held) {
                filled.map_err(|e| named(name, &e))?;
                continue;
            }
            let secret = secret(seed, label);
            plants.secret = Some(secret);
            plants.place(label, &secret, name, size).map_err(|e| named(name, &e))?;
        }
        Ok(plants)
    }

    fn place(
        &mut self,
        label: &str,
        secret: &[u8; SECRET_LEN],
        name: &str,
        size: Option<usize>,
    ) -> io::Result<()> {
        let len = |default: usize| size.unwrap_or(default).next_multiple_of(PAGE);
        match name {
            "heap" => self.heap(secret, len(4 << 20)),
            "stack" => self.stack = true,
            "xmm" => self.registers = true,
            "thp" => self.filled(name, Region::transparent_huge(len(2 * HUGE))?, secret)?,
            "thp-rest" => {
                let region = Region::transparent_huge(HUGE)?;
                region.fill(secret);
                region.give_back_all_but_the_first_page()?;
                self.note(name, region)?;
            }
            "hugetlb" => self.filled(name, Region::anonymous(HUGE, false, true)?, secret)?,
            "shm" => self.filled(name, Region::anonymous(len(1 << 20), true, false)?, secret)?,
            "memfd" => {
                let flags = rustix::fs::MemfdFlags::CLOEXEC;
                let fd = rustix::fs::memfd_create("played", flags)?;
                rustix::fs::ftruncate(&fd, len(1 << 20) as u64)?;
                self.filled(name, Region::of_file(fd.as_fd(), len(1 << 20), true)?, secret)?;
                self.held.push(fd);
            }
            "tmpfs" => {
                let file = create(&format!("/tmp/{label}.tmpfs"))?;
                file.set_len(len(1 << 20) as u64)?;
                self.filled(name, Region::of_file(file.as_fd(), len(1 << 20), true)?, secret)?;
                self.held.push(file.into());
            }
            "file" => {
                let mut file = create(&format!("/var/played/{label}.file"))?;
                file.write_all(&secret.repeat(len(256 << 10) / SECRET_LEN))?;
                let region = Region::of_file(file.as_fd(), len(256 << 10), false)?;
                region.touch();
                self.note(name, region)?;
                self.held.push(file.into());
            }
            "cow" => {
                let mut file = create(&format!("/tmp/{label}.cow"))?;
                file.write_all(&vec![b'.'; len(512 << 10)])?;
                self.filled(name, Region::of_file(file.as_fd(), len(512 << 10), false)?, secret)?;
                self.held.push(file.into());
            }
            _ => match marks::plant(name, secret, &mut self.held)? {
                Some(region) => self.note(name, region)?,
                None => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such place")),
            },
        }
        Ok(())
    }

    fn heap(&mut self, secret: &[u8; SECRET_LEN], len: usize) {
        let large = Region::of_slice(vec![0; len].leak());
        large.fill(secret);
        let odd = Region::of_slice(vec![b'-'; (len / 4).max(4 * PAGE)].leak());
        odd.scatter(secret);
        for i in 0..64 {
            Region::of_slice(vec![b'+'; SECRET_LEN + 1 + i * 31].leak()).write(i % 2, secret);
        }
        self.heap = Some(large);
        for region in [large, odd] {
            let len = region.len() as u64;
            self.planted.push(Planted { place: "heap".to_owned(), address: region.address(), len, huge: 0 });
        }
    }

    fn filled(&mut self, name: &str, region: Region, secret: &[u8; SECRET_LEN]) -> io::Result<()> {
        region.fill(secret);
        self.note(name, region)
    }

    fn note(&mut self, name: &str, region: Region) -> io::Result<()> {
        let (address, len) = (region.address(), region.len() as u64);
        let huge = if name == "hugetlb" { len } else { huge_bytes(address)? };
        self.planted.push(Planted { place: name.to_owned(), address, len, huge });
        Ok(())
    }
}

fn create(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

fn named(place: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("Cannot plant in {place}: {error}"))
}

/// `64K`, `4M` or plain bytes.
pub(crate) fn parse_size(text: &str) -> io::Result<usize> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("Bad size {text}"));
    digits.parse::<usize>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n > 0).ok_or_else(bad)
}

/// Bytes in transparent huge pages of the mapping that holds `address`, by smaps.
fn huge_bytes(address: u64) -> io::Result<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|r| r.split_once('-'));
        let bounds = range
            .and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)));
        if let Some((start, end)) = bounds {
            inside = (start..end).contains(&address);
        } else if inside {
            for field in ["AnonHugePages:", "ShmemPmdMapped:"] {
                let Some(rest) = line.strip_prefix(field) else { continue };
                let kib: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
                if kib > 0 {
                    return Ok(kib << 10);
                }
            }
        }
    }
    Ok(0)
}
