//! This process reads its own memory, and that of one that ends.

use super::*;
use crate::{FileOffset, Gpa, ProcessRun, Ram, RamLayout, RamPiece};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};

const LEN: usize = 1 << 20;

/// This process reads itself: the memory in `mapping` as the RAM of a VM.
fn ram_in(mapping: &Mapping, file: Option<File>) -> Ram {
    let ram = ProcessRam::one(std::process::id(), mapping.address() as u64, mapping.len() as u64, file);
    Ram::of_process(ram, RamLayout::flat(mapping.len() as u64).unwrap()).unwrap()
}

/// All of it, in pieces that are kept.
fn bytes(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0xff; LEN];
    for (i, page) in bytes.chunks_mut(PAGE_SIZE).enumerate() {
        ram.read(Gpa((i * PAGE_SIZE) as u64), page).unwrap();
    }
    bytes
}

/// Bytes of a mapping that take memory, as its owner's pagemap says.
fn resident(mapping: &Mapping) -> u64 {
    let ram = ProcessRam::one(std::process::id(), mapping.address() as u64, mapping.len() as u64, None);
    let parts = Source::open(ram).unwrap().populated(PAGE_SIZE).unwrap();
    parts.iter().map(|part| part.end - part.start).sum()
}

#[test]
fn what_was_read_stays_until_it_is_refreshed() {
    let mut memory = Mapping::anonymous(LEN).unwrap();
    assert!(memory.write(4096, b"first---"));
    let ram = ram_in(&memory, None);
    let word = |text: &[u8; 8]| Some(u64::from_le_bytes(*text));
    assert_eq!(ram.word(Gpa(4096)), word(b"first---"));
    assert!(memory.write(4096, b"second--"));
    assert_eq!(ram.word(Gpa(4096)), word(b"first---"), "a second look must see what the first one saw");
    ram.refresh();
    assert_eq!(ram.word(Gpa(4096)), word(b"second--"));
    assert!(memory.write(4096, b"third---"));
    ram.release();
    assert_eq!(ram.word(Gpa(4096)), word(b"third---"));
    ram.check().unwrap();
}

#[test]
fn memory_that_was_given_back_reads_as_zeros() {
    let mut memory = Mapping::anonymous(LEN).unwrap();
    assert!(memory.write(LEN / 2, &[7; PAGE_SIZE]));
    let ram = ram_in(&memory, None);
    assert_eq!(bytes(&ram).iter().filter(|b| **b == 7).count(), PAGE_SIZE);
    memory.empty().unwrap();
    ram.refresh();
    assert_eq!(bytes(&ram), vec![0; LEN]);
}

#[test]
fn reading_touches_nothing() {
    let mut memory = Mapping::anonymous(LEN).unwrap();
    assert!(memory.write(5 * PAGE_SIZE, b"here"));
    assert!(memory.write(LEN - PAGE_SIZE, b"there"));
    let ram = ram_in(&memory, None);
    let before = resident(&memory);
    let found = bytes(&ram);
    assert_eq!((&found[5 * PAGE_SIZE..][..4], &found[LEN - PAGE_SIZE..][..5]), (&b"here"[..], &b"there"[..]));
    assert_eq!((before, resident(&memory)), (2 * PAGE_SIZE as u64, before));
    let parts = ram.populated();
    let chunk = |i: usize| FileOffset((i * CHUNK) as u64)..FileOffset(((i + 1) * CHUNK) as u64);
    assert_eq!(parts, [chunk(0), chunk(LEN / CHUNK - 1)]);
    // Control: reading it directly does touch it.
    let mut all = vec![0; LEN];
    assert!(memory.read(0, &mut all));
    assert_eq!(resident(&memory), LEN as u64);
}

#[test]
fn a_private_file_is_read_where_the_process_has_no_copy() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN as u64).unwrap();
    file.write_all_at(&[1; 2 * PAGE_SIZE], CHUNK as u64).unwrap();
    let layout = RamLayout::flat(LEN as u64).unwrap();
    let mut memory = Mapping::private(LEN, &[RamPiece::whole(&file, &layout).unwrap()]).unwrap();
    assert!(memory.write(CHUNK, &[2; PAGE_SIZE]));
    let ram = ram_in(&memory, Some(file));
    let found = bytes(&ram);
    for (at, value) in [(0, 0), (CHUNK, 2), (CHUNK + PAGE_SIZE, 1), (CHUNK + 2 * PAGE_SIZE, 0)] {
        assert_eq!(found[at..at + PAGE_SIZE], vec![value; PAGE_SIZE], "at {at:#x}");
    }
    let part = FileOffset(CHUNK as u64)..FileOffset(2 * CHUNK as u64);
    assert!(ram.populated().iter().any(|p| p.start <= part.start && part.start < p.end));
    assert_eq!(ram.populated().iter().map(|p| p.end.0 - p.start.0).sum::<u64>(), CHUNK as u64);
}

#[test]
fn much_is_read_at_once_and_not_kept() {
    let mut memory = Mapping::anonymous(LEN + PAGE_SIZE).unwrap();
    let content: Vec<u8> = (0..LEN + PAGE_SIZE).map(|i| u8::try_from(i / 251 % 251).unwrap()).collect();
    assert!(memory.write(0, &content));
    let ram = ProcessRam::one(std::process::id(), memory.address() as u64, memory.len() as u64, None);
    let mapping = Mapping::sparse(memory.len()).unwrap();
    let mirror = Mirror::new(ram, &mapping).unwrap();
    assert!(mirror.read(&mapping, 5 * CHUNK + 7, &mut [0; 9]));
    for (at, len) in [(0, LEN + PAGE_SIZE), (3, LEN), (CHUNK - 1, 2), (LEN - 9, PAGE_SIZE + 9), (7, 0)] {
        let mut bytes = vec![0; len];
        assert!(mirror.read(&mapping, at, &mut bytes), "{len} bytes at {at}");
        assert!(bytes == content[at..at + len], "{len} bytes at {at}");
    }
    assert!(!mirror.read(&mapping, LEN, &mut [0; PAGE_SIZE + 1]), "past the end");
    let most = 5 * CHUNK as u64; // of what was read in part
    assert!(resident(&mapping) <= most, "{} bytes are kept", resident(&mapping));
}

#[test]
fn a_look_at_every_frame_keeps_only_some() {
    const SPARSE: usize = 512 << 20;
    let mut memory = Mapping::sparse(SPARSE).unwrap();
    for at in (0..SPARSE).step_by(CHUNK) {
        assert!(memory.write(at, b"one page"));
    }
    let ram = ProcessRam::one(std::process::id(), memory.address() as u64, memory.len() as u64, None);
    let ram = Ram::of_process(ram, RamLayout::flat(SPARSE as u64).unwrap()).unwrap();
    let found = ram.populated_frames().filter(|gfn| ram.word(gfn.gpa()) != Some(0)).count();
    assert_eq!(found, SPARSE / CHUNK);
    let (kept, all) = (resident(&ram.mapping), (found * PAGE_SIZE) as u64);
    assert!(kept <= all / 2, "{kept} of {all} bytes are kept");
}

#[test]
fn what_was_read_before_is_fetched_ahead_of_work() {
    let mut memory = Mapping::anonymous(LEN).unwrap();
    assert!(memory.write(0, &[1; LEN]));
    let ram = ProcessRam::one(std::process::id(), memory.address() as u64, memory.len() as u64, None);
    let mapping = Mapping::sparse(LEN).unwrap();
    let mirror = Mirror::new(ram, &mapping).unwrap();
    assert!(mirror.bring(&mapping, 3 * CHUNK, 1) && mirror.bring(&mapping, 7 * CHUNK, 1));
    mirror.refresh();
    assert!(memory.write(0, &[2; LEN]));
    let here = || mirror.chunks.iter().map(|chunk| chunk.load(Ordering::Acquire) == HERE);
    assert_eq!(here().filter(|here| *here).count(), 0);
    mirror.fetching(&mapping, || {
        while here().filter(|here| *here).count() < 3 {
            thread::yield_now();
        }
    });
    let fetched: Vec<_> = here().enumerate().filter(|(_, here)| *here).map(|(i, _)| i).collect();
    assert_eq!(fetched, [0, 3, 7], "the first one is read at once when a mirror is made");
    assert_eq!(mapping.word(3 * CHUNK), Some(0x0202_0202_0202_0202));
}

#[test]
fn threads_see_the_same() {
    let mut memory = Mapping::anonymous(LEN).unwrap();
    let content: Vec<u8> = (0..LEN / 8).flat_map(|i| (i as u64).to_le_bytes()).collect();
    assert!(memory.write(0, &content));
    let ram = ram_in(&memory, None);
    for _ in 0..20 {
        ram.refresh();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..LEN as u64 / 8 {
                        assert_eq!(ram.word(Gpa(8 * i)), Some(i));
                    }
                });
            }
        });
    }
}

fn sleeper() -> (Child, u64) {
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let stack = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        let line = maps.lines().find(|line| line.ends_with("[stack]"))?.to_owned();
        u64::from_str_radix(line.split('-').nth(1)?.split(' ').next()?, 16).ok()
    };
    let end = std::iter::repeat_with(stack).flatten().next().unwrap();
    (child, end)
}

#[test]
fn a_process_that_ended_is_an_error_and_no_zeros() {
    let (mut child, end) = sleeper();
    let address = end - CHUNK as u64;
    let ram = ProcessRam::one(child.id(), address, CHUNK as u64, None);
    let ram = Ram::of_process(ram, RamLayout::flat(CHUNK as u64).unwrap()).unwrap();
    let mut bytes = [0; 64];
    ram.read(Gpa(0), &mut bytes).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    ram.read(Gpa(0), &mut bytes).unwrap(); // read before
    ram.check().unwrap();
    ram.refresh();
    let is_ended = |e: MemoryError| matches!(e, MemoryError::Ended { pid } if pid == child.id());
    assert_eq!(ram.word(Gpa(0)), None);
    assert!(is_ended(ram.read(Gpa(0), &mut bytes).unwrap_err()));
    assert!(!ram.read_file(FileOffset(0), &mut bytes));
    assert!(is_ended(ram.check().unwrap_err()));
}

#[test]
fn what_may_not_be_read_is_refused_at_once() {
    let open = |pid, address| {
        let ram = ProcessRam::one(pid, address, CHUNK as u64, None);
        Ram::of_process(ram, RamLayout::flat(CHUNK as u64).unwrap()).unwrap_err()
    };
    let no_such_pid = (1 << 22) + 1;
    assert!(matches!(open(no_such_pid, 0x1000), MemoryError::Ended { .. }));
    if !rustix::process::geteuid().is_root() {
        assert!(matches!(open(1, 0x1000), MemoryError::Forbidden { .. }));
    }
}

#[test]
fn ram_in_several_runs_is_one() {
    const RUN: usize = 3 * CHUNK;
    let (mut a, mut b) = (Mapping::anonymous(RUN).unwrap(), Mapping::sparse(RUN).unwrap());
    assert!(a.write(0, &[1; RUN]) && b.write(CHUNK, &[2; CHUNK]));
    // What the second one has not touched is a file's, from its second chunk on.
    let file = tempfile::tempfile().unwrap();
    file.set_len((CHUNK + RUN) as u64).unwrap();
    file.write_all_at(&[3; CHUNK], (3 * CHUNK) as u64).unwrap();
    file.write_all_at(&[4; CHUNK], 0).unwrap();
    let run = |offset: usize, mapping: &Mapping, file| ProcessRun {
        offset: FileOffset(offset as u64),
        len: RUN as u64,
        address: mapping.address() as u64,
        file,
    };
    // They stand one chunk apart.
    let second = RUN + CHUNK;
    let ram = ProcessRam {
        pid: std::process::id(),
        runs: vec![run(0, &a, None), run(second, &b, Some((file, CHUNK as u64)))],
    };
    let ram = Ram::of_process(ram, RamLayout::flat((second + RUN) as u64).unwrap()).unwrap();
    let mut expected = vec![1; RUN];
    expected.resize(second + CHUNK, 0);
    expected.resize(second + 2 * CHUNK, 2);
    expected.resize(second + RUN, 3);
    for len in [PAGE_SIZE, second + RUN] {
        let mut bytes = vec![9; second + RUN];
        for (i, part) in bytes.chunks_mut(len).enumerate() {
            assert!(ram.read_file(FileOffset((i * len) as u64), part));
        }
        assert!(bytes == expected, "in parts of {len}");
    }
    let part = |start: usize, end: usize| FileOffset(start as u64)..FileOffset(end as u64);
    assert_eq!(ram.populated(), [part(0, RUN), part(second + CHUNK, second + RUN)]);
    ram.check().unwrap();
}
