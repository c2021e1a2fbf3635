cat > /etc/systemd/system/logger.service <<UNIT
[Service]
ExecStart=/bin/sh -c 'actor secret journal; echo; exec sleep infinity'
UNIT
systemctl start logger
until journalctl -u logger | grep -q "$(actor secret journal)"; do sleep 1; done
journalctl --sync
