//! Kernel images with a symbol table in any of the layouts, made by code, for tests.

use elision_memory::Gva;
use std::collections::HashMap;

/// Which kernel's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Offsets and base in front; until 6.1.
    Old,
    /// The same with a table of sequence numbers before the tokens; 6.2, and backports to 6.1.
    OldWithSeqs,
    /// Offsets and base behind; 6.4 to 6.14.
    New,
    /// The same with unsigned offsets; 6.15 to 6.19.
    Unsigned,
    /// Offsets behind, each from its own place; 7.0 on.
    PlaceRelative,
}

pub(crate) const LAYOUTS: [Layout; 5] =
    [Layout::Old, Layout::OldWithSeqs, Layout::New, Layout::Unsigned, Layout::PlaceRelative];

/// Type, name, address.
pub(crate) type NewSymbol = (char, String, Gva);

/// Bytes in front of the tables: stands for the kernel's text, which has more than 2 MiB.
pub(crate) const FRONT: usize = 0x24_0000;
/// Bytes behind the tables.
pub(crate) const BACK: usize = 0x1_0000;

/// A kernel image with the symbols, which must be sorted by address, between bytes like code.
pub(crate) fn image(layout: Layout, base: Gva, symbols: &[NewSymbol]) -> Vec<u8> {
    let mut front = vec![0; FRONT - BACK];
    front.extend(noise(BACK));
    let mut out = tables(layout, base, symbols, front);
    out.extend(noise(BACK));
    out
}

/// The tables behind `front`, which begins at `base`.
pub(crate) fn tables(layout: Layout, base: Gva, symbols: &[NewSymbol], front: Vec<u8>) -> Vec<u8> {
    let tokens = tokens();
    let mut out = front;
    let count = u32::try_from(symbols.len()).unwrap();
    let old = matches!(layout, Layout::Old | Layout::OldWithSeqs);
    let align = if matches!(layout, Layout::Old) { 8 } else { 4 };
    if old {
        pad(&mut out, 8);
        offsets(&mut out, layout, base, symbols);
        pad(&mut out, 8);
        out.extend(base.0.to_le_bytes());
    }
    out.extend(count.to_le_bytes());
    pad(&mut out, align);
    let markers = names(&mut out, &tokens, symbols);
    pad(&mut out, align);
    out.extend(markers.iter().flat_map(|m| m.to_le_bytes()));
    pad(&mut out, align);
    if layout == Layout::OldWithSeqs {
        seqs(&mut out, symbols.len());
        pad(&mut out, align);
    }
    let mut index: Vec<u8> = vec![];
    let table = out.len();
    for token in &tokens {
        index.extend(u16::try_from(out.len() - table).unwrap().to_le_bytes());
        out.extend(token.as_bytes());
        out.push(0);
    }
    pad(&mut out, align);
    out.extend(index);
    if !old {
        pad(&mut out, align);
        offsets(&mut out, layout, base, symbols);
        if layout != Layout::PlaceRelative {
            pad(&mut out, 8);
            out.extend(base.0.to_le_bytes());
        }
        seqs(&mut out, symbols.len());
    }
    out
}

/// `count` symbols that a kernel could have: per-CPU ones at zero where the layout has them, an
/// alias, two functions of one name, and one name too long for one byte of length.
pub(crate) fn symbols(layout: Layout, base: Gva, count: usize) -> Vec<NewSymbol> {
    let mut all: Vec<NewSymbol> = vec![];
    if !matches!(layout, Layout::Unsigned | Layout::PlaceRelative) {
        all.push(('A', "fixed_percpu_data".into(), Gva(0)));
        all.push(('A', "cpu_tss_rw".into(), Gva(0x1000)));
    }
    all.push(('T', "_text".into(), base));
    all.push(('T', "_stext".into(), base));
    for i in all.len()..count {
        let name = match i {
            100 | 200 => "same_name".into(),
            300 => "x".repeat(300),
            _ => format!("function_{i}.isra.0"),
        };
        all.push(('t', name, Gva(base.0 + 16 * u64::try_from(i).unwrap())));
    }
    all
}

/// One token for each printable character, and pairs of letters for the rest.
fn tokens() -> Vec<String> {
    let mut pairs = ('a'..='z').flat_map(|a| "etinoc_1".chars().map(move |b| format!("{a}{b}")));
    (0..=u8::MAX)
        .map(|b| if b.is_ascii_graphic() { char::from(b).to_string() } else { pairs.next().unwrap() })
        .collect()
}

fn names(out: &mut Vec<u8>, tokens: &[String], symbols: &[NewSymbol]) -> Vec<u32> {
    let known: HashMap<&[u8], u8> = tokens.iter().map(String::as_bytes).zip(0..=u8::MAX).collect();
    let start = out.len();
    let mut markers = vec![];
    for (i, (kind, name, _)) in symbols.iter().enumerate() {
        if i % 256 == 0 {
            markers.push(u32::try_from(out.len() - start).unwrap());
        }
        let name = format!("{kind}{name}");
        let mut rest = name.as_bytes();
        let mut coded = vec![];
        while !rest.is_empty() {
            let len = if rest.len() > 1 && known.contains_key(&rest[..2]) { 2 } else { 1 };
            coded.push(known[&rest[..len]]);
            rest = &rest[len..];
        }
        if coded.len() < 0x80 {
            out.push(u8::try_from(coded.len()).unwrap());
        } else {
            out.push(0x80 | u8::try_from(coded.len() % 0x80).unwrap());
            out.push(u8::try_from(coded.len() / 0x80).unwrap());
        }
        out.extend(coded);
    }
    markers
}

fn offsets(out: &mut Vec<u8>, layout: Layout, base: Gva, symbols: &[NewSymbol]) {
    for (_, _, address) in symbols {
        let from = match layout {
            Layout::PlaceRelative => base.0 + u64::try_from(out.len()).unwrap(),
            _ => base.0,
        };
        let distance = i64::try_from(i128::from(address.0) - i128::from(from)).unwrap_or(0);
        let word = match layout {
            Layout::Unsigned => u32::try_from(distance).unwrap().to_le_bytes(),
            Layout::PlaceRelative => i32::try_from(distance).unwrap().to_le_bytes(),
            _ if address.0 >= base.0 => i32::try_from(-1 - distance).unwrap().to_le_bytes(),
            _ => i32::try_from(address.0).unwrap().to_le_bytes(),
        };
        out.extend(word);
    }
}

fn seqs(out: &mut Vec<u8>, count: usize) {
    for i in 0..count {
        out.extend(&u32::try_from(count - 1 - i).unwrap().to_be_bytes()[1..]);
    }
}

fn pad(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

/// Bytes that look like code: the same each time.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
