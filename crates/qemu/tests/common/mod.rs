//! A bare QEMU for tests: SeaBIOS and no disk.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A QEMU that ends with its test.
pub(crate) struct Machine {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) child: Child,
}

impl Machine {
    /// Starts QEMU with a memfd-like RAM file in the folder, `id` as its backend, and more options.
    pub(crate) fn start(id: &str, mib: u32, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ram = folder.path().join("ram");
        let object = format!("memory-backend-file,id={id},size={mib}M,mem-path={},share=on", ram.display());
        let mut arguments = vec!["-m".to_string(), mib.to_string(), "-object".into(), object];
        arguments.extend(["-machine".to_string(), format!("memory-backend={id}")]);
        arguments.extend(options.iter().map(|o| (*o).to_string()));
        Self::start_with(folder, &arguments)
    }

    /// Starts QEMU with only the given options beside the QMP socket `qmp` in the folder.
    pub(crate) fn start_with(folder: tempfile::TempDir, options: &[String]) -> Self {
        let qmp = folder.path().join("qmp");
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .expect("these tests need qemu-system-x86_64");
        wait_until("the QMP socket", || qmp.exists());
        Self { folder, child }
    }

    /// The QMP socket.
    pub(crate) fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// A path in the machine's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits up to ten seconds.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a needle is somewhere in the bytes.
#[allow(dead_code)]
pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}

/// The whole file.
#[allow(dead_code)]
pub(crate) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
