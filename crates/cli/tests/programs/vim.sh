# A buffer that was never written, on a virtual console.
cat > /etc/systemd/system/vim.service <<UNIT
[Service]
Environment=TERM=linux
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/tty3
ExecStart=/bin/sh -c 'actor secret vim | exec vim -n -'
UNIT
systemctl start vim
