//! Blocks of memory that the guest's kernel may be clearing for their next owner when it is stopped: until then they hold
//! what the last one left.

use crate::PlanError;
use elision_kernel::Kernel;
use elision_memory::Gfn;
use std::collections::BTreeMap;

/// A block that was there at this many moments before is one that the kernel has for itself. Of one moment that is not
/// known: the block may have been freed since, and allocated again.
const MOMENTS: u32 = 2;

/// At how many moments each block was there that looks like one that is being cleared.
#[derive(Clone, Debug, Default)]
pub struct SeenBlocks(BTreeMap<Gfn, u32>);

impl SeenBlocks {
    /// Looks at a VM that runs on, as often as it takes for blocks that stay to be known.
    #[must_use]
    pub fn of(kernel: &Kernel<'_>) -> Self {
        let mut seen = Self::default();
        for _ in 0..MOMENTS {
            kernel.ram().refresh();
            kernel.fresh_blocks_now().into_iter().for_each(|block| seen.see(block));
        }
        seen
    }

    /// Whether all blocks of a plan ([`crate::Outcome::fresh`]) are known; if not, they are known better afterwards.
    pub fn settle(&mut self, blocks: &[Gfn]) -> Result<(), PlanError> {
        let count = |block: &&Gfn| self.0.get(block).copied().unwrap_or(0);
        let unknown = blocks.iter().filter(|block| count(block) < MOMENTS).count();
        blocks.iter().for_each(|block| self.see(*block));
        if unknown == 0 { Ok(()) } else { Err(PlanError::Clearing { blocks: unknown }) }
    }

    fn see(&mut self, block: Gfn) {
        *self.0.entry(block).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_known_when_it_was_seen_twice() {
        let mut seen = SeenBlocks::default();
        let blocks = [Gfn(512), Gfn(1024)];
        seen.see(blocks[0]);
        seen.see(blocks[0]);
        assert!(seen.settle(&[]).is_ok() && seen.settle(&blocks[..1]).is_ok());
        for unknown in [&blocks[..], &blocks[1..]] {
            assert!(matches!(seen.settle(unknown), Err(PlanError::Clearing { blocks: 1 })));
        }
        assert!(seen.settle(&blocks).is_ok());
    }
}
