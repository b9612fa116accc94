# Sourced by the launchers of this folder: checks arguments, finds the environment, starts torchrun.
set -euo pipefail
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() {
    echo "error: $1" >&2
    exit 2
}

need_arguments() { # COUNT USAGE "$@"
    local count=$1 usage=$2
    shift 2
    [ $# -ge "$count" ] || die "usage: $(basename "$0") $usage"
}

need_file() {
    [ -f "$2" ] || die "$2: no such $1 file"
}

need_number() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1: a number of processes is expected, found '$2'"
}

# PYTHON, else the active environment, else the one that make setup made
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
        echo "$tools/../.venv/bin/python"
    else
        echo python
    fi
}

launch() { # PROCESSES TOOL ARGUMENTS...
    local processes=$1 tool=$2
    shift 2
    local address=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}")
    if [ "${NNODES:-1}" -gt 1 ]; then
        [ -n "${MASTER_ADDR:-}" ] || die "NNODES=$NNODES needs MASTER_ADDR, the first node's address"
        address+=(--master_addr="$MASTER_ADDR" --master_port="${PORT:-${MASTER_PORT:-29500}}")
    elif [ -n "${PORT:-${MASTER_PORT:-}}" ]; then
        address+=(--master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-$MASTER_PORT}")
    else
        address+=(--rdzv_backend=c10d --rdzv_endpoint=localhost:0) # a free port: several jobs can share a node
    fi
    # torchrun sets one thread for each process where nothing is said
    exec "$(find_python)" -m torch.distributed.run "${address[@]}" --nproc_per_node="$processes" \
        "$tools/$tool" "$@" --launcher pytorch
}

slurm() { # PARTITION JOB TOOL ARGUMENTS...
    local partition=$1 job=$2 tool=$3
    shift 3
    local gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
    need_number GPUS "$gpus"
    need_number GPUS_PER_NODE "$per_node"
    [ "$gpus" -ge "$per_node" ] || per_node=$gpus
    command -v srun >/dev/null || die "srun is not on the PATH: start on a Slurm login node, or use dist_${tool%.py}.sh"
    # shellcheck disable=SC2086  # SRUN_ARGS is a list
    exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "$(find_python)" -u "$tools/$tool" "$@" --launcher slurm
}
