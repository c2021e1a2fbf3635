//! Damage to a copy of a guest's RAM: by chance, and forged to cost as much time as possible.

use crate::targets::{Targets, Word};
use elision_memory::{Gpa, PAGE_SIZE, Ram};
use std::collections::BTreeMap;

/// A small generator of pseudo-random numbers (splitmix64), the same for each seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Damages one place, or in some rounds up to 32; returns what was done.
pub(crate) fn by_chance(ram: &mut Ram, targets: &Targets, random: &mut Random) -> String {
    let names: Vec<&String> = targets.words.keys().collect();
    let mut done = Vec::new();
    // Much damage is found out early: what lies deep is reached with little.
    let places = if random.below(3) == 0 { 1 << random.below(6) } else { 1 };
    for _ in 0..places {
        let name = *random.of(&names);
        let words = &targets.words[name];
        let (word, other) = (*random.of(words), *random.of(words));
        let kind = damage_word(ram, targets, random, word, other);
        done.push(format!("{kind} at {name}"));
    }
    done.join(", ")
}

fn damage_word(
    ram: &mut Ram,
    targets: &Targets,
    random: &mut Random,
    word: Word,
    other: Word,
) -> &'static str {
    let value = ram.word(word.gpa).expect("RAM");
    let user = random.of(&targets.user).gpa();
    let (kind, new) = match random.below(10) {
        0 | 1 => ("bit flip", value ^ (1 << random.below(64))),
        2 => ("loop", word.gva.0),
        3 => ("pointer to another", other.gva.0),
        4 => ("pointer into user memory", targets.direct_map.0 + user.0 + 8 * random.below(400) as u64),
        5 => ("ones", u64::MAX),
        6 => ("zero", 0),
        7 => ("step", value.wrapping_add(8 * random.below(64) as u64)),
        8 => {
            let theirs = ram.word(other.gpa).expect("RAM");
            set(ram, other.gpa, value);
            ("swap", theirs)
        }
        _ => {
            let noise: Vec<u8> = (0..PAGE_SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            ram.poke(word.gpa.gfn().gpa(), &noise).expect("RAM");
            ("page of noise", random.next())
        }
    };
    set(ram, word.gpa, new);
    kind
}

fn set(ram: &mut Ram, gpa: Gpa, value: u64) {
    ram.poke(gpa, &value.to_le_bytes()).expect("RAM");
}

fn set_all(ram: &mut Ram, targets: &Targets, name: &str, value: impl Fn(&Word) -> u64) {
    let words = targets.named(name);
    assert!(!words.is_empty(), "no {name} to forge");
    words.iter().for_each(|word| set(ram, word.gpa, value(word)));
}

/// Fills a page that a user of the guest could fill; returns where it stands.
fn planted(ram: &mut Ram, targets: &Targets, page: usize, word: impl Fn(u64) -> u64) -> Gpa {
    let at = targets.user[page].gpa();
    for i in 0..PAGE_SIZE as u64 / 8 {
        set(ram, at.wrapping_add(8 * i), word(i));
    }
    at
}

type Forge = fn(&mut Ram, &Targets);

/// Structures that a hostile guest could build to keep a walker busy for ever, or to fill memory.
pub(crate) const FORGED: &[(&str, Forge)] = &[
    ("page tables that lead to themselves", |ram, targets| {
        for level in 0..5 {
            for word in targets.named(&format!("page table {level}")) {
                set(ram, word.gpa, word.gva.0);
            }
        }
    }),
    ("page tables full of pages of 1 GiB", |ram, targets| {
        let leaves = planted(ram, targets, 0, |_| 0xe7);
        let tables = planted(ram, targets, 1, |_| leaves.0 | 7);
        set_all(ram, targets, "page table 3", |_| leaves.0 | 7);
        targets.named("page table 4").iter().for_each(|word| set(ram, word.gpa, tables.0 | 7));
    }),
    ("page tables full of pages of 2 MiB", |ram, targets| {
        let leaves = planted(ram, targets, 0, |i| (i << 21) | 0xe7);
        set_all(ram, targets, "page table 2", |_| leaves.0 | 7);
    }),
    ("one list of threads for all processes", |ram, targets| {
        let first = ram.word(targets.named("task_struct.signal")[0].gpa).expect("RAM");
        set_all(ram, targets, "task_struct.signal", |_| first);
    }),
    ("file tables as large as RAM", |ram, targets| {
        let all = targets.direct_map.0;
        set_all(ram, targets, "fdtable.max_fds", |_| 0x3fff_ffff);
        set_all(ram, targets, "fdtable.fd", |_| all);
    }),
    ("thousands of CPUs", |ram, targets| {
        set_all(ram, targets, "nr_cpu_ids", |_| 8192);
        let first = targets.named("__per_cpu_offset")[0].gpa;
        let offset = ram.word(first).expect("RAM");
        (2..8192).for_each(|i| set(ram, first.wrapping_add(8 * i), offset));
    }),
    ("maple trees of empty nodes", |ram, targets| {
        // Nodes of every level are the same; an allocating range has ten slots and its end behind them.
        let node = targets.direct_map.wrapping_add(targets.user[0].gpa().0).0 | 3 << 3;
        planted(ram, targets, 0, |i| if i % 32 == 0 { 1 } else { node | 4 });
        set_all(ram, targets, "mm_struct.mm_mt.ma_root", |_| node | 2);
    }),
    ("areas that come again", |ram, targets| {
        let area = targets.named("vm_area_struct.vm_start")[0].gva.0;
        set_all(ram, targets, "maple node", |word| if word.gva.0 % 256 == 0 { 0 } else { area });
    }),
    ("page caches full of one page", |ram, targets| {
        let page = targets.named("page in a cache")[0].gva.0;
        set_all(ram, targets, "xa_node.slots", |_| page);
    }),
    ("page caches of nodes in a loop", |ram, targets| {
        let node = targets.named("xa_node.shift")[0].gva.0 | 2;
        set_all(ram, targets, "xa_node.slots", |_| node);
        set_all(ram, targets, "address_space.i_pages.xa_head", |_| node);
    }),
    ("folders in a loop", |ram, targets| {
        let (a, b) = (targets.named("dentry.d_parent")[0].gva.0, targets.named("dentry.d_parent")[1].gva.0);
        set_all(ram, targets, "dentry.d_parent", |word| if word.gva.0 == a { b } else { a });
    }),
    ("mounts in a loop", |ram, targets| {
        // Mounts inside the kernel are their own parents, which tells where a mount begins. Each one
        // gets the next one as its parent, and stands on that one's root.
        let [parents, points, roots] =
            ["mount.mnt_parent", "mount.mnt_mountpoint", "vfsmount.mnt_root"].map(|name| targets.named(name));
        assert!(parents.len() >= 2, "no mounts to forge");
        let mut starts: BTreeMap<u64, usize> = BTreeMap::new();
        for word in parents {
            let parent = ram.word(word.gpa).expect("RAM");
            *starts.entry(parent.wrapping_sub(word.gva.0)).or_default() += 1;
        }
        let start = *starts.iter().max_by_key(|(_, n)| **n).expect("a mount").0;
        for i in 0..parents.len() {
            let next = (i + 1) % parents.len();
            let mount = start.wrapping_add(parents[next].gva.0);
            let root = ram.word(roots[next].gpa).expect("RAM");
            set(ram, parents[i].gpa, mount);
            set(ram, points[i].gpa, root);
        }
    }),
    ("cgroups in a loop", |ram, targets| {
        let node = ram.word(targets.named("cgroup.kn")[0].gpa).expect("RAM");
        set_all(ram, targets, "kernfs_node.__parent", |_| node);
    }),
    ("free lists of the whole of memory", |ram, targets| {
        set_all(ram, targets, "zone.free_area", |word| word.gva.0 & !15);
        set_all(ram, targets, "free page", |word| word.gva.0);
    }),
    ("stacks at the end of the address space", |ram, targets| {
        set_all(ram, targets, "task_struct.stack", |_| u64::MAX - 4095);
        set_all(ram, targets, "task_struct.thread.sp", |_| 4096);
    }),
];
