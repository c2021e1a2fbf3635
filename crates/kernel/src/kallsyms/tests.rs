//! Every layout, damaged tables, and tables that a user of the guest planted.

use super::build::{BACK, FRONT, LAYOUTS, Layout, image, noise, symbols, tables};
use super::*;
use crate::corpus;
use proptest::prelude::*;

const BASE: Gva = Gva(0xffff_ffff_8b40_0000);
const COUNT: usize = 2500;

fn find(bytes: &[u8]) -> Result<Kallsyms, KallsymsError> {
    Kallsyms::find(bytes, BASE, &|_, _| true)
}

#[test]
fn every_layout_decodes_to_the_symbols_it_was_made_of() {
    for layout in LAYOUTS {
        // Counts around the borders of a block, and each remainder that padding depends on.
        for count in [769, 1024, 1025, 2303, 2304, 2305, COUNT, COUNT + 1, COUNT + 2, COUNT + 3] {
            let made = symbols(layout, BASE, count);
            let found =
                find(&image(layout, BASE, &made)).unwrap_or_else(|e| panic!("{layout:?} {count}: {e}"));
            assert_eq!(found.len(), count);
            for (symbol, (kind, name, address)) in found.symbols().zip(&made) {
                assert_eq!((symbol.kind, symbol.name, symbol.address), (*kind, name.as_str(), *address));
            }
            let encoding = match layout {
                Layout::Unsigned => Encoding::BaseRelative,
                Layout::PlaceRelative => Encoding::PlaceRelative,
                _ => Encoding::AbsolutePercpu,
            };
            assert_eq!(found.encoding(), encoding, "{layout:?}");
        }
    }
}

#[test]
fn symbols_are_found_by_name_and_by_address() {
    let found = find(&image(Layout::New, BASE, &symbols(Layout::New, BASE, COUNT))).unwrap();
    assert_eq!(found.address("_text"), Some(BASE));
    assert_eq!(found.address("cpu_tss_rw"), Some(Gva(0x1000)));
    assert_eq!(found.address("function_7"), None, "the whole name counts");
    assert_eq!(found.require("gone"), Err(KallsymsError::NoSymbol { name: "gone".into() }));
    let same: Vec<_> = found.all("same_name").map(|s| s.address.0 - BASE.0).collect();
    assert_eq!(same, [1600, 3200]);
    assert_eq!(found.address("same_name"), Some(Gva(BASE.0 + 1600)));
    assert_eq!(found.address(&"x".repeat(300)), Some(Gva(BASE.0 + 4800)));
    let at = |address| found.at(Gva(address)).map(|s| s.name);
    assert_eq!(at(BASE.0), Some("_text"), "the first of two at one address");
    assert_eq!(at(BASE.0 + 1605), Some("same_name"));
    assert_eq!(at(0xfff), Some("fixed_percpu_data"));
    assert_eq!(at(u64::MAX), Some("function_2499.isra.0"));
}

#[test]
fn a_table_out_of_order_is_still_searched_by_address() {
    let mut made = symbols(Layout::PlaceRelative, BASE, COUNT);
    made.swap(500, 501);
    let found = find(&image(Layout::PlaceRelative, BASE, &made)).unwrap();
    assert_eq!(found.at(Gva(BASE.0 + 16 * 500)).unwrap().name, "function_500.isra.0");
    assert_eq!(found.at(Gva(BASE.0 + 16 * 502 - 1)).unwrap().name, "function_501.isra.0");
}

#[test]
fn tables_in_writable_memory_are_not_believed() {
    for layout in LAYOUTS {
        let bytes = image(layout, BASE, &symbols(layout, BASE, COUNT));
        let tables = FRONT..bytes.len() - BACK;
        let whole = |at: usize, len: usize| tables.start <= at && at + len <= tables.end;
        assert!(Kallsyms::find(&bytes, BASE, &whole).is_ok(), "{layout:?}");
        let none = Kallsyms::find(&bytes, BASE, &|_, _| false).unwrap_err();
        assert_eq!(none, KallsymsError::Absent);
        // Any page of the tables that is writable spoils them, but for the unused sequence numbers.
        let read_until = match layout {
            Layout::Old | Layout::OldWithSeqs => tables.end,
            _ => tables.end - 3 * COUNT,
        };
        for page in (tables.start..read_until).step_by(4096) {
            let hole = |at: usize, len: usize| at + len <= page || at >= page + 4096;
            let inside_seqs = layout == Layout::OldWithSeqs && {
                let tokens = find_tokens(&bytes);
                page + 4096 < tokens && page > tokens - 3 * COUNT
            };
            let found = Kallsyms::find(&bytes, BASE, &hole);
            assert_eq!(found.is_ok(), inside_seqs, "{layout:?} with page {page:#x} writable");
        }
    }
}

fn find_tokens(bytes: &[u8]) -> usize {
    let image = Image { bytes, base: BASE, read_only: &|_, _| true };
    tokens::find(&image).next().unwrap().table
}

#[test]
fn a_planted_table_does_not_hide_the_real_one() {
    let real = image(Layout::New, BASE, &symbols(Layout::New, BASE, COUNT));
    let mut planted_symbols = symbols(Layout::New, BASE, COUNT);
    planted_symbols[3].1 = "planted".into();
    let mut bytes = image(Layout::New, BASE, &planted_symbols);
    let border = bytes.len();
    bytes.extend(real);
    assert!(find(&bytes).unwrap().address("planted").is_some(), "it would be believed, being first");
    let found = Kallsyms::find(&bytes, BASE, &|at, _| at >= border).unwrap();
    assert!(found.address("planted").is_none() && found.address("_stext").is_some());
}

#[test]
fn images_without_a_whole_table_are_named() {
    assert_eq!(find(&[]).unwrap_err(), KallsymsError::Absent);
    assert_eq!(find(&noise(1 << 20)).unwrap_err(), KallsymsError::Absent);
    for layout in LAYOUTS {
        let made = symbols(layout, BASE, COUNT);
        let whole = image(layout, BASE, &made);
        let tokens = find_tokens(&whole);
        let needed = match layout {
            Layout::Old | Layout::OldWithSeqs => tokens + 512,
            _ => whole.len() - BACK - 3 * COUNT - 8,
        };
        for len in (FRONT..needed).step_by(977) {
            assert!(find(&whole[..len]).is_err(), "{layout:?} cut at {len:#x}");
        }
        // The image is not where the addresses say it is.
        let moved = Kallsyms::find(&whole, Gva(BASE.0 + (64 << 20)), &|_, _| true);
        match layout {
            Layout::PlaceRelative => assert!(moved.is_ok(), "relative to itself, so it moves along"),
            _ => assert!(matches!(moved.unwrap_err(), KallsymsError::Addresses { count: 2500, .. })),
        }
        // No marker fits any more.
        let mut torn = whole.clone();
        let names_end = tokens - if layout == Layout::OldWithSeqs { 3 * COUNT + 8 } else { 8 };
        torn[names_end - 16..names_end].fill(0xff);
        assert!(matches!(find(&torn).unwrap_err(), KallsymsError::Names { .. }), "{layout:?}");
    }
}

#[test]
fn a_table_without_the_beginning_of_the_kernel_is_refused() {
    let mut made = symbols(Layout::New, BASE, COUNT);
    assert!(find(&image(Layout::New, BASE, &made)).is_ok());
    for symbol in &mut made {
        symbol.1 = symbol.1.replace("_text", "_texd").replace("_stext", "_stexd");
    }
    assert!(matches!(find(&image(Layout::New, BASE, &made)), Err(KallsymsError::Addresses { .. })));
}

/// Base of the image in the fuzz target, and bytes in front of the fuzzer's.
const FUZZED: (Gva, usize) = (Gva(0xffff_ffff_8100_0000), 2 << 20);

#[test]
fn the_fuzz_corpus_is_replayed() {
    let (base, front) = FUZZED;
    let seeds = LAYOUTS.map(|layout| {
        let mut made: Vec<_> = symbols(layout, base, 771).into_iter().filter(|s| s.1.len() < 200).collect();
        for (i, symbol) in made.iter_mut().enumerate().skip(5) {
            symbol.1 = format!("f{i}");
        }
        (format!("{layout:?}"), tables(layout, base, &made, vec![0; front]).split_off(front))
    });
    let mut found = 0;
    for (name, bytes) in corpus::replay("kallsyms", &seeds) {
        let mut image = vec![0; front];
        image.extend(bytes);
        let symbols = Kallsyms::find(&image, base, &|_, _| true);
        found += usize::from(symbols.is_ok());
        assert!(symbols.is_ok() || !seeds.iter().any(|seed| seed.0 == name), "{name}: {symbols:?}");
    }
    assert!(found >= seeds.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_never_panics(
        which in 0..LAYOUTS.len(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let layout = LAYOUTS[which];
        let mut bytes = image(layout, BASE, &symbols(layout, BASE, 2100));
        for (at, value) in flips {
            let len = bytes.len() - FRONT - BACK;
            bytes[FRONT + at.index(len)] = value;
        }
        if let Ok(found) = find(&bytes) {
            prop_assert_eq!(found.symbols().count(), found.len());
            let _ = (found.address("_text"), found.at(BASE), found.all("same_name").count());
        }
    }

    #[test]
    fn random_bytes_hold_no_table(bytes in proptest::collection::vec(any::<u8>(), 0..5000), words: bool) {
        // Small steps, so that runs look like an index.
        let mut bytes = bytes;
        if words {
            let mut sum = 0_u16;
            for pair in bytes.chunks_exact_mut(2) {
                sum = sum.wrapping_add(u16::from(pair[0] % 5));
                pair.copy_from_slice(&sum.to_le_bytes());
            }
        }
        prop_assert_eq!(find(&bytes).unwrap_err(), KallsymsError::Absent);
    }
}
