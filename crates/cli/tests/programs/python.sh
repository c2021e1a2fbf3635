cat > /usr/local/bin/service.py <<PROGRAM
import socket, subprocess
secret = subprocess.check_output(['actor', 'secret', 'python'])
server = socket.create_server(('127.0.0.1', 8000))
while True:
    client, _ = server.accept()
    client.sendall(b'%d bytes\n' % len(secret))
    client.close()
PROGRAM
cat > /etc/systemd/system/python.service <<UNIT
[Service]
ExecStart=/usr/bin/python3 /usr/local/bin/service.py
UNIT
systemctl start python
until nc 127.0.0.1 8000 < /dev/null; do sleep 1; done
