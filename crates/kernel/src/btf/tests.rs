//! Lookups in a blob made by code, and hostile blobs.

use super::build::{BtfBuilder, sample};
use super::*;
use proptest::prelude::*;

fn small() -> Btf {
    Btf::parse(sample()).unwrap()
}

fn offset(btf: &Btf, path: &str) -> Option<u64> {
    btf.member(btf.struct_("task_struct")?, path)?.byte_offset()
}

#[test]
fn members_are_found_through_typedefs_arrays_and_anonymous_parts() {
    let btf = small();
    assert_eq!(offset(&btf, "tasks"), Some(0));
    assert_eq!(offset(&btf, "tasks.prev"), Some(8));
    assert_eq!(offset(&btf, "tgid"), Some(16), "inside a union in a struct, both without a name");
    assert_eq!(offset(&btf, "state"), Some(24));
    assert_eq!(offset(&btf, "queues[2].prev"), Some(48 + 40));
    assert_eq!(offset(&btf, "matrix[2][1]"), Some(100 + 28));
    assert_eq!(offset(&btf, "tail[5]"), Some(136 + 40), "an array without a count has no end");
    for absent in [
        "nothing",
        "tasks.nothing",
        "queues[3]",
        "queues[-1]",
        "queues[1",
        "queues]",
        "queues[1]x",
        "comm.a",
        "pid[0]",
        "",
        ".",
        "tasks.",
        "[0]",
        "matrix[0][0][0]",
        "tasks.next.next", // a pointer is not followed
    ] {
        assert_eq!(offset(&btf, absent), None, "{absent}");
    }
    assert!(btf.has("task_struct", "comm") && !btf.has("task_struct", "com") && !btf.has("task", "comm"));
}

#[test]
fn types_have_sizes() {
    let btf = small();
    let task = btf.struct_("task_struct").unwrap();
    assert_eq!(btf.size_of(task), Some(136));
    assert_eq!(btf.size_of_member(task, "comm"), Some(16));
    assert_eq!(btf.size_of_member(task, "matrix"), Some(36));
    assert_eq!(btf.size_of_member(task, "tasks.next"), Some(8));
    assert_eq!(btf.require_size("chain_t"), Ok(16), "typedef, tag, restrict, const, typedef, struct");
    assert_eq!(btf.require_size("wide"), Ok(8));
    assert_eq!(btf.size_of(TypeId(0)), None, "void");
    assert_eq!(btf.size_of(TypeId(u32::MAX)), None);
    assert_eq!(btf.require_size("do_exit"), Err(BtfError::NoType { name: "do_exit".into() }));
    assert_eq!(btf.struct_("chain_t"), btf.struct_("list_head"));
    assert_eq!(btf.struct_("int"), None);
    assert_eq!(btf.struct_("declared"), None);
}

#[test]
fn arrays_and_pointers_name_what_they_hold() {
    let btf = small();
    let task = btf.struct_("task_struct").unwrap();
    let queues = btf.member(task, "queues").unwrap().type_id;
    assert_eq!(btf.array(queues), Some((btf.struct_("list_head").unwrap(), 3)));
    let next = btf.member(task, "tasks.next").unwrap().type_id;
    assert_eq!(btf.pointee(next), btf.struct_("list_head"));
    assert_eq!((btf.array(task), btf.pointee(task)), (None, None));
    let names: Vec<_> = btf.members(task).map(|(name, _)| name).collect();
    assert_eq!(names, ["tasks", "", "comm", "queues", "frozen", "matrix", "tail"]);
    assert_eq!(btf.members(TypeId(1)).count(), 0);
}

#[test]
fn enumerators_keep_their_sign() {
    let btf = small();
    assert_eq!(btf.enumerator("PG_locked"), Some(0));
    assert_eq!(btf.enumerator("PG_high"), Some(0x8000_0000), "an unsigned enum");
    assert_eq!(btf.enumerator("MINUS"), Some(-5));
    assert_eq!(btf.enumerator("WIDE"), Some(i64::MIN + 1));
    assert_eq!(btf.enumerator("PG_"), None);
    let flags = btf.find_type("pageflags", |k| k == Kind::Enum).unwrap();
    assert_eq!(btf.enumerators(flags).map(|(n, _)| n).collect::<Vec<_>>(), ["PG_locked", "PG_high"]);
    assert_eq!(btf.require_enumerator("PG_gone"), Err(BtfError::NoEnumerator { name: "PG_gone".into() }));
}

#[test]
fn functions_and_variables_are_known_by_name() {
    let btf = small();
    assert!(btf.func("do_exit").is_some() && btf.func("jiffies").is_none());
    assert!(btf.var("jiffies").is_some() && btf.var("do_exit").is_none());
}

#[test]
fn bitfields_have_a_width_and_no_byte_offset() {
    let btf = small();
    let task = btf.struct_("task_struct").unwrap();
    let frozen = btf.member(task, "frozen").unwrap();
    assert_eq!((frozen.bit_offset, frozen.bit_size), (771, Some(2)));
    assert!(matches!(btf.require_offset("task_struct", "frozen"), Err(BtfError::Bitfield { .. })));

    // The older encoding: no flag, the int itself is 3 bits wide and begins 2 bits in.
    let mut b = BtfBuilder::new();
    let narrow = b.raw(1, false, "int", 0, 4, &[2 << 16 | 3]);
    let old = b.struct_("old", 8, &[("a", narrow, 32, 0)]);
    let btf = Btf::parse(b.build()).unwrap();
    let a = btf.member(TypeId(old), "a").unwrap();
    assert_eq!((a.bit_offset, a.bit_size), (34, Some(3)));
}

#[test]
fn loops_of_types_end() {
    let mut b = BtfBuilder::new();
    b.typedef("a", 2);
    b.typedef("b", 1);
    b.array(3, 2); // an array of itself
    b.struct_("s", 8, &[("", 4, 0, 0)]); // contains itself
    b.struct_("t", 8, &[("", 6, 0, 0), ("", 6, 0, 0)]);
    b.struct_("u", 8, &[("", 5, 0, 0), ("", 5, 0, 0)]);
    b.struct_("v", 8, &[("x", 1, 0, 0), ("y", 3, 0, 0)]);
    let btf = Btf::parse(b.build()).unwrap();
    assert_eq!((btf.struct_("a"), btf.size_of(TypeId(1)), btf.size_of(TypeId(3))), (None, None, None));
    assert_eq!(btf.member(btf.struct_("s").unwrap(), "x"), None);
    assert_eq!(btf.member(btf.struct_("t").unwrap(), "x"), None, "2^16 ways through t and u");
    assert_eq!(btf.member(btf.struct_("v").unwrap(), "x.z"), None);
    assert_eq!(btf.member(btf.struct_("v").unwrap(), "y[1][1][1]"), None);
}

#[test]
fn damaged_blobs_are_named() {
    let whole = sample();
    assert!(Btf::parse(whole.clone()).is_ok());
    for len in 0..whole.len() {
        assert!(Btf::parse(&whole[..len]).is_err(), "cut at {len}");
    }
    let with = |at: usize, word: u32| {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        Btf::parse(bytes).unwrap_err()
    };
    assert!(matches!(with(0, 0), BtfError::Header(_)));
    assert!(matches!(with(4, 23), BtfError::Header(_)));
    assert!(matches!(with(4, u32::MAX), BtfError::Header(_)));
    assert!(matches!(with(12, u32::MAX), BtfError::Section { section: "type", .. }));
    assert!(matches!(with(20, u32::MAX), BtfError::Section { section: "string", .. }));
    assert!(matches!(with(20, 3), BtfError::Header(_)), "the last name has no end");
    assert!(matches!(with(24, u32::MAX), BtfError::Name { id: 1 }));
    assert!(matches!(with(28, 99 << 24), BtfError::Kind { id: 1, kind: 99 }));
    assert!(matches!(with(28, 0), BtfError::Kind { id: 1, kind: 0 }));
    assert!(matches!(with(28, 4 << 24 | 0xffff), BtfError::Truncated { id: 1 }));
}

#[test]
fn a_kind_from_the_future_is_skipped_by_its_description() {
    let mut b = BtfBuilder::new();
    b.raw(21, false, "future", 2, 0, &[1, 2, 3, 4, 5]);
    let after = b.struct_("after", 24, &[("x", 0, 64, 0)]);
    assert!(matches!(Btf::parse(b.build()), Err(BtfError::Kind { id: 1, kind: 21 })));
    b.describe(21, 4, 8);
    let btf = Btf::parse(b.build()).unwrap();
    assert_eq!(btf.kind(TypeId(1)), Some(Kind::Other));
    assert_eq!(btf.struct_("after"), Some(TypeId(after)));
    assert_eq!(btf.require_offset("after", "x"), Ok(8));
}

#[test]
fn the_largest_read_only_blob_of_an_image_is_taken() {
    let mut tiny = BtfBuilder::new();
    tiny.int("int", 4);
    let mut image = vec![0; 100];
    image.extend(tiny.build());
    image.extend([1, 2, 3]);
    let at = image.len();
    image.extend(sample());
    let end = image.len();
    image.extend([0; 50]);
    let found = Btf::find(&image, &|_, _| true).unwrap();
    assert_eq!(found.bytes(), &image[at..end]);
    let planted = Btf::find(&image, &|from, len| from + len <= at).unwrap();
    assert!(planted.struct_("task_struct").is_none(), "a blob in writable memory is not believed");
    assert!(planted.find_type("int", |k| k == Kind::Int).is_some());
    assert_eq!(Btf::find(&image, &|_, _| false).unwrap_err(), BtfError::Absent);
    image[at + 31] ^= 0x40; // the kind of its first type: the header is still sound
    assert!(Btf::find(&image, &|_, _| true).unwrap().struct_("task_struct").is_none());
}

/// Asks everything of a blob; whatever it holds, each answer must come.
fn exercise(bytes: &[u8]) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for id in btf.types().chain([TypeId(0), TypeId(u32::MAX)]) {
        let _ = (btf.name(id), btf.kind(id), btf.size_of(id), btf.array(id), btf.pointee(id));
        for (name, _) in btf.members(id).take(50) {
            let _ = (btf.member(id, name), btf.size_of_member(id, &format!("{name}[1].x")));
        }
        let _ = btf.struct_(btf.name(id));
        let _ = btf.enumerators(id).count();
    }
    let _ = (btf.enumerator("PG_locked"), btf.has("task_struct", "queues[1].prev"), btf.require_size("wide"));
}

#[test]
fn the_fuzz_corpus_is_replayed() {
    let mut future = BtfBuilder::new();
    future.raw(21, false, "future", 2, 0, &[1, 2, 3, 4, 5]);
    future.describe(21, 4, 8);
    let mut loops = BtfBuilder::new();
    loops.typedef("a", 2);
    loops.typedef("b", 1);
    loops.struct_("s", 8, &[("", 3, 0, 0), ("x", 1, 0, 0)]);
    let seeds = [("every-kind", sample()), ("future-kind", future.build()), ("loops", loops.build())]
        .map(|(name, bytes)| (name.to_owned(), bytes));
    for (name, bytes) in crate::corpus::replay("btf", &seeds) {
        exercise(&bytes);
        assert!(Btf::parse(bytes).is_ok() || !seeds.iter().any(|seed| seed.0 == name), "{name}");
    }
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&bytes);
    }

    #[test]
    fn random_records_never_panic(types in proptest::collection::vec(0_u32..40, 0..200), names in "[a-c.\\x00]{0,40}") {
        let mut b = BtfBuilder::new();
        for t in types.chunks_exact(4) {
            b.raw(u8::try_from(t[0] % 20).unwrap(), t[1] % 2 == 1, &names[..names.len().min(3)], t[2] % 4, t[3], &types[..(types.len().min(9))]);
        }
        exercise(&b.build());
    }
}
