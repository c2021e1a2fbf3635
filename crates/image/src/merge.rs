//! Folding images that another one builds on into it.
//!
//! ```text
//! A <─ B <─ C      merge C ->  A <─ C      what C inherited of what B holds itself stands in C now
//!                  merge C, all ->  C
//! ```
//! The image stays what it is, and keeps its id, so that what builds on it does so as before. It is written anew beside the
//! old one and takes its place at once.

use crate::link::Content;
use crate::partial::Partial;
use crate::ranges::{Runs, common, rest};
use crate::writer::{BuiltOn, ImageWriter};
use crate::{Image, ImageError};
use elision_memory::joined;

/// Folds the image that `image` builds on into it, or all of them.
///
/// `progress` is told of bytes of RAM as they are done, from several threads.
pub fn merge(image: &Image, all: bool, progress: &(dyn Fn(u64) + Sync)) -> Result<(), ImageError> {
    let Some(base) = image.base() else {
        let reason = "it builds on no other image, so there is nothing to merge";
        return Err(ImageError::NoBase { path: image.dir().to_owned(), reason });
    };
    let len = image.manifest().files.ram.bytes;
    let next = if all { None } else { base.base() };
    let inherited: Runs = match next {
        Some(_) => common(&image.inherited()?, &base.inherited()?),
        None => Vec::new(),
    };
    let Content { memory, data } = image.content()?;
    let data = common(&data, &rest(&inherited, len));
    let layout = image.manifest().ram_layout.clone();
    let all = joined([&data[..], &inherited].concat());
    let ram = memory.into_whole_ram(layout, all)?;
    let built_on = next.map(|next| BuiltOn::new(Image::open(next.dir())?, image.dir())).transpose()?;
    let partial = Partial::replacing(image.dir())?;
    let key = image.page_hashes()?.map(|hashes| hashes.key);
    let writer = ImageWriter::rewrite(partial, built_on, ram, (data, inherited), key)?;
    writer.finish_as(image, progress)
}
