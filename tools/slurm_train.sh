#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py ...]
# GPUS (8) processes in all, GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS in the environment.
. "$(dirname "$0")/_launch.sh"
need_arguments 4 "PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]" "$@"
partition=$1
job=$2
config=$3
work_dir=$4
shift 4
need_file config "$config"
slurm "$partition" "$job" train.py "$config" --work-dir "$work_dir" "$@"
