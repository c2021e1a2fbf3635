//! The mappings of a process, as `/proc/PID/maps` lists them:
//!
//! ```text
//! START-END PERMISSIONS OFFSET MAJOR:MINOR INODE       PATH
//! 7f103bfff000-7f103ffff000 rw-s 00001000 00:1a 1031   /dev/shm/a name
//! ```
//! The kernel cuts a mapping where its attributes differ (`madvise`, memory policies), so what QEMU mapped at
//! once may stand in several lines.

use crate::error::{QemuError, Result};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    pub(crate) range: String,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) shared: bool,
    pub(crate) offset: u64,
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    pub(crate) path: String,
}

/// The mappings of a process, by ascending address.
pub(crate) fn mappings(pid: u32) -> Result<Vec<Vma>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(QemuError::io(format!("read the mappings of process {pid}")))?;
    Ok(maps.lines().filter_map(vma).collect())
}

/// The mapping that holds `address`, if `len` bytes from there are mapped without a gap, from one file or none.
pub(crate) fn run(mappings: &[Vma], address: u64, len: u64) -> Result<&Vma> {
    let i = mappings.partition_point(|v| v.end <= address);
    let first = mappings.get(i).filter(|v| v.start <= address);
    let first = first.ok_or_else(|| bad(format!("QEMU maps nothing at {address:#x}")))?;
    let end = address.checked_add(len).ok_or_else(|| bad("the RAM block wraps around"))?;
    let mut reached = first.end;
    for next in mappings.iter().skip(i + 1).take_while(|v| v.start < end) {
        let same = (next.shared, next.device, next.inode) == (first.shared, first.device, first.inode);
        let goes_on = next.inode == 0 || next.offset.wrapping_sub(first.offset) == next.start - first.start;
        if next.start != reached || !same || !goes_on {
            break;
        }
        reached = next.end;
    }
    if reached < end {
        return Err(bad(format!("QEMU's mapping of it ends at {reached:#x}, before {end:#x}")));
    }
    Ok(first)
}

fn vma(line: &str) -> Option<Vma> {
    let mut words = line.splitn(6, ' ');
    let range = words.next()?;
    let (start, end) = range.split_once('-')?;
    let permissions = words.next()?;
    let offset = words.next()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.next()?.parse().ok()?;
    Some(Vma {
        range: range.to_string(),
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        shared: permissions.ends_with('s'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        path: words.next().unwrap_or_default().trim_start().to_string(),
    })
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::RamLayout { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let v =
            vma("7f103bfff000-7f103ffff000 rw-s 00001000 00:1a 1031                       /dev/shm/a name");
        let v = v.unwrap();
        assert_eq!((v.start, v.end, v.offset), (0x7f10_3bff_f000, 0x7f10_3fff_f000, 0x1000));
        assert_eq!((v.device, v.inode, v.path.as_str()), ((0, 0x1a), 1031, "/dev/shm/a name"));
        assert!(v.shared);
        assert!(!vma("7f103bfff000-7f103ffff000 rw-p 00000000 00:00 0 ").unwrap().shared);
        assert_eq!(vma("nonsense"), None);
    }

    fn maps(lines: &[&str]) -> Vec<Vma> {
        lines.iter().map(|line| vma(line).unwrap()).collect()
    }

    #[test]
    fn a_run_may_stand_in_several_lines_but_is_of_one_kind() {
        let first = "10000-20000 rw-p 00000000 00:00 0 ";
        let good = [
            vec![first, "20000-40000 rw-p 00000000 00:00 0 "],
            vec!["8000-50000 rw-p 00000000 00:00 0 [anon: ram]"],
            vec!["10000-20000 rw-s 00001000 00:1a 7 /f", "20000-40000 rw-s 00011000 00:1a 7 /f"],
        ];
        for lines in &good {
            assert_eq!(
                run(&maps(lines), 0x10000, 0x30000).unwrap().range,
                lines[0].split(' ').next().unwrap()
            );
        }
        let bad = [
            vec![],
            vec![first],
            vec![first, "21000-40000 rw-p 00000000 00:00 0 "],
            vec![first, "20000-40000 rw-s 00000000 00:1a 7 /f"],
            vec!["11000-40000 rw-p 00000000 00:00 0 "],
            vec!["10000-20000 rw-s 00001000 00:1a 7 /f", "20000-40000 rw-s 00012000 00:1a 7 /f"],
            vec!["10000-20000 rw-s 00001000 00:1a 7 /f", "20000-40000 rw-s 00011000 00:1a 8 /g"],
        ];
        for lines in &bad {
            let maps = maps(lines);
            let found = run(&maps, 0x10000, 0x30000);
            assert!(matches!(found, Err(QemuError::RamLayout { .. })), "{lines:?}");
        }
    }
}
