#!/bin/bash
# An S3 service on this machine: Ceph's RADOS Gateway over one monitor and one object store.
#   server.sh FOLDER init|start|stop|status
# `start` initialises an empty FOLDER by itself. All state, keys and logs lie below FOLDER; every
# port is on loopback (but S3_HOST); no root and no systemd. Settings from the environment, read by `init` only:
#   S3_HOST (127.0.0.1)  S3_PORT (7480)  S3_BUCKET (samovar)  S3_SIZE_BYTES (32 GiB, sparse)
#   S3_ACCESS_KEY  S3_SECRET_KEY (made up when unset; they are in FOLDER/credentials.env)
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: $0 FOLDER init|start|stop|status" >&2
    exit 2
fi
folder=$(realpath -m "$1")
action=$2
config=$folder/ceph.conf

for program in radosgw ceph-mon ceph-osd ceph; do
    if ! command -v "$program" >/dev/null; then
        echo "$program is missing: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr ceph-common" >&2
        exit 3
    fi
done

admin() { ceph -c "$config" -k "$folder/keyring" "$@"; }

pid_of() { # role: its process id, empty when it is down; a daemon removes its file when it ends
    local file=$folder/$1.pid
    if [ -s "$file" ] && kill -0 "$(<"$file")" 2>/dev/null \
        && tr '\0' ' ' <"/proc/$(<"$file")/cmdline" | grep -qF "$config"; then
        cat "$file"
    fi
}

free_port() { # an unused loopback port; two calls differ since the kernel counts up
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

random_key() { head -c 24 /dev/urandom | base64 | tr -d '+/=' ; }

write_config() { # paxos intervals: the defaults wait a second for other monitors, of which there are none
    cat >"$config" <<CONFIG
[global]
fsid = $cluster_id
mon host = [v2:127.0.0.1:$monitor_port/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $folder/keyring
run dir = $folder/run
crash dir = $folder/crash
admin socket = $folder/run/\$name.asok
log file = $folder/log/\$name.log
mon cluster log file = $folder/log/cluster.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 1
paxos propose interval = 0.02
paxos min wait = 0.01
[osd]
osd objectstore = bluestore
osd max object name len = 460
osd max object namespace len = 64
osd memory target = 939524096
osd class default list = *
osd class load list = *
bluestore block size = ${S3_SIZE_BYTES:-34359738368}
[client.rgw.a]
rgw frontends = beast endpoint=${S3_HOST:-127.0.0.1}:${S3_PORT:-7480}
rgw data = $folder/rgw
rgw enable usage log = false
rgw dynamic resharding = false
rgw thread pool size = 64
CONFIG
}

write_keys() {
    ceph-authtool --create-keyring "$folder/keyring" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool "$folder/keyring" --gen-key -n client.admin \
        --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool "$folder/keyring" --gen-key -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
    ceph-authtool "$folder/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
}

initialise() {
    if [ -e "$config" ]; then
        echo "$folder holds a service already: start it, or remove the folder first" >&2
        exit 1
    fi
    local cluster_id monitor_port store_id
    cluster_id=$(</proc/sys/kernel/random/uuid)
    store_id=$(</proc/sys/kernel/random/uuid)
    monitor_port=$(free_port)
    umask 077
    mkdir -p "$folder"/{mon.a,osd.0,rgw,log,run,crash}
    write_config
    write_keys >/dev/null
    monmaptool --create --addv a "[v2:127.0.0.1:$monitor_port]" --fsid "$cluster_id" "$folder/monmap" >/dev/null
    ceph-mon -c "$config" -i a --mkfs --mon-data "$folder/mon.a" \
        --monmap "$folder/monmap" --keyring "$folder/keyring"
    start_monitor
    admin auth import -i "$folder/keyring" 2>/dev/null
    admin osd new "$store_id" 0 >/dev/null 2>&1
    admin osd crush add osd.0 1.0 root=default host=localhost 2>/dev/null
    ceph-osd -c "$config" -i 0 --osd-data "$folder/osd.0" --mkfs --osd-uuid "$store_id" \
        --no-mon-config >/dev/null 2>&1
    start_rest
    local access=${S3_ACCESS_KEY:-$(random_key)} secret=${S3_SECRET_KEY:-$(random_key)}
    radosgw-admin -c "$config" -n client.rgw.a -k "$folder/keyring" user create --uid=samovar \
        --display-name=samovar --access-key="$access" --secret-key="$secret" >/dev/null 2>&1
    # without this header curl leaves out a part of what S3 signs
    curl -sf --noproxy '*' -o /dev/null -X PUT --aws-sigv4 aws:amz:us-east-1:s3 --user "$access:$secret" \
        -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$(endpoint)/${S3_BUCKET:-samovar}"
    printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\nAWS_ENDPOINT_URL=%s\n' \
        "$access" "$secret" "$(endpoint)" >"$folder/credentials.env"
    say_up
}

start_monitor() {
    [ -n "$(pid_of mon)" ] || ceph-mon -c "$config" -i a --mon-data "$folder/mon.a" --pid-file "$folder/mon.pid"
}

start_rest() {
    [ -n "$(pid_of osd)" ] || ceph-osd -c "$config" -i 0 --osd-data "$folder/osd.0" \
        --pid-file "$folder/osd.pid" >>"$folder/log/start.log" 2>&1
    [ -n "$(pid_of rgw)" ] || radosgw -c "$config" -n client.rgw.a -k "$folder/keyring" \
        --pid-file "$folder/rgw.pid"
    for _ in $(seq 600); do
        if curl -sf --noproxy '*' -o /dev/null "$(endpoint)/"; then
            return
        fi
        sleep 0.1
    done
    echo "the gateway does not answer at $(endpoint), see $folder/log" >&2
    exit 1
}

stop_one() { # role
    local pid
    pid=$(pid_of "$1")
    [ -n "$pid" ] || return 0
    kill "$pid"
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -9 "$pid"
}

endpoint() { sed -n 's/^rgw frontends = beast endpoint=/http:\/\//p' "$config"; }

say_up() { echo "S3 at $(endpoint); keys: set -a; . $folder/credentials.env"; }

case $action in
init) initialise ;;
start)
    if [ ! -e "$config" ]; then
        initialise
    else
        start_monitor
        start_rest
        say_up
    fi
    ;;
stop)
    for role in rgw osd mon; do stop_one "$role"; done
    echo "stopped"
    ;;
status)
    for role in mon osd rgw; do
        pid=$(pid_of "$role")
        echo "$role ${pid:-down}"
        [ -n "$pid" ] || down=1
    done
    [ -z "${down:-}" ] && echo "$(endpoint)"
    ;;
*)
    echo "usage: $0 FOLDER init|start|stop|status" >&2
    exit 2
    ;;
esac
