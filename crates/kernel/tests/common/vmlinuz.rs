//! The kernel inside a bootable x86-64 image: an ELF file, packed.
//!
//! ```text
//! 0x1f1 u8   sectors of setup code, without the boot sector
//! 0x202 "HdrS" at 0x202
//! 0x248 u32  where the packed kernel begins, after the setup code
//! 0x24c u32  its length; the last 4 bytes are the unpacked length
//! ```
//! Debian packs with zstd, and 6.1 with the old framing of lz4: a magic, then blocks of 8 MiB,
//! each after its packed length.

use std::io::Read;

const LZ4_BLOCK: usize = 8 << 20;

/// The kernel's ELF file.
pub(crate) fn unpack(image: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(&image[0x202..0x206], b"HdrS", "not a bootable kernel");
    let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248);
    let packed = &image[start..start + word(0x24c)];
    let unpacked = match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd(packed),
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => lz4(rest),
        _ => panic!("packed in a way this test does not know: {:x?}", &packed[..8]),
    };
    assert_eq!(&unpacked[..4], b"\x7fELF");
    unpacked
}

fn zstd(packed: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    // One frame: the length behind it is not part of it.
    zstd::stream::Decoder::new(packed).unwrap().single_frame().read_to_end(&mut out).unwrap();
    out
}

fn lz4(mut packed: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    while packed.len() > 4 {
        let len = u32::from_le_bytes(packed[..4].try_into().unwrap()) as usize;
        let (block, rest) = packed[4..].split_at(len);
        out.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).unwrap());
        packed = rest;
    }
    out
}

/// The loadable segments in one piece, as they stand in memory before relocation.
pub(crate) fn load(elf: &[u8]) -> Vec<u8> {
    let word = |at: usize| usize::try_from(u64::from_le_bytes(elf[at..at + 8].try_into().unwrap())).unwrap();
    let headers = word(32);
    let count = usize::from(u16::from_le_bytes([elf[56], elf[57]]));
    let mut memory: Vec<u8> = vec![];
    let mut base = None;
    for header in (0..count).map(|i| headers + 56 * i) {
        const LOAD: u32 = 1;
        if elf[header..header + 4] == LOAD.to_le_bytes() {
            let (offset, physical, len) = (word(header + 8), word(header + 24), word(header + 32));
            let at = physical - *base.get_or_insert(physical);
            memory.resize(memory.len().max(at + len), 0);
            memory[at..at + len].copy_from_slice(&elf[offset..offset + len]);
        }
    }
    memory
}
