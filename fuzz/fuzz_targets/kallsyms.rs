//! Any bytes as a kernel image: its symbol table is found or refused, in bounded time.
//!
//! The bytes stand behind 2 MiB of zeros, where a kernel's text would be.
#![no_main]

use elision_kernel::kallsyms::Kallsyms;
use elision_memory::Gva;
use libfuzzer_sys::fuzz_target;

const TEXT: usize = 2 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut image = vec![0; TEXT];
    image.extend_from_slice(bytes);
    let Ok(found) = Kallsyms::find(&image, Gva(0xffff_ffff_8100_0000), &|_, _| true) else { return };
    assert_eq!(found.symbols().count(), found.len());
    for symbol in found.symbols().take(500) {
        assert!(found.address(symbol.name).is_some());
        assert!(found.at(symbol.address).is_some_and(|s| s.address == symbol.address));
    }
});
