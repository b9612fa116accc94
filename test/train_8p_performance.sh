#!/usr/bin/env bash
# How fast is a training step of FB-OCC? 600 steps on 8 devices of 4 samples, no evaluation; prints the mean step time
# and FPS = samples of a step / step time. See --help.
purpose='600 training steps of FB-OCC without evaluation; prints the mean step time and FPS (samples a second).'
config=configs/fbocc/fbocc-r50-cbgs_depth_16f_8x4_perf.py
. "$(dirname "$0")/_train_8p.sh"
[ "$steps" -gt "$warmup" ] || die "--steps $steps leaves nothing after --warmup $warmup"
run_training perf train_cfg.max_iters="$steps"
