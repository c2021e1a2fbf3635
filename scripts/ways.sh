#!/bin/sh
# Runs the tests of redaction by every way in which memory comes out of a VM, with both versions of QEMU, and writes what
# came of it to docs/results/ways.md. Part of ./test --all. Names of tests as arguments run these only. Those that need a
# guest with systemd do nothing without ELISION_ALL.
set -eu
cd "$(dirname "$0")/.."

all="any_vm cached_files kinds leak_matrix network_cards no_instruction
nodes orphans regions relations save_restore selectors ssh stack_gaps swap tcp_reset typed unknown_sockets
agent agent_containers agent_systemd agent_units"
# ELISION_QEMU, ELISION_WAY. Where a version translates the guest's code, `live` takes what it can: a snapshot by 7.2.
ways=${ELISION_WAYS:-7.2:stream 7.2:live 10:stream 10:live 10:snapshot}
logs=target/ways
mkdir -p "$logs"
cargo test --locked -q -p elision --no-run

rows=
failed=
for test in ${*:-$all}; do
    row="| \`$test\` |"
    for way in $ways; do
        log=$logs/$test-$way.log
        began=$(date +%s)
        result=passed
        ELISION_QEMU=${way%:*} ELISION_WAY=${way#*:} \
            cargo test --locked -q -p elision --test "$test" -- --test-threads=3 > "$log" 2>&1 || result=FAILED
        echo "$test, QEMU ${way%:*}, ${way#*:}: $result, $(($(date +%s) - began)) s"
        [ $result = passed ] || failed="$failed $log"
        row="$row $result |"
    done
    rows="$rows$row
"
done
[ $# -gt 0 ] || {
    echo "# Redaction by every way out of a VM"
    echo
    echo "Written by \`scripts/ways.sh\`, part of \`./test --all\`, on $(date +%F). Each row is a test program of"
    echo "\`crates/cli/tests\`, in which saves are made by the way at the head of the column. By shared RAM all of them run in"
    echo "\`./test\`."
    echo
    echo "| | QEMU 7.2, stream | 7.2, \`--live\` | QEMU 10, stream | 10, \`--live\` | 10, \`--live=snapshot\` |"
    echo "|---|---|---|---|---|---|"
    printf %s "$rows"
} > docs/results/ways.md
if [ -n "$failed" ]; then
    echo "failed, see:$failed" >&2
    exit 1
fi
