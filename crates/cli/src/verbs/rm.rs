//! `elision rm`: removes images, unless a VM runs from them.

use crate::args::RmArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::in_use::vms_of;
use crate::output::Output;
use crate::text::printable;
use elision_image::{Image, remove_image};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Removed {
    removed: Vec<PathBuf>,
}

pub(crate) fn run(args: &RmArgs, out: &mut Output) -> Result<Exit, Failure> {
    if !args.force {
        args.images.iter().try_for_each(|image| refuse_used(image))?;
        args.images.iter().try_for_each(|image| refuse_base(image, &args.images))?;
    }
    for image in &args.images {
        remove_image(image)?;
    }
    out.result(&Removed { removed: args.images.clone() }, human)?;
    Ok(Exit::Done)
}

fn refuse_used(path: &Path) -> Result<(), Failure> {
    let users = match Image::open(path) {
        Ok(image) => vms_of(&image.ram_path()),
        Err(error @ elision_image::ImageError::NotAnImage(_)) => return Err(error.into()),
        Err(_) => Vec::new(), // nothing runs from a damaged one
    };
    let Some(pid) = users.first() else { return Ok(()) };
    let name = printable(&path.display().to_string());
    let message = format!("The VM of process {pid} runs from {name}");
    let help = "End it first, or give --force: it runs on, but cannot be restored from this image again";
    Err(Failure::new(Exit::Failed, message).with_help(help.to_owned()))
}

/// Images in the same folder that build on it would be lost with it, unless they are removed too.
fn refuse_base(path: &Path, removed: &[PathBuf]) -> Result<(), Failure> {
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (own, removed) = (whole(path), removed.iter().map(|path| whole(path)).collect::<Vec<_>>());
    let folder = own.parent().unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(folder).map_err(|e| Failure::io("list", folder, &e))?;
    let mut links = entries.flatten().map(|entry| whole(&entry.path())).filter(|other| {
        let base = Image::open(other).ok().and_then(|image| image.base().map(|base| whole(base.dir())));
        base.as_ref() == Some(&own) && !removed.contains(other)
    });
    let Some(link) = links.next() else { return Ok(()) };
    let [name, link] = [path, &link].map(|path| printable(&path.display().to_string()));
    let message = format!("{link} builds on {name} and would be lost");
    let help = format!("Remove both, or fold {name} into it first: elision merge {link}");
    Err(Failure::new(Exit::Failed, message).with_help(help))
}

fn human(removed: &Removed) -> String {
    let names: Vec<_> = removed.removed.iter().map(|path| printable(&path.display().to_string())).collect();
    format!("Removed {}", names.join(", "))
}
