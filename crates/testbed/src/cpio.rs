//! A cpio archive in the `newc` form, which the kernel unpacks as its first root filesystem.
//!
//! ```text
//! "070701" + 13 fields of 8 hex digits: ino mode uid gid nlink mtime filesize devmajor devminor
//!                                       rdevmajor rdevminor namesize check
//! name, NUL, padding to 4 bytes; data, padding to 4 bytes; ...; entry "TRAILER!!!"
//! ```
//! Files below 4 GiB; every entry belongs to root.

/// An archive being written.
#[derive(Default)]
pub(crate) struct Cpio {
    out: Vec<u8>,
    entries: u32,
}

impl Cpio {
    pub(crate) fn folder(&mut self, path: &str, permissions: u32) {
        self.entry(path, 0o040_000 | permissions, (0, 0), b"");
    }

    pub(crate) fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) {
        self.entry(path, 0o100_000 | permissions, (0, 0), bytes);
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, 0o120_777, (0, 0), target.as_bytes());
    }

    pub(crate) fn character_device(&mut self, path: &str, permissions: u32, device: (u32, u32)) {
        self.entry(path, 0o020_000 | permissions, device, b"");
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.out
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        self.entries += 1;
        let fields = [
            u64::from(self.entries),
            u64::from(mode),
            0,
            0,
            1,
            0,
            bytes.len() as u64,
            0,
            0,
            u64::from(device.0),
            u64::from(device.1),
            path.len() as u64 + 1,
            0,
        ];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.out.extend_from_slice(path.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_cpio_program_reads_the_archive() {
        let mut cpio = Cpio::default();
        cpio.folder("bin", 0o755);
        cpio.file("bin/tool", 0o755, b"12345");
        cpio.link("bin/other", "tool");
        cpio.character_device("console", 0o600, (5, 1));
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed");
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" bin"), "{listing}");
        assert!(lines[1].starts_with("-rwxr-xr-x") && lines[1].contains(" 5 "), "{listing}");
        assert!(lines[2].ends_with("bin/other -> tool"), "{listing}");
        assert!(lines[3].starts_with("crw-------") && lines[3].contains("5,   1"), "{listing}");
    }
}
