# A key of the curve P-256 that is the secret, read as a number.
mkdir -p /etc/nginx/tls
cat > /run/key.conf <<CONF
asn1=SEQUENCE:key
[key]
version=INTEGER:1
private=FORMAT:HEX,OCT:$(actor secret nginx | busybox xxd -p -c 32)
curve=EXP:0,OID:prime256v1
CONF
cd /etc/nginx/tls
openssl asn1parse -genconf /run/key.conf -noout -out /run/key.der
openssl ec -inform DER -in /run/key.der -out key.pem
openssl req -x509 -new -key key.pem -subj /CN=guest -days 3000 -out cert.pem
rm /run/key.conf /run/key.der
cat > /etc/nginx/conf.d/tls.conf <<CONF
server { listen 127.0.0.1:443 ssl; ssl_certificate tls/cert.pem; ssl_certificate_key tls/key.pem; }
CONF
systemctl restart nginx
