//! The kernel's log (`kernel/printk/printk_ringbuffer.c`): who wrote each record, and where its text stands.
//!
//! ```text
//! descs[id % n]: state_var = state << 62 | id, text_blk_lpos {begin, next}     infos[id % n]: caller_id
//! data ring:     ... [id | text ....][id | text ..] ...      begin and next count on through all rounds
//!                a block that would cross the end begins anew at 0, and its id stands at both places
//! ```

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::ops::Range;

layout! {
    pub(crate) struct LogLayout {
        count_bits: offset("printk_ringbuffer", &["desc_ring.count_bits"]),
        descs: offset("printk_ringbuffer", &["desc_ring.descs"]),
        infos: offset("printk_ringbuffer", &["desc_ring.infos"]),
        size_bits: offset("printk_ringbuffer", &["text_data_ring.size_bits"]),
        data: offset("printk_ringbuffer", &["text_data_ring.data"]),
        head: offset("printk_ringbuffer", &["text_data_ring.head_lpos"]),
        tail: offset("printk_ringbuffer", &["text_data_ring.tail_lpos"]),
        desc_size: size("prb_desc"),
        state: offset("prb_desc", &["state_var"]),
        begin: offset("prb_desc", &["text_blk_lpos.begin"]),
        next: offset("prb_desc", &["text_blk_lpos.next"]),
        info_size: size("printk_info"),
        caller: offset("printk_info", &["caller_id"]),
    }
}

const WHAT: &str = "kernel log";
/// The size of a block's id, at its begin.
const ID: u64 = 8;
/// The state stands in the two highest bits; 3 is a descriptor whose data may be gone.
const STATE_SHIFT: u32 = 62;
const REUSABLE: u64 = 3;
/// `log_buf_len` is at most 2 GiB, with a descriptor for each 32 bytes.
const SIZE_BITS: std::ops::RangeInclusive<u32> = 8..=31;
const COUNT_BITS: std::ops::RangeInclusive<u32> = 3..=26;
/// Set in a caller's number that is a CPU: an interrupt wrote the record.
const IS_CPU: u32 = 1 << 31;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// The thread that wrote it, if it was one.
    pub tid: Option<u32>,
    /// Its text.
    pub text: Range<Gva>,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Every record that can be read, in no order.
    pub records: Vec<LogRecord>,
    /// What older records have left between the newest and the oldest.
    pub stale: Vec<Range<Gva>>,
}

/// The ring that holds text.
struct Ring {
    data: Gva,
    bits: u32,
}

impl Ring {
    fn size(&self) -> u64 {
        1 << self.bits
    }

    fn index(&self, position: u64) -> u64 {
        position & (self.size() - 1)
    }

    fn at(&self, position: u64) -> Gva {
        self.data.wrapping_add(self.index(position))
    }

    /// The place of a block without its id; `None` for a record without text.
    fn text(&self, begin: u64, next: u64) -> Option<Range<Gva>> {
        if begin & 1 == 1 || next.wrapping_sub(begin) > self.size() || begin == next {
            return None;
        }
        let same_round = begin >> self.bits == next.wrapping_sub(1) >> self.bits;
        let (start, end) = if same_round {
            let start = self.index(begin);
            (start, start + (next - begin))
        } else {
            (0, self.index(next))
        };
        (end > start + ID).then(|| self.data.wrapping_add(start + ID)..self.data.wrapping_add(end))
    }
}

impl Kernel<'_> {
    /// The log of the guest's kernel.
    pub fn log(&self) -> Result<Log, KernelError> {
        let layout = &self.profile.log;
        let Some(pointer) = self.symbol("prb") else { return Ok(Log::default()) };
        let prb = self.pointer(pointer, WHAT)?;
        let torn = |why| KernelError::Torn { what: WHAT, at: prb, why };
        let word = |offset: u64| self.u64(prb.wrapping_add(offset), WHAT);
        let count_bits = self.u32(prb.wrapping_add(layout.count_bits), WHAT)?;
        let bits = self.u32(prb.wrapping_add(layout.size_bits), WHAT)?;
        if !SIZE_BITS.contains(&bits) || !COUNT_BITS.contains(&count_bits) {
            return Err(torn("it is larger than it can be"));
        }
        let frames = self.ram().layout().frame_limit().0;
        if 1_u64 << count_bits > frames.saturating_mul(64) {
            return Err(torn("there are more records than the guest has room for"));
        }
        let ring = Ring { data: Gva(word(layout.data)?), bits };
        let (descs, infos) = (Gva(word(layout.descs)?), Gva(word(layout.infos)?));
        let mut records = Vec::new();
        for i in 0..1_u64 << count_bits {
            let desc = descs.wrapping_add(i * layout.desc_size);
            let state = self.u64(desc.wrapping_add(layout.state), WHAT)?;
            if state >> STATE_SHIFT == REUSABLE {
                continue;
            }
            let begin = self.u64(desc.wrapping_add(layout.begin), WHAT)?;
            let next = self.u64(desc.wrapping_add(layout.next), WHAT)?;
            let Some(text) = ring.text(begin, next) else { continue };
            // A block is its record's as long as it says so.
            let id = self.u64(Gva(text.start.0.wrapping_sub(ID)), WHAT)?;
            if id != state & !(REUSABLE << STATE_SHIFT) {
                continue;
            }
            let caller = self.u32(infos.wrapping_add(i * layout.info_size + layout.caller), WHAT)?;
            records.push(LogRecord { tid: (caller & IS_CPU == 0).then_some(caller), text });
        }
        let (head, tail) = (word(layout.head)?, word(layout.tail)?);
        if head.wrapping_sub(tail) > ring.size() {
            return Err(torn("its newest record is behind its oldest"));
        }
        // Head and tail stand on the begin of a block; what is not between them is nobody's.
        let free = ring.size() - head.wrapping_sub(tail);
        let to_end = free.min(ring.size() - ring.index(head));
        let parts = [(head, to_end), (head.wrapping_add(to_end), free - to_end)];
        let stale = parts.into_iter().filter(|(_, len)| *len > 0);
        let stale = stale.map(|(position, len)| ring.at(position)..ring.at(position).wrapping_add(len));
        Ok(Log { records, stale: stale.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_where_the_ring_says() {
        let ring = Ring { data: Gva(0x1000), bits: 8 };
        let at = |range: Range<u64>| Some(Gva(0x1000 + range.start)..Gva(0x1000 + range.end));
        assert_eq!(ring.text(0x310, 0x340), at(0x18..0x40));
        assert_eq!(ring.text(0x3f0, 0x420), at(8..0x20), "one that would cross the end begins at 0");
        assert_eq!(ring.text(0x3e0, 0x400), at(0xe8..0x100), "one that ends at the end");
        assert_eq!(ring.text(1, 3), None, "without text");
        assert_eq!(ring.text(0x300, 0x600), None, "longer than the ring");
        assert_eq!(ring.text(0x300, 0x308), None, "nothing behind the id");
    }
}
