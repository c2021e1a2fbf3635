# The agent keeps its keys encrypted; what it keeps as it is, is a key's comment.
cat > /etc/systemd/system/agent.service <<UNIT
[Service]
ExecStartPre=/bin/rm -f /run/agent.sock
ExecStart=/usr/bin/ssh-agent -D -a /run/agent.sock
UNIT
systemctl start agent
ssh-keygen -q -t ed25519 -N '' -C "$(actor secret ssh-agent)" -f /run/key
export SSH_AUTH_SOCK=/run/agent.sock
until ssh-add -q /run/key; do sleep 1; done
rm /run/key /run/key.pub
