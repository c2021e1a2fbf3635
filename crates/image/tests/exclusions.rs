//! The exclusion map: round trips, truncation, damage, hostile sizes.

use elision_image::{EditKind, EditMeta, Exclusions, ExclusionsError};
use elision_memory::{Gfn, Gpa, PAGE_SIZE};
use elision_plan::{DropReason, DropRun, EditReason};
use proptest::collection::vec;
use proptest::prelude::*;

fn encoded(map: &Exclusions) -> Vec<u8> {
    let mut bytes = vec![];
    map.encode(&mut bytes).unwrap();
    bytes
}

/// A file with this body, and counts as they are given.
fn file(drops: u64, edits: u64, len: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"ELISIONX\x01\0\0\0\0\0\0\0".to_vec();
    for n in [drops, edits, len] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.extend(zstd::encode_all(body, 3).unwrap());
    bytes
}

fn map() -> impl Strategy<Value = Exclusions> {
    let drop_reason = prop_oneof![
        Just(DropReason::Free),
        Just(DropReason::FreePerCpu),
        Just(DropReason::FreeHuge),
        Just(DropReason::DeadInBatch),
        Just(DropReason::Anonymous),
        Just(DropReason::SharedMemory),
        Just(DropReason::HugeTlb),
        Just(DropReason::Orphan),
        Just(DropReason::Region),
        Just(DropReason::PageCache),
    ];
    let edit_reason = prop_oneof![
        Just(EditReason::DeadStack),
        Just(EditReason::UserRegisters),
        Just(EditReason::FpuState),
        Just(EditReason::PendingKill),
        Just(EditReason::WakeUp),
    ];
    let drops = vec((0_u64..1 << 20, 1_u64..1 << 20, drop_reason, any::<Option<u32>>()), 0..200);
    let edits = vec((0_u64..1 << 30, 0..=4096_u32, any::<bool>(), edit_reason, any::<Option<u32>>()), 0..200);
    (drops, edits).prop_map(|(drops, edits)| {
        let mut end = 0;
        let drops = drops.into_iter().map(|(gap, count, reason, owner)| {
            let first = Gfn(end + gap);
            end = first.0 + count;
            DropRun { first, count, reason, owner }
        });
        let drops = drops.collect();
        let mut before = 0;
        let edits = edits.into_iter().map(|(distance, len, write, reason, owner)| {
            let gpa = Gpa(before + distance);
            before = gpa.0;
            let room = u32::try_from(PAGE_SIZE - gpa.page_offset()).unwrap();
            let kind = if write { EditKind::Write } else { EditKind::Zero };
            EditMeta { gpa, len: len.min(room), kind, reason, owner }
        });
        Exclusions { drops, edits: edits.collect() }
    })
}

proptest! {
    #[test]
    fn maps_survive_the_round_trip(map in map()) {
        prop_assert_eq!(Exclusions::decode(encoded(&map).as_slice()).unwrap(), map);
    }

    #[test]
    fn no_prefix_is_a_map(map in map(), at in any::<prop::sample::Index>()) {
        let bytes = encoded(&map);
        let cut = at.index(bytes.len());
        prop_assert!(Exclusions::decode(&bytes[..cut]).is_err(), "{} of {} bytes", cut, bytes.len());
    }

    #[test]
    fn damage_is_an_error_or_another_valid_map(map in map(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = encoded(&map);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        if let Ok(map) = Exclusions::decode(bytes.as_slice()) {
            prop_assert_eq!(Exclusions::decode(encoded(&map).as_slice()).unwrap(), map);
        }
    }

    #[test]
    fn any_body_ends(body in vec(any::<u8>(), 0..300), drops in 0_u64..40, edits in 0_u64..40) {
        let _ = Exclusions::decode(file(drops, edits, body.len() as u64, &body).as_slice());
    }
}

#[test]
fn headers_are_checked() {
    let decode = |bytes: &[u8]| Exclusions::decode(bytes).unwrap_err();
    assert!(Exclusions::decode(file(0, 0, 0, &[]).as_slice()).is_ok(), "control");
    let mut bytes = file(0, 0, 0, &[]);
    bytes[0] = b'X';
    assert!(matches!(decode(&bytes), ExclusionsError::Magic));
    let mut bytes = file(0, 0, 0, &[]);
    bytes[8] = 2;
    assert!(matches!(decode(&bytes), ExclusionsError::Version(2)));
    for (drops, edits, body) in [(u64::MAX, 0, 0), (0, u64::MAX, 0), (1, 0, u64::MAX), (0, 0, 1)] {
        assert!(matches!(decode(&file(drops, edits, body, &[])), ExclusionsError::Counts { .. }));
    }
}

#[test]
fn rows_are_checked() {
    let big = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let with = |before: &[u8], after: &[u8]| [before, &big, after].concat();
    let table: &[(u64, u64, Vec<u8>, &str)] = &[
        (1, 0, vec![5, 0, 1, 0], "no frames"),
        (1, 0, vec![5, 1, 0, 0], "unknown reason"),
        (1, 0, vec![5, 1, 200, 0], "unknown reason"),
        (1, 0, with(&[], &[1, 1, 0]), "beyond the end"),
        (1, 0, with(&[5], &[1, 0]), "beyond the end"),
        (1, 0, with(&[5, 1, 5], &[]), "more than 32 bits"),
        (1, 0, vec![0xff; 11], "more than 64 bits"),
        (0, 1, vec![5, 1, 2, 1, 0], "unknown kind"),
        (0, 1, vec![5, 1, 0, 200, 0], "unknown reason"),
        (0, 1, with(&[5], &[0, 1, 0]), "beyond the end of their frame"),
        (0, 1, vec![0x81, 0x1f, 0x80, 0x20, 0, 1, 0], "beyond the end of their frame"),
        (0, 1, with(&[], &[1, 0, 1, 0]), "beyond the end of guest-physical"),
        (1, 0, vec![5, 1, 1, 0, 0], "goes on after"),
    ];
    for (drops, edits, body, part) in table {
        let error = Exclusions::decode(file(*drops, *edits, body.len() as u64, body).as_slice()).unwrap_err();
        assert!(error.to_string().contains(part), "{body:?}: {error}");
    }
    // The body goes on where the header says that it ends.
    let body = [5, 1, 1, 0, 5];
    let error = Exclusions::decode(file(1, 0, 4, &body).as_slice()).unwrap_err();
    assert!(matches!(error, ExclusionsError::Trailing));
    assert!(Exclusions::decode(file(1, 0, 4, &body[..4]).as_slice()).is_ok(), "control");
}

#[test]
fn a_bomb_costs_nothing() {
    // 2^26 rows are announced, and a gigabyte of zeros follows: the first row is already wrong.
    let mut packed = zstd::Encoder::new(vec![], 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 1 << 30), &mut packed).unwrap();
    let mut bytes = file(1 << 26, 0, 1 << 31, &[]);
    bytes.truncate(40);
    bytes.extend(packed.finish().unwrap());
    let started = std::time::Instant::now();
    assert!(matches!(Exclusions::decode(bytes.as_slice()), Err(ExclusionsError::Row { row: 0, .. })));
    assert!(started.elapsed().as_secs() < 1);
}
