#!/usr/bin/env bash
# A real SLURM on one machine, for development and the tests: Debian's slurm-wlm and munge, without systemd or cgroups.
#
#   bash scripts/slurm.sh install        apt-get install slurm-wlm munge, where they are missing (needs root)
#   bash scripts/slurm.sh start|stop     munged, slurmctld and slurmd, started and stopped by their process ids
#   bash scripts/slurm.sh lose|return    the nodes disappear with all that runs on them, and come back
#   bash scripts/slurm.sh status         sinfo and squeue
#   bash scripts/slurm.sh run CMD...     CMD with sbatch, squeue, sacct, ... of this SLURM
#
# Everything is kept in $SLURM_DEV (default .slurm-dev). SLURM_DEV_PORT, SLURM_DEV_CPUS and
# SLURM_DEV_MEM (MiB) shape it; SLURM_DEV_NODES=2 pretends to be dev1 and dev2 (jobs need `export MASTER_ADDR=127.0.0.1`).
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
here="$(realpath -m "${SLURM_DEV:-.slurm-dev}")"
port="${SLURM_DEV_PORT:-26817}"
nodes="$(hostname -s)"
[ "${SLURM_DEV_NODES:-1}" = 1 ] || nodes="$(seq -f 'dev%g' -s ' ' "$SLURM_DEV_NODES")"
export SLURM_CONF="$here/slurm.conf"

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

missing() { ! type slurmctld slurmd munged sbatch >/dev/null 2>&1; }

install_packages() {
    missing || return 0
    [ "$(id -u)" = 0 ] && type apt-get >/dev/null 2>&1 || die "slurm-wlm and munge are missing: install them as root (Debian, Ubuntu: apt-get install slurm-wlm munge)"
    timeout 120 apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null || die "slurm-wlm and munge could not be installed"
}

configure() {
    local name node node_port="$port"
    name="$(hostname -s)"
    install -d -m 755 "$here" "$here/state" "$here/spool" "$here/log" "$here/bin" "$here/munge"
    [ -s "$here/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$here/munge/key")
    cat >"$SLURM_CONF" <<CONF
ClusterName=dev
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool/%n
SlurmctldPidFile=$here/slurmctld.slurm-pid
SlurmdPidFile=$here/%n.slurm-pid
SlurmctldLogFile=$here/log/slurmctld.log
SlurmdLogFile=$here/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
JobRequeue=1
DefMemPerCPU=2000
MinJobAge=86400
KillWait=5
SlurmdTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for node in $nodes; do
        install -d -m 755 "$here/spool/$node"
        node_port=$((node_port + 1))
        echo "NodeName=$node NodeHostname=$name NodeAddr=127.0.0.1 Port=$node_port CPUs=${SLURM_DEV_CPUS:-4} RealMemory=${SLURM_DEV_MEM:-16000} State=UNKNOWN"
    done >>"$SLURM_CONF"
    # Without accounting there is no sacct, and submitit asks it for the state of jobs: scontrol knows it as well.
    cat >"$here/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
# sacct -o JobID,State,NodeList --parsable2 -j ID ..., from scontrol.
echo 'JobID|State|NodeList'
for argument in "$@"; do
    case "$argument" in '' | *[!0-9_]*) continue ;; esac
    scontrol -o show job "$argument" 2>/dev/null | awk '
        function value(key) { return match($0, "(^| )" key "=[^ ]*") ? substr($0, RSTART, RLENGTH) : "" }
        function plain(key,  v) { v = value(key); sub("^ ?" key "=", "", v); return v }
        {
            id = plain("JobId"); array = plain("ArrayJobId"); task = plain("ArrayTaskId")
            if (task == "4294967294") task = "0-1000"  # cancelled before they began: which ones is forgotten; the others follow
            if (array != "") id = array "_" (task ~ /[^0-9]/ ? "[" task "]" : task)
            print id "|" plain("JobState") "|" plain("NodeList")
        }'
done
SACCT
    chmod +x "$here/bin/sacct"
}

# launch NAME READY... -- CMD...: start a daemon, wait until READY succeeds
launch() {
    local name="$1" ready=()
    shift
    while [ "$1" != -- ]; do ready+=("$1"); shift; done
    shift
    setsid "$@" </dev/null >"$here/log/$name.out" 2>&1 &
    echo $! >"$here/$name.pid"
    for _ in $(seq 300); do
        kill -0 "$(cat "$here/$name.pid")" 2>/dev/null || break
        if timeout 10 "${ready[@]}" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    tail -n 5 "$here/log/$name.out" >&2
    stop
    die "$name did not start (see $here/log)"
}

idle() { [[ "$(sinfo -h -n "$1" -o %T)" =~ ^(idle|mixed|allocated)$ ]]; }
export -f idle

start_nodes() {
    local node
    for node in $nodes; do launch "slurmd-$node" bash -c "idle $node" -- slurmd -D -N "$node" -f "$SLURM_CONF"; done
}

start() {
    missing && die "slurm-wlm and munge are missing: bash scripts/slurm.sh install"
    [ -f "$here/slurmctld.pid" ] && kill -0 "$(cat "$here/slurmctld.pid")" 2>/dev/null && return
    configure
    launch munged munge -n -S "$here/munge/socket" -- munged --foreground --force --key-file="$here/munge/key" \
        --socket="$here/munge/socket" --pid-file="$here/munge/pid" --log-file="$here/log/munged.log" --seed-file="$here/munge/seed"
    launch slurmctld scontrol ping -- slurmctld -D -f "$SLURM_CONF"
    start_nodes
}

# halt NAME [SIGNAL]: end a daemon by its process id
halt() {
    local pid
    [ -f "$here/$1.pid" ] || return 0
    pid="$(cat "$here/$1.pid")"
    kill "-${2:-TERM}" "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$here/$1.pid"
}

# The processes of a SLURM of this folder that run jobs, and all that they started.
job_processes() {
    local step
    for step in $(pgrep -x slurmstepd || true); do
        grep -qzxF "SLURM_CONF=$SLURM_CONF" "/proc/$step/environ" 2>/dev/null && descendants "$step"
    done
}
descendants() {
    local child
    echo "$1"
    for child in $(pgrep -P "$1" || true); do descendants "$child"; done
}

lose() {
    local doomed node
    for node in $nodes; do halt "slurmd-$node" KILL; done
    doomed="$(job_processes)"
    # shellcheck disable=SC2086
    [ -z "$doomed" ] || kill -9 $doomed 2>/dev/null || true
}

stop() {
    timeout 10 scancel -u "$(id -un)" 2>/dev/null || true
    for _ in $(seq 100); do [ -z "$(timeout 5 squeue -h 2>/dev/null || true)" ] && break; sleep 0.1; done
    for name in $(printf 'slurmd-%s ' $nodes) slurmctld munged; do halt "$name"; done
}

case "${1:-}" in
    install) install_packages ;;
    start) start ;;
    stop) stop ;;
    lose) lose ;;
    return) start_nodes ;;
    status) sinfo && squeue ;;
    run) shift && PATH="$here/bin:$PATH" exec "$@" ;;
    *) die "usage: bash scripts/slurm.sh install|start|stop|lose|return|status|run CMD..." ;;
esac
