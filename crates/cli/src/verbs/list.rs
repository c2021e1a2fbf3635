//! `elision list`: the images in folders, and the VMs that run from them.

use crate::args::ListArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::in_use::vms_of;
use crate::output::{Output, table};
use crate::summary;
use crate::text::{printable, size};
use elision_image::{Image, ImageError, MANIFEST};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Listing {
    images: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    image: PathBuf,
    /// Why it cannot be used; then the other fields are null.
    problem: Option<String>,
    created: Option<String>,
    kernel_release: Option<String>,
    ram_bytes: Option<u64>,
    stored_bytes: Option<u64>,
    compressed: Option<bool>,
    /// The image that it builds on; null for none.
    base: Option<PathBuf>,
    policy: Option<serde_json::Value>,
    /// Process ids of the VMs that have it mapped.
    vms: Vec<u32>,
}

pub(crate) fn run(args: &ListArgs, out: &mut Output) -> Result<Exit, Failure> {
    let mut images = Vec::new();
    for folder in &args.folders {
        images.extend(images_in(folder)?);
    }
    images.sort_by(|a, b| (&a.created, &a.image).cmp(&(&b.created, &b.image)));
    out.result(&Listing { images }, human)?;
    Ok(Exit::Done)
}

fn images_in(folder: &Path) -> Result<Vec<Row>, Failure> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| Failure::io("list", folder, &e).with_exit(Exit::Usage))?;
    let mut rows = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Failure::io("list", folder, &e))?.path();
        // An unfinished image has a name that begins with a dot.
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_hidden || !path.join(MANIFEST).is_file() {
            continue;
        }
        let row = match Image::open(&path) {
            Ok(image) => Row::whole(path, &image, vms_of(&image.ram_path())),
            Err(error) => Row::broken(path, &error),
        };
        rows.push(row);
    }
    Ok(rows)
}

impl Row {
    fn whole(path: PathBuf, image: &Image, vms: Vec<u32>) -> Self {
        let manifest = image.manifest();
        let ram = &manifest.files.ram;
        Self {
            image: path,
            problem: None,
            created: Some(manifest.created.clone()),
            kernel_release: Some(manifest.guest.kernel_release.clone()),
            ram_bytes: Some(ram.bytes),
            stored_bytes: Some(ram.stored_bytes),
            compressed: Some(ram.packed_bytes.is_some()),
            base: image.base().map(|base| base.dir().to_owned()),
            policy: Some(manifest.policy.clone()),
            vms,
        }
    }

    fn broken(image: PathBuf, error: &ImageError) -> Self {
        Self {
            image,
            problem: Some(error.to_string()),
            created: None,
            kernel_release: None,
            ram_bytes: None,
            stored_bytes: None,
            compressed: None,
            base: None,
            policy: None,
            vms: Vec::new(),
        }
    }
}

fn human(listing: &Listing) -> String {
    if listing.images.is_empty() {
        return "There are no images".to_owned();
    }
    let titles = ["IMAGE", "CREATED", "GUEST", ">MEMORY", ">STORED", "BUILDS ON", "VMS", "LEFT OUT"];
    let text = |text: &Option<String>| text.as_deref().map_or_else(String::new, printable);
    let bytes = |bytes: Option<u64>| bytes.map_or_else(String::new, size);
    let rows = listing.images.iter().map(|row| {
        let vms: Vec<_> = row.vms.iter().map(u32::to_string).collect();
        let last = match (&row.problem, &row.policy) {
            (Some(problem), _) => format!("damaged: {problem}"),
            (None, policy) => policy.as_ref().map_or_else(String::new, summary::policy),
        };
        vec![
            printable(&row.image.display().to_string()),
            text(&row.created),
            text(&row.kernel_release),
            bytes(row.ram_bytes),
            bytes(row.stored_bytes),
            row.base
                .as_deref()
                .and_then(Path::file_name)
                .map_or_else(String::new, |name| printable(&name.to_string_lossy())),
            vms.join(" "),
            printable(&last),
        ]
    });
    table(&titles, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_json_fields_are_the_documented_ones() {
        let row = Row::broken("web.elision".into(), &ImageError::Missing("web.elision/ram.img".into()));
        let expected = json!({
            "image": "web.elision", "problem": "The image is incomplete: web.elision/ram.img is missing",
            "created": null, "kernel_release": null, "ram_bytes": null, "stored_bytes": null,
            "compressed": null, "base": null, "policy": null, "vms": [],
        });
        assert_eq!(serde_json::to_value(&row).unwrap(), expected);
        let text = human(&Listing { images: vec![row] });
        assert!(text.contains("web.elision") && text.contains("damaged: "), "{text}");
    }
}
