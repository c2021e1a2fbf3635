//! The Python wrapper's own tests.

use std::path::Path;
use std::process::Command;

#[test]
fn the_python_wrapper_keeps_its_word() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "-v"])
        .current_dir(&folder)
        .output()
        .expect("python3 (package python3)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Ran 5 tests"), "control: {text}");
}
