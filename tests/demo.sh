#!/usr/bin/env bash
# `make demo`: builds what a node runs, starts a test host, and there does by hand what a kubelet
# does: an image pulled from a registry, a pod in its own microVM with two containers, looks at it
# from all sides, takes it away, and proves that nothing is left. Fails if any of it is not so.
#
#   demo.sh          all of it (BULKHEAD_BIN_DIR: what to run, if it is built already)
#   demo.sh inside   the part that runs in the test host
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
say() { printf '==> %s\n' "$*" >&2; }

outside() {
    export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$top/target}
    local profile=fast registry tools
    cd "$top"
    if [ -z "${BULKHEAD_BIN_DIR:-}" ]; then
        say "building what a node runs (the first time: the guest kernel too, about 15 minutes on two cores)"
        BULKHEAD_BIN_DIR=$(packaging/build.sh $profile)
    fi
    say "building the program that makes the test images"
    cargo build --locked --quiet --profile $profile -p bulkhead-tests --bin bulkhead-test-images >&2
    say "images for the registry, crictl (from the cache after the first time)"
    registry=$(tests/images/registry.sh "$CARGO_TARGET_DIR/$profile/bulkhead-test-images")
    tools=$(tests/go-tools.sh)
    export BULKHEAD_BIN_DIR BULKHEAD_REGISTRY=$registry BULKHEAD_GO_TOOLS=$tools BULKHEAD_DEMO_TTY=
    ! [ -t 1 ] || BULKHEAD_DEMO_TTY=yes
    say "starting the test host"
    exec tests/host/run.sh --timeout 1200 --copy "$BULKHEAD_BIN_DIR" --copy "$tools" --ro "$registry" -- "$top/tests/demo.sh" inside
}

# What the parts below share.
bold='' dim='' plain=''
[ -z "${BULKHEAD_DEMO_TTY:-}" ] || { bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; }
step=0
heading() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" $step "$*" "$plain"; }
note() { printf '%s# %s%s\n' "$dim" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }
# Runs a command that prints one word, shows it, and keeps it in the variable named first.
run_to() {
    local variable=$1 got
    shift
    printf '%s$ %s%s\n' "$bold" "$*" "$plain"
    got=$("$@")
    printf '%s\n' "$got"
    printf -v "$variable" %s "$got"
}
fail() { printf '\n%sdemo: %s%s\n' "$bold" "$*" "$plain" >&2; exit 1; }
# Waits until a command succeeds: eventually SECONDS WHAT COMMAND…
eventually() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "waited too long for $what"
        read -rt 0.3 <> <(:) || true
    done
}

# Everything a pod could leave behind, one thing a line.
traces() {
    local pid
    for pid in /proc/[0-9]*; do
        case $(cat "$pid/comm" 2>/dev/null) in
        bulkhead-vmm* | bridge | portmap | host-local) echo "process ${pid#/proc/} $(cat "$pid/comm" 2>/dev/null)" ;;
        esac
    done
    # The directory that holds the pods' namespaces becomes a mount with the first pod.
    awk '{ print "mount " $5 }' /proc/self/mountinfo | grep -v '/netns$' || true
    # The bridge belongs to the network and not to a pod; CNI keeps it.
    ip -o link | awk -F': ' '{ sub(/@.*/, "", $2); print "link " $2 }' | grep -v ' bulkhead0$' || true
    # The daemon's own parent for pods that name none stays, empty.
    find /sys/fs/cgroup -type d ! -path /sys/fs/cgroup/bulkhead -printf 'cgroup %p\n'
    find "$run_dir/pods" "$run_dir/netns" /var/run/netns/ "$state_dir/pods" "$state_dir/cni" -mindepth 1 -printf 'file %p\n' 2>/dev/null || true
    find "$dir/leases" -name '*[.:]*' ! -name 'last_reserved_ip.*' -printf 'lease %f\n' 2>/dev/null || true
    iptables-save -t nat 2>/dev/null | sed -n 's/^\(-A CNI-DN-.*\)/rule \1/p'
}

inside() {
    export PATH="$BULKHEAD_BIN_DIR:$BULKHEAD_GO_TOOLS:$PATH"
    dir=$(mktemp -d /tmp/bulkhead-demo.XXXXXX)
    run_dir=/run/bulkhead state_dir=/var/lib/bulkhead
    daemon='' registry=''
    trap finish EXIT
    cd "$dir"
    configure

    heading "A registry and the daemon"
    docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
    registry=$!
    eventually 60 "the registry" curl -sf http://127.0.0.1:5000/v2/
    note "registry: Debian's docker-registry on 127.0.0.1:5000"
    printf '%s$ bulkhead serve --config config.toml &%s\n' "$bold" "$plain"
    bulkhead serve --config "$dir/config.toml" >"$dir/daemon.log" 2>&1 &
    daemon=$!
    eventually 60 "the daemon's socket" test -S $run_dir/bulkhead.sock
    run crictl version

    heading "An image"
    run bulkhead pull --config config.toml 127.0.0.1:5000/nginx:latest
    run crictl pull 127.0.0.1:5000/busybox:latest
    run crictl images
    traces | LC_ALL=C sort -u >before

    heading "A pod: a virtual machine of its own"
    note "host port 8080 goes to port 80 of the pod"
    run_to pod crictl runp pod.json
    run crictl pods
    local ip
    ip=$(crictl inspectp -o json "$pod" | jq -r .status.network.ip)
    note "its address: $ip"

    heading "Two containers in it"
    local web client
    run_to web crictl create "$pod" nginx.json pod.json
    run crictl start "$web"
    run_to client crictl create "$pod" client.json pod.json
    run crictl start "$client"
    run crictl ps

    heading "The kernel in there is another one"
    local host_kernel guest_kernel
    run_to host_kernel uname -r
    run_to guest_kernel crictl exec -s "$client" uname -r
    [ "$host_kernel" != "$guest_kernel" ] || fail "the pod runs on the host's kernel"

    heading "They share the pod's network: the client fetches the page from 127.0.0.1"
    eventually 120 "the client's output" grep -q 'fetched' "$dir/logs/client.log"
    run crictl logs "$client"
    # Not through a pipe to grep -q, which leaves crictl with nobody to write to.
    local page
    page=$(crictl logs "$client" 2>&1)
    [[ $page == *'Welcome to nginx in a microVM'* ]] || fail "the client did not get nginx's page"
    run crictl logs "$web"

    heading "The host reaches it: by the pod's address, and by the host port"
    run curl -sS --max-time 30 "http://$ip/" | tee page
    grep -q 'Welcome to nginx' page || fail "the pod's address gave no page"
    run curl -sS --max-time 30 "http://10.85.0.1:8080/" | tee page
    grep -q 'Welcome to nginx' page || fail "the host port gave no page"

    heading "Exec, and what it costs"
    run crictl exec -s "$client" ps
    # crictl clears the screen first.
    run crictl stats | sed 's,\x1b\[[0-9;]*[A-Z],,g'
    note "on the host: the daemon, and one unprivileged process for the pod"
    run ps -C bulkhead,bulkhead-vmm -o pid,user:12,rss:8,nlwp,args --cols 110
    [ "$(pgrep -c -x bulkhead-vmm)" = 1 ] || fail "not exactly one VMM process"
    [ "$(stat -c %u "/proc/$(pgrep -x bulkhead-vmm)")" != 0 ] || fail "the VMM runs as root"

    heading "How the pod came up (milliseconds; steps overlap)"
    printf '%s$ crictl inspectp %.13s | jq .info.phases%s\n' "$bold" "$pod" "$plain"
    crictl inspectp -o json "$pod" >inspect.json
    jq -re '(.info.phases // error("no phases in the pod status"))[] | [.name, (.started_ms | floor), (.took_ms | floor)] | @tsv' inspect.json \
        | awk -F'\t' 'BEGIN { printf "%-22s %9s %9s\n", "step", "began", "took" } { printf "%-22s %9d %9d\n", $1, $2, $3 }'

    heading "The short form: one pod, one container, one command"
    run bulkhead run --config config.toml 127.0.0.1:5000/busybox:latest sh -c 'echo "hello from $(uname -sr)"' | tee hello
    grep -q "hello from Linux $guest_kernel" hello || fail "the container's output did not arrive"

    heading "All of it taken away"
    run crictl stop "$client" "$web"
    run crictl rm "$client" "$web"
    run crictl stopp "$pod"
    run crictl rmp "$pod"
    run crictl rmi 127.0.0.1:5000/busybox:latest 127.0.0.1:5000/nginx:latest
    run crictl pods
    nothing_left
    stop_daemon
    heading "Done: pulled, run, looked at, gone; ${SECONDS} s in all"
}

nothing_left() {
    note "is anything left of it? Processes, mounts, links, cgroups, files, leases, NAT rules, compared with before:"
    local deadline=$((SECONDS + 20))
    while :; do
        traces | LC_ALL=C sort -u >after
        LC_ALL=C comm -13 before after >left
        [ -s left ] || break
        if [ $SECONDS -ge $deadline ]; then
            cat left
            fail "the things above are left"
        fi
        read -rt 0.5 <> <(:) || true
    done
    [ -z "$(find $state_dir/images/layers -type f 2>/dev/null)" ] || fail "layers are left: $(ls $state_dir/images/layers)"
    local kind
    for kind in process mount link cgroup file lease rule; do
        printf '%-8s before %4d   after %4d   new 0\n' $kind "$(grep -c "^$kind " before)" "$(grep -c "^$kind " after)" || true
    done
}

stop_daemon() {
    kill "$daemon"
    local deadline=$((SECONDS + 30))
    while kill -0 "$daemon" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || fail "the daemon does not end on SIGTERM"
        read -rt 0.2 <> <(:) || true
    done
    wait "$daemon" || fail "the daemon ended with status $?"
    daemon=
}

# The script's end, good or bad: nothing of it stays; after a failure the daemon's last words.
finish() {
    local status=$?
    if [ $status != 0 ]; then
        printf '\ndemo: failed (status %d). The daemon said last:\n' $status >&2
        tail -n 30 "$dir/daemon.log" >&2 2>/dev/null || true
    fi
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null || true
    [ -z "$registry" ] || kill "$registry" 2>/dev/null || true
    cd /
    rmdir /sys/fs/cgroup/bulkhead-demo 2>/dev/null || true
    rm -rf "$dir"
    exit $status
}

configure() {
    mkdir -p "$dir/cni" "$dir/logs" "$dir/leases"
    # A kubelet makes the pods' parents, and takes them away.
    mkdir -p /sys/fs/cgroup/bulkhead-demo
    # The packaged network, its leases kept in this run's folder.
    jq --arg leases "$dir/leases" '.plugins[0].ipam.dataDir = $leases' "$top/packaging/cni/10-bulkhead.conflist" >"$dir/cni/10-bulkhead.conflist"
    cat >"$dir/config.toml" <<CONFIG
[vmm]
binary = "$BULKHEAD_BIN_DIR/bulkhead-vmm"
kernel = "$BULKHEAD_BIN_DIR/vmlinux"
initramfs = "$BULKHEAD_BIN_DIR/initramfs.cpio"
[network]
cni_conf_dir = "$dir/cni"
[cgroup]
driver = "cgroupfs"
[registry]
config_dir = "$dir/certs.d"
CONFIG
    cat >"$dir/registry.yml" <<CONFIG
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $BULKHEAD_REGISTRY}
  maintenance: {readonly: {enabled: true}}
http: {addr: 127.0.0.1:5000}
CONFIG
    cat >"$dir/crictl.yaml" <<CONFIG
runtime-endpoint: unix://$run_dir/bulkhead.sock
image-endpoint: unix://$run_dir/bulkhead.sock
timeout: 120
CONFIG
    export CRI_CONFIG_FILE=$dir/crictl.yaml
    cat >"$dir/pod.json" <<POD
{"metadata": {"name": "web", "namespace": "demo", "uid": "demo-1", "attempt": 0}, "hostname": "web",
 "log_directory": "$dir/logs", "linux": {"cgroup_parent": "/bulkhead-demo"},
 "port_mappings": [{"protocol": 0, "container_port": 80, "host_port": 8080}]}
POD
    cat >"$dir/nginx.json" <<'CONTAINER'
{"metadata": {"name": "nginx"}, "image": {"image": "127.0.0.1:5000/nginx:latest"}, "log_path": "nginx.log"}
CONTAINER
    cat >"$dir/client.json" <<'CONTAINER'
{"metadata": {"name": "client"}, "image": {"image": "127.0.0.1:5000/busybox:latest"}, "log_path": "client.log",
 "command": ["/bin/sh", "-c", "until wget -q -O - http://127.0.0.1/; do sleep 1; done; echo fetched; exec sleep 100000"]}
CONTAINER
}

case ${1:-} in
'') outside ;;
inside) inside ;;
*) sed -n '2,/^set /p' "$0" | sed '$d' >&2; exit 2 ;;
esac
