#!/usr/bin/env bash
# tools/slurm_test.sh PARTITION JOB_NAME CONFIG CKPT [arguments of test.py ...]; environment as in slurm_train.sh
. "$(dirname "$0")/_launch.sh"
need_arguments 4 "PARTITION JOB_NAME CONFIG CKPT [arguments of test.py]" "$@"
partition=$1
job=$2
config=$3
checkpoint=$4
shift 4
need_file config "$config"
need_file checkpoint "$checkpoint"
slurm "$partition" "$job" test.py "$config" "$checkpoint" "$@"
