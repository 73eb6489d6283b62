#!/bin/sh
# Makes the secrets of compose.yaml in deploy/secrets: an authority, certificates for the
# NATS servers and their clients, valid for two years, and a password for Grafana. Existing
# files are kept. Remove certificates, but not ca.pem and ca-key.pem, to have new ones.
#
#   deploy/secrets.sh [FOLDER]
#
# For Kubernetes: kubectl create secret generic anomaly-nats --from-file=ca.pem \
#   --from-file=client.pem --from-file=client-key.pem
set -eu
dir=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$dir"
cd "$dir"

key() { # FILE
	[ -s "$1" ] || openssl ecparam -name prime256v1 -genkey -noout -out "$1"
}

certificate() { # NAME SUBJECT USAGE ALTNAMES
	[ -s "$1.pem" ] && return
	key "$1-key.pem"
	openssl req -new -key "$1-key.pem" -subj "/CN=$2" -out "$1.csr"
	printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\nsubjectAltName=%s\n' "$3" "$4" >"$1.ext"
	openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 730 -extfile "$1.ext" -out "$1.pem.new"
	mv "$1.pem.new" "$1.pem"
	rm -f "$1.csr" "$1.ext"
}

key ca-key.pem
[ -s ca.pem ] || openssl req -x509 -new -key ca-key.pem -subj "/CN=anomaly NATS authority" -days 3650 \
	-addext 'basicConstraints=critical,CA:TRUE,pathlen:0' -addext 'keyUsage=critical,keyCertSign,cRLSign' -out ca.pem
# The servers are clients of each other.
certificate server nats 'serverAuth,clientAuth' \
	'DNS:nats,DNS:nats-1,DNS:nats-2,DNS:nats-3,DNS:localhost,IP:127.0.0.1'
certificate client anomaly clientAuth 'DNS:anomaly'
if [ ! -s grafana-password ]; then
	openssl rand -hex 16 | tr -d '\n' >grafana-password
fi

# Containers read them as other users; the folder itself is for its owner alone.
chmod 644 ca.pem server.pem server-key.pem client.pem client-key.pem grafana-password
chmod 700 .
