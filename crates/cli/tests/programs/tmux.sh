# Above what the pane shows.
cat > /etc/systemd/system/tmux.service <<UNIT
[Service]
Type=forking
Environment=TERM=linux LC_ALL=C.UTF-8
ExecStart=/usr/bin/tmux new-session -d "actor secret tmux; seq 200; exec bash"
UNIT
systemctl start tmux
