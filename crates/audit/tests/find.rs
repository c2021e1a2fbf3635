//! Every encoding is found where it is, as often as it is, and not where it is not.

use elision_audit::{AuditError, Encoding, Needles, Place, Report, Secrets};
use elision_memory::{FileOffset, Gpa, PAGE_SIZE, Ram, RamLayout, RamRegion};
use proptest::prelude::*;
use std::os::unix::fs::FileExt;

const SECRET: &[u8] = b"correct horse Battery";
const PAGE: u64 = PAGE_SIZE as u64;

fn needles(secrets: &[&[u8]]) -> Needles {
    Needles::new(&Secrets::from_bytes(secrets.iter().copied()).unwrap()).unwrap()
}

/// The secret as this encoding writes it, by other means than the crate's.
fn written(encoding: Encoding, secret: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(secret.to_vec()).unwrap();
    let hex: Vec<String> = secret.iter().map(|b| format!("{b:02x}")).collect();
    match encoding {
        Encoding::Raw => secret.to_vec(),
        Encoding::Utf16Le => text.chars().flat_map(|c| [u8::try_from(c).unwrap(), 0]).collect(),
        Encoding::Utf16Be => text.chars().flat_map(|c| [0, u8::try_from(c).unwrap()]).collect(),
        Encoding::HexLower => hex.concat().into_bytes(),
        Encoding::HexUpper => hex.concat().to_uppercase().into_bytes(),
        Encoding::ReversedWords => words(0, secret),
        Encoding::Utf32Le => secret.iter().flat_map(|b| [*b, 0, 0, 0]).collect(),
        Encoding::TextCells => secret.iter().flat_map(|b| [*b, 7]).collect(),
        // "correct horse Battery", from a table of scan codes.
        Encoding::TypedSet1 => typed(
            [
                0x2e, 0x18, 0x13, 0x13, 0x12, 0x2e, 0x14, 0x39, 0x23, 0x18, 0x13, 0x1f, 0x12, 0x39, 0x30,
                0x1e, 0x14, 0x14, 0x12, 0x13, 0x15,
            ]
            .map(|code| vec![code, code | 0x80]),
            &[0x2a],
            &[0xaa],
        ),
        Encoding::TypedSet2 => typed(
            [
                0x21, 0x44, 0x2d, 0x2d, 0x24, 0x21, 0x2c, 0x29, 0x33, 0x44, 0x2d, 0x1b, 0x24, 0x29, 0x32,
                0x1c, 0x2c, 0x2c, 0x24, 0x2d, 0x35,
            ]
            .map(|code| vec![code, 0xf0, code]),
            &[0x12],
            &[0xf0, 0x12],
        ),
    }
}

/// Key after key; the capital letter is between the codes of the shift key.
fn typed(mut keys: [Vec<u8>; 21], down: &[u8], up: &[u8]) -> Vec<u8> {
    keys[14] = [down, &keys[14], up].concat();
    keys.concat()
}

/// Words as a stream writes registers, with the secret from byte `start` of the first word on.
fn words(start: usize, secret: &[u8]) -> Vec<u8> {
    let mut memory = vec![0xee; start];
    memory.extend(secret);
    memory.resize(memory.len().next_multiple_of(8), 0xee);
    memory.chunks(8).flat_map(|word| u64::from_le_bytes(word.try_into().unwrap()).to_be_bytes()).collect()
}

fn counts(report: &Report, secret: usize) -> Vec<(Encoding, u64)> {
    report.findings.iter().filter(|f| f.secret == secret).map(|f| (f.encoding, f.count)).collect()
}

#[test]
fn each_encoding_is_found_and_nothing_else() {
    let needles = needles(&[SECRET]);
    for encoding in Encoding::ALL {
        let mut bytes = vec![0x55; 3000];
        assert!(needles.search_bytes(&bytes, 9).is_clean(), "control: absent");
        let form = written(encoding, SECRET);
        bytes[1001..1001 + form.len()].copy_from_slice(&form);
        assert_eq!(counts(&needles.search_bytes(&bytes, 9), 0), [(encoding, 1)]);
        // With one byte changed it is absent, whichever byte that is.
        for at in 0..form.len() {
            if form[at] == 0xee {
                continue; // does not belong to the secret
            }
            bytes[1001 + at] ^= 0x80;
            assert!(needles.search_bytes(&bytes, 9).is_clean(), "{encoding}: byte {at}");
            bytes[1001 + at] ^= 0x80;
        }
    }
}

#[test]
fn reversed_words_are_found_from_every_byte_of_a_word() {
    for secret in [b"1234567".as_slice(), b"12345678", b"123456789", SECRET] {
        for start in 0..8 {
            let report = needles(&[secret]).search_bytes(&words(start, secret), 9);
            assert_eq!(counts(&report, 0), [(Encoding::ReversedWords, 1)], "{} from {start}", secret.len());
        }
    }
}

#[test]
fn overlapping_and_nested_secrets_are_all_counted() {
    let needles = needles(&[b"abab", b"xababab", b"bab\0", b"never"]);
    let report = needles.search_bytes(b"..xababab\0..", 9);
    // `baba` is `abab` in a reversed word.
    assert_eq!(counts(&report, 0), [(Encoding::Raw, 2), (Encoding::ReversedWords, 1)]);
    assert_eq!([1, 2, 3].map(|secret| report.count(secret)), [1, 1, 0]);
    assert_eq!(report.findings[0].places, [Place::State { offset: 3 }, Place::State { offset: 5 }]);
}

#[test]
fn many_secrets_are_found_too() {
    // More anchors than the vector search takes.
    let all: Vec<String> = (0..300).map(|i| format!("secret number {i:05}")).collect();
    let secrets: Vec<&[u8]> = all.iter().map(String::as_bytes).collect();
    let needles = needles(&secrets);
    let report = needles.search_bytes(all.join("\n").as_bytes(), 1);
    assert!((0..300).all(|i| report.count(i) == 1));
    assert!(needles.search_bytes(b"secret number 00300", 1).is_clean());
}

#[test]
fn places_are_limited_and_counts_are_not() {
    let report = needles(&[SECRET]).search_bytes(&SECRET.repeat(50), 3);
    assert_eq!((report.findings[0].count, report.findings[0].places.len()), (50, 3));
}

fn ram_file(writes: &[(u64, &[u8])], len: u64) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    for (offset, bytes) in writes {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

#[test]
fn memory_is_searched_across_pages_chunks_holes_and_regions() {
    let region = |gpa, len, offset| RamRegion { gpa: Gpa(gpa), len, offset: FileOffset(offset) };
    let mib = 1 << 20;
    // Guest-physical 0-2 MiB, 2-3 MiB from the file's end, and 16 MiB on, behind the first in the file.
    let layout = RamLayout::new(vec![
        region(0, 2 * mib, 0),
        region(2 * mib, mib, 4 * mib),
        region(16 * mib, mib, 2 * mib),
    ])
    .unwrap();
    let (head, tail) = SECRET.split_at(9);
    let near = |at: u64| at - head.len() as u64;
    let zeros = [b"end".as_slice(), &[0; 12], b"go"].concat();
    let writes: &[(u64, &[u8])] = &[
        (near(5 * PAGE), SECRET),
        (near(mib), SECRET),
        (near(2 * mib), head), // its other half is the next in guest-physical memory ...
        (4 * mib, tail),
        (2 * mib, tail),         // ... and another the next in the file
        (3 * mib + 77, SECRET),  // no region maps this
        (64 * PAGE - 3, b"end"), // what follows is a hole
        (65 * PAGE, b"go"),
    ];
    let ram = Ram::shared(&ram_file(writes, 5 * mib), layout).unwrap();
    let report = needles(&[SECRET, b"absent secret", &zeros]).search_ram(&ram, 9, &|_| ()).unwrap();
    assert_eq!(counts(&report, 0), [(Encoding::Raw, 5)]);
    let at = |gpa: u64| Place::Ram { gpa: Gpa(gpa) };
    assert_eq!(
        report.findings[0].places,
        [
            at(near(5 * PAGE)),
            at(near(mib)),
            at(near(2 * mib)),
            at(near(2 * mib)),
            Place::RamFile { offset: FileOffset(3 * mib + 77) },
        ]
    );
    assert_eq!((report.count(1), report.count(2)), (0, 0));
    assert_eq!(report.searched, 5 * mib);
}

#[test]
fn a_secret_that_runs_into_a_hole_is_found() {
    let layout = RamLayout::flat(1 << 20).unwrap();
    let secret = [b"end".as_slice(), &[0; 12]].concat();
    let other = [[0; 12].as_slice(), b"go"].concat();
    let ram =
        Ram::shared(&ram_file(&[(64 * PAGE - 3, b"end"), (128 * PAGE, b"go")], 1 << 20), layout).unwrap();
    let report = needles(&[&secret, &other]).search_ram(&ram, 9, &|_| ()).unwrap();
    assert_eq!((report.count(0), report.count(1)), (1, 1), "{report:?}");
}

#[test]
fn searching_a_vm_allocates_no_holes_of_its_memory() {
    let blocks = |file: &std::fs::File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return };
    file.set_len(64 << 20).unwrap();
    file.write_all_at(SECRET, 32 << 20).unwrap();
    let before = blocks(&file);
    let ram = Ram::shared(&file, RamLayout::flat(64 << 20).unwrap()).unwrap();
    assert_eq!(needles(&[SECRET]).search_ram(&ram, 9, &|_| ()).unwrap().count(0), 1);
    // At most the neighbours of what is there are touched.
    assert!(blocks(&file) <= before + 16, "{before} blocks became {}", blocks(&file));
}

#[test]
fn files_are_searched() {
    let file = ram_file(&[(3 << 20, SECRET), ((5 << 20) - 4, SECRET)], 6 << 20);
    let report = needles(&[SECRET]).search_file(&file, 9, &|_| ()).unwrap();
    assert_eq!(
        report.findings[0].places,
        [Place::State { offset: 3 << 20 }, Place::State { offset: (5 << 20) - 4 }]
    );
}

#[test]
fn secrets_are_read_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secrets");
    let lines = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Secrets::from_lines(&path)
    };
    let secrets = lines("first one\r\n\nsecond\n").unwrap();
    assert_eq!(secrets.len(), 2);
    assert!(!format!("{secrets:?}").contains("first"));
    let report = Needles::new(&secrets).unwrap().search_bytes(b"..first one..second..", 9);
    assert_eq!((report.count(0), report.count(1)), (1, 1));
    let shown = serde_json::to_string(&report).unwrap() + &format!("{report:?}");
    assert!(shown.contains("\"raw\"") && !shown.contains("second"), "{shown}");

    assert!(matches!(lines(""), Err(AuditError::Empty(_))));
    assert!(matches!(lines("\n\r\n"), Err(AuditError::Empty(_))));
    assert!(matches!(lines("long enough\nabc\n"), Err(AuditError::Short { line: 2, .. })));
    assert!(matches!(lines("\0\0\0\0\0"), Err(AuditError::Zeros { line: 1, .. })));
    assert!(matches!(lines(&"x".repeat(70_000)), Err(AuditError::Long { line: 1, .. })));
    assert!(matches!(lines(&"abcd\n".repeat(4097)), Err(AuditError::Many(_))));
    std::fs::write(&path, "two\nlines\n").unwrap();
    let whole = Needles::new(&Secrets::from_whole_file(&path).unwrap()).unwrap();
    assert_eq!(whole.search_bytes(b"two\nlines\n", 9).count(0), 1);
    assert!(whole.search_bytes(b"two\nlines", 9).is_clean());
    let error = Secrets::from_lines(&dir.path().join("none")).unwrap_err();
    assert!(matches!(error, AuditError::Read { .. }));
}

proptest! {
    #[test]
    fn counts_are_those_of_a_plain_search(
        secrets in proptest::collection::vec(proptest::collection::vec(0_u8..3, 4..9), 1..6),
        bytes in proptest::collection::vec(0_u8..3, 0..400),
    ) {
        let secrets: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).filter(|s| s.iter().any(|b| *b != 0)).collect();
        prop_assume!(!secrets.is_empty());
        let report = needles(&secrets).search_bytes(&bytes, 1);
        for (i, secret) in secrets.iter().enumerate() {
            let plain = bytes.windows(secret.len()).filter(|w| w == secret).count() as u64;
            let raw = report.findings.iter().find(|f| f.secret == i && f.encoding == Encoding::Raw);
            prop_assert_eq!(raw.map_or(0, |f| f.count), plain);
        }
    }
}
