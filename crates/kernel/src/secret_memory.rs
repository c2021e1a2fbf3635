//! Secret memory (`mm/secretmem.c`): files in memory that the kernel itself does not map.
//!
//! ```text
//! file: f_mapping -> address_space: a_ops = secretmem_aops, and pages as in any other page cache
//! ```

use crate::{Kernel, KernelError};
use elision_memory::Gva;

impl Kernel<'_> {
    /// Whether a page cache (`address_space`) is of secret memory: its pages have no copy on any disk.
    pub fn is_secret_memory(&self, mapping: Gva) -> Result<bool, KernelError> {
        let Some(known) = self.symbol("secretmem_aops") else { return Ok(false) };
        let operations = mapping.wrapping_add(self.profile.page_cache.operations);
        Ok(self.pointer(operations, "page cache")? == known)
    }

    /// The page cache of an open file, by its `struct file`, if it is of secret memory.
    pub fn secret_memory(&self, file: Gva) -> Result<Option<Gva>, KernelError> {
        let mapping = self.pointer(file.wrapping_add(self.profile.path.file_mapping), "open file")?;
        let is_secret = mapping.0 != 0 && self.is_secret_memory(mapping)?;
        Ok(is_secret.then_some(mapping))
    }
}
