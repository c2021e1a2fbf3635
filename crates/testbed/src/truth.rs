//! Ground truth: what the guest's own kernel says about its processes and frames.

use crate::error::Error;
use elision_actor::blob;
use elision_memory::{Gfn, Gva};
use std::collections::BTreeMap;
use std::io::Read;

/// More than the frame tables of a guest with 64 GiB.
const LIMIT: u64 = 1 << 30;

/// One dump of ground truth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    blobs: BTreeMap<String, Vec<u8>>,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// First address.
    pub start: Gva,
    /// First address behind it.
    pub end: Gva,
    /// Such as `rw-p`.
    pub permissions: String,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Path or name in brackets; empty for anonymous memory.
    pub path: String,
}

/// One entry of `/proc/PID/pagemap` that is present or swapped out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMapEntry {
    /// Address of the page.
    pub gva: Gva,
    /// The entry.
    pub entry: u64,
}

impl PageMapEntry {
    /// The frame, if the page is present.
    #[must_use]
    pub fn gfn(&self) -> Option<Gfn> {
        (self.entry >> 63 == 1).then_some(Gfn(self.entry & ((1 << 55) - 1)))
    }

    /// Whether the page is swapped out.
    #[must_use]
    pub fn is_swapped(&self) -> bool {
        self.entry >> 62 & 1 == 1
    }

    /// Whether the page belongs to a file or to shared memory.
    #[must_use]
    pub fn is_file_or_shared(&self) -> bool {
        self.entry >> 61 & 1 == 1
    }

    /// Whether the frame is mapped by this process alone.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.entry >> 56 & 1 == 1
    }
}

/// A line of `/proc/kallsyms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its address, or its value.
    pub address: u64,
    /// Type letter.
    pub kind: char,
    /// Name.
    pub name: String,
    /// Module; empty for the kernel itself.
    pub module: String,
}

impl Truth {
    /// Parses what the guest wrote to its debug port.
    pub fn parse(packed: &[u8]) -> Result<Self, Error> {
        let bad = |reason: &str| Error::Truth(reason.to_owned());
        let decoder = zstd::stream::Decoder::new(packed).map_err(|e| Error::Truth(e.to_string()))?;
        let mut bytes = Vec::new();
        decoder.take(LIMIT).read_to_end(&mut bytes).map_err(|e| Error::Truth(e.to_string()))?;
        let blobs = blob::split(&bytes).ok_or_else(|| bad("the dump is cut or damaged"))?;
        Ok(Self { blobs: blobs.into_iter().map(|(tag, b)| (tag, b.to_vec())).collect() })
    }

    /// A blob by its tag, such as `meminfo` or `status/61`.
    #[must_use]
    pub fn blob(&self, tag: &str) -> Option<&[u8]> {
        self.blobs.get(tag).map(Vec::as_slice)
    }

    /// All tags.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.blobs.keys().map(String::as_str)
    }

    /// A blob as text; empty if it is not there.
    #[must_use]
    pub fn text(&self, tag: &str) -> String {
        String::from_utf8_lossy(self.blob(tag).unwrap_or_default()).into_owned()
    }

    /// Ids of all processes.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.text("pids").lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Ids of a process's threads.
    #[must_use]
    pub fn threads(&self, pid: i32) -> Vec<i32> {
        let mut ids: Vec<i32> =
            self.text(&format!("task/{pid}")).lines().filter_map(|l| l.parse().ok()).collect();
        ids.sort_unstable();
        ids
    }

    /// Name of a process.
    #[must_use]
    pub fn comm(&self, pid: i32) -> String {
        self.text(&format!("comm/{pid}")).trim_end_matches('\n').to_owned()
    }

    /// Path of a process's executable; `None` for kernel threads.
    #[must_use]
    pub fn exe(&self, pid: i32) -> Option<String> {
        self.blob(&format!("exe/{pid}")).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// Path of a process in the cgroup2 hierarchy.
    #[must_use]
    pub fn cgroup(&self, pid: i32) -> Option<String> {
        self.text(&format!("cgroup/{pid}")).lines().find_map(|l| l.strip_prefix("0::")).map(str::to_owned)
    }

    /// The first value of a field of `/proc/PID/status`.
    #[must_use]
    pub fn status(&self, pid: i32, field: &str) -> Option<String> {
        let text = self.text(&format!("status/{pid}"));
        let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
        line.split_whitespace().next().map(str::to_owned)
    }

    /// Real user id.
    #[must_use]
    pub fn uid(&self, pid: i32) -> Option<u32> {
        self.status(pid, "Uid")?.parse().ok()
    }

    /// Parent.
    #[must_use]
    pub fn ppid(&self, pid: i32) -> Option<i32> {
        self.status(pid, "PPid")?.parse().ok()
    }

    /// Device number of the controlling terminal, 0 without one.
    #[must_use]
    pub fn tty_nr(&self, pid: i32) -> Option<u32> {
        let text = self.text(&format!("stat/{pid}"));
        text.rsplit_once(')')?.1.split_whitespace().nth(4)?.parse().ok()
    }

    /// Memory areas of a process.
    #[must_use]
    pub fn maps(&self, pid: i32) -> Vec<Map> {
        self.text(&format!("maps/{pid}")).lines().filter_map(parse_map).collect()
    }

    /// Pages of a process, by address.
    #[must_use]
    pub fn pagemap(&self, pid: i32) -> Vec<PageMapEntry> {
        let words = words(self.blob(&format!("pagemap/{pid}")).unwrap_or_default());
        words.chunks_exact(2).map(|w| PageMapEntry { gva: Gva(w[0]), entry: w[1] }).collect()
    }

    /// Flags of every frame, by frame number, as in `/proc/kpageflags`.
    #[must_use]
    pub fn frame_flags(&self) -> Vec<u64> {
        words(self.blob("kpageflags").unwrap_or_default())
    }

    /// How often every frame is mapped, by frame number.
    #[must_use]
    pub fn frame_counts(&self) -> Vec<u64> {
        words(self.blob("kpagecount").unwrap_or_default())
    }

    /// The kernel's symbols, if they were asked for.
    #[must_use]
    pub fn symbols(&self) -> Vec<Symbol> {
        self.text("kallsyms").lines().filter_map(parse_symbol).collect()
    }

    /// The kernel's BTF, if it was asked for.
    #[must_use]
    pub fn btf(&self) -> Option<&[u8]> {
        self.blob("btf")
    }

    /// Free blocks of each order, by zone name, as in `/proc/buddyinfo`.
    #[must_use]
    pub fn buddy(&self) -> Vec<(String, Vec<u64>)> {
        let zone = |line: &str| {
            let (_, rest) = line.split_once("zone")?;
            let mut fields = rest.split_whitespace();
            let name = fields.next()?.to_owned();
            Some((name, fields.filter_map(|f| f.parse().ok()).collect()))
        };
        self.text("buddyinfo").lines().filter_map(zone).collect()
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |c: &[u8]| c.iter().rev().fold(0, |v: u64, b| v << 8 | u64::from(*b));
    bytes.chunks_exact(8).map(word).collect()
}

fn parse_map(line: &str) -> Option<Map> {
    let mut rest = line;
    let mut field = || {
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after.trim_start();
        field.to_owned()
    };
    let (range, permissions, offset, _device, _inode) = (field(), field(), field(), field(), field());
    let (start, end) = range.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Map {
        start: Gva(hex(start)?),
        end: Gva(hex(end)?),
        permissions,
        offset: hex(&offset)?,
        path: rest.to_owned(),
    })
}

fn parse_symbol(line: &str) -> Option<Symbol> {
    let mut fields = line.split_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let kind = fields.next()?.chars().next()?;
    let name = fields.next()?.to_owned();
    let module = fields.next().unwrap_or("").trim_matches(['[', ']']).to_owned();
    Some(Symbol { address, kind, name, module })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(blobs: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, bytes) in blobs {
            blob::append(&mut out, tag, bytes);
        }
        blob::append(&mut out, blob::END, b"");
        zstd::encode_all(&out[..], 1).unwrap()
    }

    #[test]
    fn a_dump_is_read() {
        let entry = (1_u64 << 63 | 1 << 56 | 0x1234).to_le_bytes();
        let pagemap = [0x7000_0000_1000_u64.to_le_bytes(), entry].concat();
        let truth = Truth::parse(&packed(&[
            ("pids", b"1\n61"),
            ("comm/61", b"a (b) c\n"),
            ("stat/61", b"61 (a (b) c) S 1 61 61 34816 61 0"),
            ("status/61", b"Name:\ta\nPPid:\t1\nUid:\t1234\t1234\t1234\t1234\n"),
            ("cgroup/61", b"1:cpu:/x\n0::/elision.slice/pod-abc\n"),
            ("task/61", b"62\n61"),
            (
                "maps/61",
                b"7f00-8000 rw-p 00001000 00:01 17 /tmp/a file (deleted)\n9000-a000 r--p 00000000 00:00 0 \n",
            ),
            ("pagemap/61", &pagemap),
            ("kpageflags", &7_u64.to_le_bytes()),
            ("kallsyms", b"ffffffff81000000 T _text\nffffffffc0000000 t f\t[virtio]\n"),
            ("buddyinfo", b"Node 0, zone      DMA      1      0      3 \n"),
        ]))
        .unwrap();
        assert_eq!(truth.pids(), [1, 61]);
        assert_eq!(truth.comm(61), "a (b) c");
        assert_eq!((truth.tty_nr(61), truth.uid(61), truth.ppid(61)), (Some(34816), Some(1234), Some(1)));
        assert_eq!(truth.cgroup(61).as_deref(), Some("/elision.slice/pod-abc"));
        assert_eq!(truth.threads(61), [61, 62]);
        let maps = truth.maps(61);
        assert_eq!((maps[0].end, maps[0].offset), (Gva(0x8000), 0x1000));
        assert_eq!((maps[0].path.as_str(), maps[1].path.as_str()), ("/tmp/a file (deleted)", ""));
        let page = truth.pagemap(61)[0];
        assert_eq!((page.gva, page.gfn()), (Gva(0x7000_0000_1000), Some(Gfn(0x1234))));
        assert!(page.is_exclusive() && !page.is_swapped() && !page.is_file_or_shared());
        assert_eq!(truth.frame_flags(), [7]);
        assert_eq!(truth.symbols()[1].module, "virtio");
        assert_eq!(truth.buddy(), [("DMA".to_owned(), vec![1, 0, 3])]);
        assert_eq!(truth.exe(61), None);
    }

    #[test]
    fn a_cut_dump_is_an_error() {
        let whole = packed(&[("pids", b"1")]);
        assert!(Truth::parse(&whole).is_ok());
        for cut in 0..whole.len() {
            assert!(Truth::parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }
}
