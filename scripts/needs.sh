# Installs what is missing on Debian or Ubuntu, by package name, from the machine's own mirrors.
# Sourced by ./demo and ./test, which run from the top of the repository.

RUST_NEEDED=1.85

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_missing() {
    missing=
    have() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
    have qemu-system-x86_64 qemu-system-x86
    have cc gcc
    have git git
    [ -e /bin/busybox ] && [ "$(dpkg-query -W -f='${Status}' busybox-static 2>/dev/null)" = "install ok installed" ] ||
        missing="$missing busybox-static"
    # The C library's static archive, for the program that runs inside the guests.
    [ -e "/usr/lib/$(uname -m)-linux-gnu/libc.a" ] || missing="$missing libc6-dev"
    [ -d /usr/share/keyrings ] && ls /usr/share/keyrings/*archive-keyring* >/dev/null 2>&1 ||
        missing="$missing debian-archive-keyring"
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    have cargo cargo
    if [ -n "$missing" ]; then
        echo "Installing:$missing"
        as_root apt-get update -qq
        # shellcheck disable=SC2086 # a list of names
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    fi
    found=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$RUST_NEEDED" "$found" | sort -V | head -n1)" != "$RUST_NEEDED" ]; then
        echo "Rust $RUST_NEEDED or later is needed and $found is installed." >&2
        echo "Install a newer one with rustup (package rustup, or https://rustup.rs), then run this again." >&2
        exit 1
    fi
}
