#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CKPT GPUS [arguments of test.py ...]; nodes as in dist_train.sh
. "$(dirname "$0")/_launch.sh"
need_arguments 3 "CONFIG CKPT GPUS [arguments of test.py]" "$@"
config=$1
checkpoint=$2
gpus=$3
shift 3
need_file config "$config"
need_file checkpoint "$checkpoint"
need_number GPUS "$gpus"
launch "$gpus" test.py "$config" "$checkpoint" "$@"
