//! BPF maps (`kernel/bpf/arraymap.c`, `hashtab.c`, `queue_stack_maps.c`): tables that processes and programs share.
//!
//! ```text
//! file: private_data -> bpf_map: map_type, key_size, value_size, max_entries, refcnt
//! bpf_array:       value[max_entries] of elem_size | pptrs[max_entries] -> a value for each CPU
//! bpf_queue_stack: elements[size]
//! bpf_htab:        elems -> htab_elem htab_elem ...  made in advance | 0: buckets -> htab_elem -> htab_elem ...
//! htab_elem:       links, hash | key | value, or a pointer to one for each CPU
//! ```
//! Not known here: maps of other kinds (rings for programs, tries, local storage, maps of maps), and objects of the
//! kernel in values, for the sake of which such a map is passed over.

use crate::layout::layout;
use crate::{Content, Kernel, KernelError, OpenFile};
use elision_memory::Gva;

layout! {
    pub(crate) struct BpfLayout {
        kind: number_opt("bpf_map", &["map_type"]),
        key_size: number_opt("bpf_map", &["key_size"]),
        value_size: number_opt("bpf_map", &["value_size"]),
        entries: number_opt("bpf_map", &["max_entries"]),
        users: number_opt("bpf_map", &["refcnt"]),
        objects: optional("bpf_map", &["record", "kptr_off_tab"]),
        array_step: number_opt("bpf_array", &["elem_size"]),
        array: optional("bpf_array", &["value"]),
        queue_size: number_opt("bpf_queue_stack", &["size"]),
        queue: optional("bpf_queue_stack", &["elements"]),
        made: optional("bpf_htab", &["elems"]),
        made_extra: optional("bpf_htab", &["extra_elems"]),
        buckets: optional("bpf_htab", &["buckets"]),
        bucket_count: number_opt("bpf_htab", &["n_buckets"]),
        element_size: number_opt("bpf_htab", &["elem_size"]),
        bucket_size: size_opt("bucket"),
        key: optional("htab_elem", &["key"]),
    }
}

const WHAT: &str = "BPF map";
// Kinds of maps (include/uapi/linux/bpf.h).
const HASHES: [u64; 4] = [1, 5, 9, 10];
const ARRAY: u64 = 2;
const CPU_HASHES: [u64; 2] = [5, 10];
const CPU_ARRAY: u64 = 6;
const QUEUES: [u64; 2] = [22, 23];
/// A list of elements ends with an odd number.
const LIST_END: u64 = 1;

/// What stays the same for each element of a hash table.
struct Element {
    key: u64,
    /// Where the value begins, or a pointer to it.
    value: u64,
    size: u64,
    value_size: u64,
    of_cpus: bool,
}

impl Kernel<'_> {
    /// Whether an open file is a map, which is its `private` then.
    #[must_use]
    pub fn is_bpf_map(&self, file: &OpenFile) -> bool {
        self.symbol("bpf_map_fops") == Some(file.operations)
    }

    /// How many use a map: files, programs, paths, other maps.
    pub fn bpf_map_users(&self, map: Gva) -> Result<u64, KernelError> {
        self.profile.bpf.users.map_or(Ok(0), |users| self.number(map, users, WHAT))
    }

    /// What stands in a map, keys and values.
    pub fn bpf_map_content(&self, map: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.bpf;
        let mut budget = self.ram.layout().frame_limit().0.saturating_mul(64); // elements are no smaller
        let (Some(kind), Some(entries), Some(value_size)) = (layout.kind, layout.entries, layout.value_size)
        else {
            return Ok(());
        };
        if let Some(objects) = layout.objects {
            if self.pointer(map.wrapping_add(objects), WHAT)?.0 != 0 {
                return Ok(());
            }
        }
        let (kind, entries) = (self.number(map, kind, WHAT)?, self.number(map, entries, WHAT)?);
        let value_size = self.number(map, value_size, WHAT)?;
        match (layout.array, layout.array_step, layout.queue, layout.queue_size) {
            (Some(array), Some(step), ..) if kind == ARRAY => {
                let len = self.number(map, step, WHAT)?.saturating_mul(entries);
                self.table(map.wrapping_add(array), len, visit)
            }
            (Some(array), Some(step), ..) if kind == CPU_ARRAY => {
                let step = self.number(map, step, WHAT)?;
                for i in 0..entries {
                    spend(&mut budget, map)?;
                    let value = self.pointer(map.wrapping_add(array).wrapping_add(8 * i), WHAT)?;
                    self.values_of_cpus(value, step, visit)?;
                }
                Ok(())
            }
            (_, _, Some(queue), Some(size)) if QUEUES.contains(&kind) => {
                let len = self.number(map, size, WHAT)?.saturating_mul(value_size);
                self.table(map.wrapping_add(queue), len, visit)
            }
            _ if HASHES.contains(&kind) => self.hash_table(map, kind, entries, &mut budget, visit),
            _ => Ok(()),
        }
    }

    fn hash_table(
        &self,
        map: Gva,
        kind: u64,
        entries: u64,
        budget: &mut u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.bpf;
        let (Some(made), Some(buckets), Some(count), Some(step), Some(size), Some(key), Some(key_size)) = (
            layout.made,
            layout.buckets,
            layout.bucket_count,
            layout.bucket_size,
            layout.element_size,
            layout.key,
            layout.key_size,
        ) else {
            return Ok(());
        };
        let number = |member| self.number(map, member, WHAT);
        let pointer = |offset| self.pointer(map.wrapping_add(offset), WHAT);
        let value_size = layout.value_size.map_or(Ok(0), number)?;
        let size = number(size)?;
        let value = number(key_size)?.checked_next_multiple_of(8).and_then(|len| key.checked_add(len));
        let why = "its elements have no possible size";
        let value = value.filter(|at| *at < size).ok_or(KernelError::Torn { what: WHAT, at: map, why })?;
        let element = Element { key, value, size, value_size, of_cpus: CPU_HASHES.contains(&kind) };
        let made = pointer(made)?;
        if made.0 != 0 {
            let spare = layout.made_extra.map_or(Ok(Gva(0)), pointer)?;
            let more = if spare.0 == 0 { 0 } else { self.per_cpu.len() as u64 };
            for i in 0..entries.saturating_add(more) {
                spend(budget, map)?;
                self.element(made.wrapping_add(i.saturating_mul(size)), &element, visit)?;
            }
            return Ok(());
        }
        let buckets = pointer(buckets)?;
        for i in 0..number(count)? {
            spend(budget, map)?;
            let mut at = self.pointer(buckets.wrapping_add(i.saturating_mul(step)), WHAT)?;
            while at.0 & LIST_END == 0 && at.0 != 0 {
                spend(budget, map)?;
                self.element(at, &element, visit)?;
                at = self.pointer(at, WHAT)?;
            }
        }
        Ok(())
    }

    fn element(&self, at: Gva, element: &Element, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let end = if element.of_cpus { element.value } else { element.size };
        visit(Content::Bytes(at.wrapping_add(element.key)..at.wrapping_add(end)));
        if !element.of_cpus {
            return Ok(());
        }
        let values = self.pointer(at.wrapping_add(element.value), WHAT)?;
        self.values_of_cpus(values, element.value_size, visit)
    }

    fn values_of_cpus(
        &self,
        value: Gva,
        len: u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        for cpu in self.per_cpu.iter().filter(|_| value.0 != 0) {
            self.table(value.wrapping_add(*cpu), len, visit)?;
        }
        Ok(())
    }

    fn table(&self, at: Gva, len: u64, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let why = "it is larger than the guest's memory";
        let limit = self.ram.layout().frame_limit().gpa().0;
        let end = at.checked_add(len).filter(|_| len <= limit);
        visit(Content::Bytes(at..end.ok_or(KernelError::Torn { what: WHAT, at, why })?));
        Ok(())
    }
}

fn spend(budget: &mut u64, at: Gva) -> Result<(), KernelError> {
    let why = "it has more elements than the guest has room for";
    *budget = budget.checked_sub(1).ok_or(KernelError::Torn { what: WHAT, at, why })?;
    Ok(())
}
