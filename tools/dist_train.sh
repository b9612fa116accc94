#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [arguments of train.py ...]
# One process a GPU; without any GPU so many processes on the CPU (gloo).
# Several nodes: NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG GPUS, on each node.
. "$(dirname "$0")/_launch.sh"
need_arguments 2 "CONFIG GPUS [arguments of train.py]" "$@"
config=$1
gpus=$2
shift 2
need_file config "$config"
need_number GPUS "$gpus"
launch "$gpus" train.py "$config" "$@"
