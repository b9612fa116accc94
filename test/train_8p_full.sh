#!/usr/bin/env bash
# FB-OCC trained in full: 20 epochs at a global batch of 32 on 8 devices, then evaluated with mIoU. See --help.
purpose='FB-OCC trained for 20 epochs at a global batch of 32, evaluated at the end; prints step time, FPS and mIoU.'
config=configs/fbocc/fbocc-r50-cbgs_depth_16f_16x4_20e.py
. "$(dirname "$0")/_train_8p.sh"
[ $((global % (devices * batch))) -eq 0 ] || die "--global-batch $global is no multiple of $devices x $batch"
accumulate=$((global / (devices * batch)))
overrides=()
# the warm-up lasts 200 optimizer steps, and each of them updates the averaged weights once
[ "$accumulate" -eq 1 ] || overrides=(
    optim_wrapper.accumulative_counts="$accumulate"
    param_scheduler.0.end="$((200 * accumulate))"
    custom_hooks.1.interval="$accumulate"
)
run_training full ${overrides[@]+"${overrides[@]}"}
