//! The command line as a user meets it: help, wrong usage, errors and exit status.
//!
//! After a change of the arguments: `TRYCMD=overwrite cargo test -p elision --test command_line`.

#[test]
fn what_is_printed() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd").env("NO_COLOR", "1");
}
