#!/bin/sh
# Make the certificates of extender and kube-scheduler with openssl, and say where each file goes.
#   sh by-hand.sh [FOLDER [NAMESPACE]]
# What is there is kept; a certificate that ends within 30 days is made anew, with the same authority.
set -eu
umask 077
folder=${1:-certificates}
namespace=${2:-flextopo-system}
name=flextopo.$namespace.svc
mkdir -p "$folder"
cd "$folder"
settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
cat > "$settings" <<END
[req]
distinguished_name = subject
[subject]
[ca]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[tls]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:$name, DNS:$name.cluster.local
[client]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END

new_key() {
    [ -s "$1.key" ] || openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
}

lasts() {
    [ -s "$1.crt" ] && openssl x509 -in "$1.crt" -noout -checkend 2592000 > /dev/null
}

issue() {
    new_key "$1"
    if lasts "$1"; then
        return
    fi
    openssl req -new -config "$settings" -key "$1.key" -subj "/CN=$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" \
        -days 365 -sha256 -extfile "$settings" -extensions "$1" -out "$1.crt" 2> /dev/null
    rm -f "$1.csr"
}

new_key ca
if [ ! -s ca.crt ]; then
    openssl req -x509 -new -config "$settings" -extensions ca -key ca.key -sha256 -days 3650 \
        -subj "/CN=flextopo-ca" -out ca.crt
fi
issue tls "$name"
issue client kube-scheduler

cat <<END
In $(pwd):
ca.crt, tls.crt, tls.key     the extender's secret:
  kubectl -n $namespace create secret generic flextopo-tls --type=kubernetes.io/tls \\
    --from-file=ca.crt --from-file=tls.crt --from-file=tls.key --dry-run=client -o yaml |
    kubectl apply -f -
  kubectl -n $namespace rollout restart deployment flextopo
ca.crt, client.crt, client.key   each kube-scheduler's machine, in /etc/kubernetes/flextopo
ca.key                       nowhere; keep it safe
END
