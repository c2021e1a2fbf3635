//! A stopped guest in a folder, for work without a guest.
//!
//! ```text
//! ram              copy of the RAM file, sparse
//! layout.json      its pieces: guest-physical address, length, offset in `ram`
//! registers.txt    `info registers -a` of QEMU's human monitor
//! truth.zst        ground truth, for Truth::parse; truth/ holds the same as files
//! guest.json       kernel, processes played, console problems
//! ```

use crate::error::{Context, Error, output_of};
use crate::guest::Guest;
use crate::truth::Truth;
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// Takes ground truth, stops the guest, copies it into `folder` and lets it run on.
pub fn write(guest: &mut Guest, folder: &Path, notes: &serde_json::Value) -> Result<(), Error> {
    std::fs::create_dir_all(folder).context("create", folder)?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).context("create", parent)?;
        }
        std::fs::write(&path, bytes).context("write", &path)
    };
    let endpoints = guest.endpoints().clone();
    let packed = endpoints.truth_bytes(guest.control(), true, true)?;
    endpoints.stop()?;
    let registers = endpoints.monitor("info registers -a")?;
    let ram = folder.join("ram");
    let copied = output_of(Command::new("cp").arg("--sparse=always").arg(endpoints.ram_file()).arg(&ram));
    endpoints.cont()?;
    copied?;
    put("registers.txt", registers.as_bytes())?;
    put("truth.zst", &packed)?;
    let truth = Truth::parse(&packed)?;
    for tag in truth.tags() {
        put(&format!("truth/{tag}"), truth.blob(tag).unwrap_or_default())?;
    }
    put("layout.json", json!(guest.layout()).to_string().as_bytes())?;
    let text = json!({"notes": notes, "problems": guest.console_problems()});
    put("guest.json", format!("{text:#}\n").as_bytes())
}
