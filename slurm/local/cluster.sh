#!/usr/bin/env bash
# A real Slurm on this machine, to try things out and for `make test-slurm`. Its nodes are hosts of their own: network and
# hostname namespaces on a bridge, so that names and addresses carry the traffic and a cable can be cut. Each has one of this
# machine's cores (in turns, if there are too few): trainings that all took all of them would mostly wait for each other.
#   slurm/local/cluster.sh up DIR [NODES]     as root; needs Debian's slurm-wlm, munge, iproute2 and python3; all it writes is in DIR
#   SLURM_CONF=DIR/slurm.conf sbatch ...      partitions `main` (requeued when pre-empted) and `urgent`; network interface `e0`
#   slurm/local/cluster.sh cut DIR NODE       pull out a node's cable
#   slurm/local/cluster.sh mend DIR NODE      put it in again; a node whose processes are all dead starts anew
#   slurm/local/cluster.sh down DIR
set -euo pipefail
COMMAND=$1 DIR=$(mkdir -p "$2" && cd "$2" && pwd)
HOST=$(hostname -s)

# NUMBER tells clusters of one machine apart, those left behind by a kill too: bridge, networks, addresses and port follow from it.
named() { TAG=vs$NUMBER NET=10.$((80 + NUMBER)).0 PORT=$((16000 + NUMBER)); }

claim() {
  for NUMBER in $(seq 0 99); do
    named
    if [[ -e /run/netns/$TAG-0 || -n $(ss -Hltn "sport = :$PORT") ]]; then continue; fi
    if ip link add "$TAG" type bridge 2>/dev/null; then echo "$NUMBER" >"$DIR/number" && return; fi
  done
  echo "no bridge could be made: is this root, with the right to make networks?" >&2
  exit 1
}

nodes() { find "$DIR" -maxdepth 1 -name 'spool.node*' -printf '%f\n' | sed 's/spool.node//' | sort -n; }

configure() {
  local last=$(($1 - 1)) n
  cat >"$DIR/slurm.conf" <<EOF
ClusterName=local
SlurmctldHost=$HOST($NET.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.%n.log
SlurmctldPort=$PORT
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0
KillWait=10
PartitionName=main Nodes=node[0-$last] Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=node[0-$last] State=UP PriorityTier=10
EOF
  for ((n = 0; n <= last; n++)); do
    echo "NodeName=node$n NodeAddr=$NET.$((10 + n)) NodeHostname=node$n Port=17001 CPUs=2 RealMemory=4000" >>"$DIR/slurm.conf"
    echo "$NET.$((10 + n)) node$n"
  done | cat - /etc/hosts >"$DIR/hosts" # as the hosts will see it
}

wire() { # a host's cable
  ip netns add "$TAG-$1"
  ip link add "$TAG-$1" type veth peer name e0 netns "$TAG-$1"
  ip link set "$TAG-$1" master "$TAG" up
  nsenter --net="/run/netns/$TAG-$1" sh -c "ip address add $NET.$((10 + $1))/24 dev e0; ip link set e0 up; ip link set lo up"
}

start() { # `ip netns exec` would hide /sys/fs/cgroup, which slurmd needs
  local run="mount --bind '$DIR/hosts' /etc/hosts; hostname node$1; exec slurmd -N node$1 -f '$DIR/slurm.conf'"
  local cores
  read -ra cores <<<"$(python3 -c 'import os; print(*os.sched_getaffinity(0))')"
  taskset --cpu-list "${cores[$1 % ${#cores[@]}]}" nsenter --net="/run/netns/$TAG-$1" unshare --uts --mount sh -ec "$run"
}

# After a cut cable, or a kill of all of its processes.
mend() {
  ip link set "$TAG-$1" up
  kill -0 "$(cat "$DIR/slurmd.node$1.pid")" 2>/dev/null || start "$1"
  SLURM_CONF=$DIR/slurm.conf scontrol update NodeName="node$1" State=RESUME 2>/dev/null || true # or it comes by itself
}

up() {
  if [[ -f $DIR/number ]]; then echo "$DIR has a cluster that was not taken down; do that first, or give another directory" >&2 && exit 1; fi
  command -v slurmctld slurmd munged ip ss python3 >/dev/null || { echo "missing; apt-get install slurm-wlm munge iproute2 python3" >&2; exit 1; }
  install -d -o munge /run/munge /var/log/munge /var/lib/munge
  munge -n >/dev/null 2>&1 || runuser -u munge -- munged || munge -n >/dev/null # another cluster has started it just now
  claim
  configure "$1"
  ip address add "$NET.1/24" dev "$TAG"
  ip link set "$TAG" up
  mkdir -p "$DIR/state"
  slurmctld -c -f "$DIR/slurm.conf"
  for ((n = 0; n < $1; n++)); do
    mkdir -p "$DIR/spool.node$n"
    wire "$n"
    start "$n"
  done
  for _ in $(seq 100); do
    [[ $(SLURM_CONF=$DIR/slurm.conf sinfo --noheader --Node --partition main --states idle --format %N | wc -l) == "$1" ]] && return
    sleep 0.5
  done
  echo "not all nodes came up within 50 s; see $DIR/slurmd.*.log" >&2
  exit 1
}

down() {
  SLURM_CONF=$DIR/slurm.conf scancel --user root --full --signal KILL 2>/dev/null || true
  for file in "$DIR"/slurmd.*.pid "$DIR"/slurmctld.pid; do
    if [[ -f $file ]]; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
  for n in $(nodes); do
    ip netns pids "$TAG-$n" 2>/dev/null | xargs --no-run-if-empty kill -9 2>/dev/null || true
    ip netns delete "$TAG-$n" 2>/dev/null || true
  done
  ip link delete "$TAG" 2>/dev/null || true
  rm "$DIR/number"
}

if [[ $COMMAND != up ]]; then
  [[ -f $DIR/number ]] || { echo "no cluster is up in $DIR" >&2; exit 1; }
  NUMBER=$(cat "$DIR/number") && named
fi
case $COMMAND in
  up) up "${3:-2}" ;;
  cut) ip link set "$TAG-${3#node}" down ;;
  mend) mend "${3#node}" ;;
  down) down ;;
  *) echo "usage: $0 up|down|cut|mend DIR ..." >&2; exit 2 ;;
esac
