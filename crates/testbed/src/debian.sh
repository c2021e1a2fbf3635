#!/bin/sh
# Makes the tree at $1 ready to be a guest's root filesystem, and writes it by way of $2 to the image $3.
set -eu
etc=$1/etc
units=$etc/systemd/system

echo guest > "$etc/hostname"
echo '127.0.0.1 localhost guest' > "$etc/hosts"
: > "$etc/fstab"
# Not the first boot of a new machine, or every unit would be enabled.
echo 00000000000000000000000000000e11 > "$etc/machine-id"
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*

# Last, so that a guest that answers has booted.
cat > "$units/actor.service" <<UNIT
[Unit]
DefaultDependencies=no
After=multi-user.target
[Service]
ExecStart=/bin/actor serve
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
UNIT
mkdir -p "$units/multi-user.target.wants"
ln -s ../actor.service "$units/multi-user.target.wants/actor.service"
ln -sf /lib/systemd/system/multi-user.target "$units/default.target"

# What waits for devices or for a network, and what works at times of its own.
for unit in \
    console-getty.service getty@.service serial-getty@.service \
    systemd-udevd.service systemd-udev-trigger.service systemd-udev-settle.service \
    systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service \
    systemd-network-generator.service systemd-timesyncd.service systemd-pstore.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer logrotate.timer systemd-tmpfiles-clean.timer podman-auto-update.timer \
    podman.service podman.socket podman-restart.service podman-auto-update.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount; do
    ln -sf /dev/null "$units/$unit"
done

# Without what is mounted below.
mount --bind "$1" "$2"
truncate -s 2G "$3"
mke2fs -q -F -t ext4 -d "$2" "$3"
umount "$2"
