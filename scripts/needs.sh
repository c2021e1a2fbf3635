# Installs what is missing on Debian or Ubuntu, by package name, from the machine's own mirrors.
# Sourced by ./demo, ./bench and ./test, which run from the top of the repository. `install_missing tests` installs
# what only tests need too.

RUST_NEEDED=1.85

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        echo "This needs root: $*" >&2
        return 1
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f='${Status}' "$1" 2>/dev/null)" = "install ok installed" ]
}

install_missing() {
    if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
        echo "Elision saves x86-64 VMs on x86-64 Linux; this machine is $(uname -s) on $(uname -m)." >&2
        exit 1
    fi
    # shellcheck disable=SC1091 # made by rustup
    if [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
    missing=
    have() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
    have qemu-system-x86_64 qemu-system-x86
    have cc gcc
    have git git
    have ssh openssh-client
    have cpio cpio
    have xz xz-utils
    have cargo cargo
    if [ -n "${ELISION_ALL-}" ]; then have mmdebstrap mmdebstrap; fi
    if [ "${1-}" = tests ]; then
        have qemu-img qemu-utils
        have mke2fs e2fsprogs
        have python3 python3
        have make make
        have nm binutils
        have mkfs.xfs xfsprogs
        have mkfs.btrfs btrfs-progs
    fi
    # The C library's static archive, for the program that runs inside the guests.
    if [ ! -e /usr/lib/x86_64-linux-gnu/libc.a ] && [ ! -e /usr/lib64/libc.a ]; then
        missing="$missing libc6-dev"
    fi
    if command -v dpkg-query >/dev/null 2>&1; then
        # A busybox without libraries, and the keys of the archives that guest kernels come from.
        is_installed busybox-static || missing="$missing busybox-static"
        is_installed debian-archive-keyring || [ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] ||
            missing="$missing debian-archive-keyring"
    fi
    if [ -n "$missing" ]; then
        if ! command -v apt-get >/dev/null 2>&1; then
            echo "Please install what these Debian packages hold, then run this again:$missing" >&2
            exit 1
        fi
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
