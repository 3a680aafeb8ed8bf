#!/bin/sh
# Makes the certificates in this folder: for tests on loopback only, so the keys are no secret.
# They are committed because a machine that runs the tests need not have OpenSSL's command.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# issue NAME SUBJECT_ALT_NAME START END: NAME.pem holds key and certificate.
issue() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -batch \
        -subj "/CN=$1" -keyout "$work/key.pem" -out "$work/request.pem"
    printf 'subjectAltName=%s\n' "$2" > "$work/extensions"
    : > "$work/index"
    openssl ca -batch -notext -rand_serial -config "$work/ca.conf" -startdate "$3" -enddate "$4" \
        -extfile "$work/extensions" -in "$work/request.pem" -out "$work/certificate.pem"
    cat "$work/key.pem" "$work/certificate.pem" > "$1.pem"
}

cat > "$work/ca.conf" <<END
[ca]
default_ca = default
[default]
certificate = ca.pem
private_key = $work/ca.key
new_certs_dir = $work
database = $work/index
serial = $work/serial
default_md = sha256
policy = policy
[policy]
commonName = supplied
END

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -batch -days 36500 \
    -subj "/CN=picback test authority" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout "$work/ca.key" -out ca.pem
issue receiver "DNS:receiver.test,IP:127.0.0.1" 20200101000000Z 21200101000000Z
issue other "DNS:other.test" 20200101000000Z 21200101000000Z
issue expired "DNS:receiver.test,IP:127.0.0.1" 20200101000000Z 20210101000000Z
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -batch -days 36500 \
    -subj "/CN=self-signed" -addext "subjectAltName=DNS:receiver.test,IP:127.0.0.1" \
    -keyout "$work/key.pem" -out "$work/certificate.pem"
cat "$work/key.pem" "$work/certificate.pem" > self-signed.pem
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -batch -days 36500 \
    -subj "/CN=receiver.test" -keyout "$work/key.pem" -out "$work/certificate.pem"
cat "$work/key.pem" "$work/certificate.pem" > common-name.pem
