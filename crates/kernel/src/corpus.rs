//! The inputs of the fuzz targets, replayed by ordinary tests.
//!
//! `fuzz/corpus/TARGET` holds seeds made by code and inputs that once showed a fault, each named
//! after what it is. Tests check that the seeds are what the code makes today;
//! `ELISION_WRITE_CORPUS=1` writes them anew.

use std::path::Path;

/// All inputs of a target by name, after a check that `seeds` are among them unchanged.
pub(crate) fn replay(target: &str, seeds: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    if std::env::var_os("ELISION_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let all: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let path = file.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
        })
        .collect();
    for seed in seeds {
        let message = "is not what the code makes; run the tests with ELISION_WRITE_CORPUS=1";
        assert!(all.contains(seed), "{} {message}", folder.join(&seed.0).display());
    }
    all
}
