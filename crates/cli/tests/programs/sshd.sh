# The same secret twice: the password of a login, and a password typed in the session.
useradd -m -s /bin/bash user
echo "user:$(actor secret sshd)" | chpasswd
printf '#!/bin/sh\nexec actor secret sshd\n' > /usr/local/bin/askpass
cat > /usr/local/bin/session <<SCRIPT
#!/bin/sh
(
    echo 'stty -echo; touch reads; read password; touch typed'
    until [ -e /home/user/reads ]; do sleep 1; done
    actor secret sshd
    echo
    exec sleep infinity
) | ssh -tt -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null user@127.0.0.1
SCRIPT
chmod 755 /usr/local/bin/askpass /usr/local/bin/session
cat > /etc/systemd/system/ssh-client.service <<UNIT
[Service]
Environment=SSH_ASKPASS=/usr/local/bin/askpass SSH_ASKPASS_REQUIRE=force TERM=linux
ExecStart=/usr/local/bin/session
UNIT
systemctl start ssh-client
until [ -e /home/user/typed ]; do sleep 1; done
