//! `elision merge`: an image that builds on fewer others.

use crate::args::MergeArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::text::{printable, size};
use elision_image::{Image, merge};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Merged {
    image: PathBuf,
    /// What it builds on now; null for nothing.
    base: Option<PathBuf>,
    stored_bytes: u64,
}

pub(crate) fn run(args: &MergeArgs, out: &mut Output) -> Result<Exit, Failure> {
    let image = Image::open(&args.image)?;
    let bar = out.progress("merging", image.manifest().files.ram.bytes);
    let merged = merge(&image, args.all, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    merged?;
    let image = Image::open(&args.image)?;
    let base = image.base().map(|base| base.dir().to_owned());
    let stored_bytes = image.manifest().files.ram.stored_bytes;
    out.result(&Merged { image: args.image.clone(), base, stored_bytes }, human)?;
    Ok(Exit::Done)
}

fn human(merged: &Merged) -> String {
    let name = |path: &PathBuf| printable(&path.display().to_string());
    let base = merged.base.as_ref().map_or_else(|| "nothing".to_owned(), name);
    format!("{} builds on {base} and stores {} of memory", name(&merged.image), size(merged.stored_bytes))
}
