#!/usr/bin/env bash
# Fine-tuning of a multi-task BEVFusion on a vehicle of one's own.
#   scripts/finetune_custom_dataset.sh [PRETRAINED [GPUS]] [further arguments of tools/train.py]
# PRETRAINED, GPUS and CONFIG may also be set in the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

pretrained=${1:-${PRETRAINED:-runs/run-326653dc-74184412/latest.pth}}
gpus=${2:-${GPUS:-8}}
shift $(($# < 2 ? $# : 2))
config=${CONFIG:-configs/custom/bevfusion_4cam_80lidar_finetune.yaml}

if [ ! -f "$pretrained" ]; then
    echo "error: $pretrained: no such checkpoint (first argument, or PRETRAINED)" >&2
    exit 2
fi
echo "fine-tuning $config from $pretrained on $gpus processes"
exec ./tools/dist_train.sh "$config" "$gpus" --load_from "$pretrained" --data.workers_per_gpu 0 "$@"
