//! A bare QEMU for tests: SeaBIOS and no disk.
#![allow(dead_code)] // each test file uses its part

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
        Self::start_in(tempfile::tempdir().unwrap(), id, mib, options)
    }

    /// The same in a folder that exists.
    pub(crate) fn start_in(folder: tempfile::TempDir, id: &str, mib: u32, options: &[&str]) -> Self {
        let ram = folder.path().join("ram");
        let object = format!("memory-backend-file,id={id},size={mib}M,mem-path={},share=on", escaped(&ram));
        let mut arguments = vec!["-m".to_string(), mib.to_string(), "-object".into(), object];
        arguments.extend(["-machine".to_string(), format!("memory-backend={id}")]);
        arguments.extend(options.iter().map(|o| (*o).to_string()));
        Self::start_with(folder, &arguments)
    }

    /// The same for words in one text.
    pub(crate) fn start_words(words: &str) -> Self {
        let words: Vec<String> = words.split_whitespace().map(String::from).collect();
        Self::start_with(tempfile::tempdir().unwrap(), &words)
    }

    /// Starts QEMU with only the given options beside the QMP socket `qmp` in the folder.
    pub(crate) fn start_with(folder: tempfile::TempDir, options: &[String]) -> Self {
        let qmp = folder.path().join("qmp");
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", escaped(&qmp)))
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .expect("these tests need qemu-system-x86_64");
        wait_until("the QMP socket", || std::os::unix::net::UnixStream::connect(&qmp).is_ok());
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

fn escaped(path: &Path) -> String {
    path.to_str().unwrap().replace(',', ",,")
}

/// Ways to give a machine 64 MiB of RAM: options, the name of its block, and whether it is shared.
pub(crate) fn backends(folder: &Path) -> Vec<(String, &'static str, bool)> {
    let ram = folder.join("ram");
    std::fs::write(&ram, vec![b'f'; 48 << 20]).unwrap();
    std::fs::File::options().write(true).open(&ram).unwrap().set_len(64 << 20).unwrap();
    let object = |text: &str, id: &str| format!("-m 64 -object {text},id={id},size=64M");
    let backend = |text: &str, id: &str| format!("{} -machine memory-backend={id}", object(text, id));
    vec![
        ("-m 64".into(), "pc.ram", false),
        ("-m size=64M,slots=2,maxmem=1G".into(), "pc.ram", false),
        (format!("-m 64 -mem-path {}", folder.display()), "pc.ram", false),
        (backend("memory-backend-ram", "pc.ram"), "pc.ram", false),
        (backend("memory-backend-ram,share=on", "mine"), "mine", true),
        (backend("memory-backend-memfd,share=off", "mine"), "mine", false),
        (backend("memory-backend-memfd", "mine"), "mine", true),
        (
            backend(&format!("memory-backend-file,mem-path={},share=off", ram.display()), "mine"),
            "mine",
            false,
        ),
        (format!("{} -numa node,memdev=mine", object("memory-backend-ram", "mine")), "mine", false),
    ]
}

/// Waits up to ten seconds.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
