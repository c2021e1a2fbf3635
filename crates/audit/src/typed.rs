//! The codes that a keyboard sends when a text is typed, key after key, on a US keyboard.
//!
//! ```text
//! "aB"       a down, a up      shift down, b down, b up, shift up
//! set 1      1e 9e             2a 30 b0 aa
//! set 2      1c f0 1c          12 32 f0 32 f0 12
//! ```
//! Not known: shift held over several characters, keys held so that they repeat, and other keyboards.

/// Which codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    One,
    Two,
}

/// Keys in a row: characters without and with shift, code of set 1 of the first, codes of set 2.
type Row = (&'static [u8], &'static [u8], u8, &'static [u8]);

const ROWS: [Row; 5] = [
    (
        b"1234567890-=",
        b"!@#$%^&*()_+",
        0x02,
        &[0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55],
    ),
    (
        b"qwertyuiop[]",
        b"QWERTYUIOP{}",
        0x10,
        &[0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b],
    ),
    (
        b"asdfghjkl;'`",
        b"ASDFGHJKL:\"~",
        0x1e,
        &[0x1c, 0x1b, 0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e],
    ),
    (
        b"\\zxcvbnm,./",
        b"|ZXCVBNM<>?",
        0x2b,
        &[0x5d, 0x1a, 0x22, 0x21, 0x2a, 0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a],
    ),
    (b" ", b"", 0x39, &[0x29]),
];

/// The codes of a text, or nothing if a character is on no key.
pub(crate) fn codes(text: &[u8], set: Set) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for &character in text {
        let (one, two, shift) = key(character)?;
        match (set, shift) {
            (Set::One, false) => out.extend([one, one | 0x80]),
            (Set::One, true) => out.extend([0x2a, one, one | 0x80, 0xaa]),
            (Set::Two, false) => out.extend([two, 0xf0, two]),
            (Set::Two, true) => out.extend([0x12, two, 0xf0, two, 0xf0, 0x12]),
        }
    }
    Some(out)
}

/// Its codes in both sets, and whether shift is held.
fn key(character: u8) -> Option<(u8, u8, bool)> {
    ROWS.iter().find_map(|(plain, shifted, first, second)| {
        let at = |row: &[u8]| row.iter().position(|c| *c == character);
        let (index, shift) = at(plain).map(|i| (i, false)).or_else(|| at(shifted).map(|i| (i, true)))?;
        Some((first.checked_add(u8::try_from(index).ok()?)?, *second.get(index)?, shift))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawing_is_true() {
        assert_eq!(codes(b"aB", Set::One).unwrap(), [0x1e, 0x9e, 0x2a, 0x30, 0xb0, 0xaa]);
        assert_eq!(codes(b"aB", Set::Two).unwrap(), [0x1c, 0xf0, 0x1c, 0x12, 0x32, 0xf0, 0x32, 0xf0, 0x12]);
        assert_eq!(codes(b"\xc3\xa4", Set::One), None);
    }

    #[test]
    fn every_printable_character_has_codes_of_its_own() {
        for set in [Set::One, Set::Two] {
            let all: std::collections::BTreeSet<_> =
                (b' '..=b'~').map(|c| codes(&[c], set).unwrap()).collect();
            assert_eq!(all.len(), 95);
        }
    }
}
