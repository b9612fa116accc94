#!/usr/bin/env python3
"""What remembering earlier frames is worth: FB-OCC on the synthetic city with memory and its single-frame twin, several
seeds, one table of the mIoU under the LiDAR mask on held-out scenes.

    tools/temporal_study.py                     seeds 0, 1 and 2
    tools/temporal_study.py --seeds 0 --scenes 4 --keyframes 3 --cfg-options max_epochs=2
    tools/temporal_study.py --no-pretraining    from random weights
    tools/temporal_study.py --configs single=a.py mine=b.py     any configs, gains are over the first

Both see the same frames equally often, and both start from one image branch that has learnt depth and semantics on the
training scenes, as the published model does. Finished trainings are used again; a killed study goes on where it
stopped. The table is printed as Markdown and written to <work-dir>/temporal.md and temporal.json.
"""

import argparse
import json
import sys
from pathlib import Path

from demo import (
    TOOLS,
    add_common_arguments,
    add_pretraining_arguments,
    check_common_arguments,
    named_configs,
    pretraining_of,
    run_study,
)
from stage_runner import duration, resumable, write_atomically
from transfer_study import compare, markdown

FOLDER = TOOLS.parent / 'configs/fbocc'
CONFIGS = {
    'single frame': FOLDER / 'fbocc_synthetic_single.py',
    'eight remembered frames': FOLDER / 'fbocc_synthetic.py',
}
PRETRAINING = FOLDER / 'fbocc_synthetic_depth_pretrain.py'
METRIC, QUANTITY = 'mIoU/lidar_mask', 'mIoU, LiDAR mask'
POINTS = 1.5  # what counts as better, besides more than two standard errors


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--configs', nargs='+', metavar='NAME=FILE', help='default: single frame, eight frames')
    add_pretraining_arguments(parser, str(PRETRAINING))
    parser.add_argument('--city-seed', type=int, default=0, help='(default: %(default)s)')
    add_common_arguments(parser, 'work_dirs/temporal', seeds=(0, 1, 2))
    parser.set_defaults(data_root='data/synthetic_city_drives', keyframes=16)
    args = parser.parse_args(argv)
    args.configs = named_configs(parser, args.configs, CONFIGS)
    check_common_arguments(parser, args, *args.configs.values())
    args.pretraining = pretraining_of(parser, args, dict.fromkeys(args.configs, PRETRAINING))
    return args


@resumable
def main(argv=None) -> int:
    args = parse_args(argv)
    work_dir = Path(args.work_dir)
    results, stages = run_study(args, args.pretraining)
    runs = {name: [each['metrics'][METRIC] for each in seeds] for name, seeds in results.items()}
    rows = compare(runs, POINTS)
    text = f'{len(args.seeds)} seeds, mean ± standard error, IoU in %.\n\n{markdown(rows, "model", QUANTITY, POINTS)}\n'
    print(f'\n{text}\ntime: together {duration(sum(stages.seconds.values()))}')
    write_atomically(work_dir / 'temporal.md', text)
    document = dict(runs=rows, metric=METRIC, seeds=args.seeds, seconds=stages.seconds,
                    pretraining={name: str(path) for name, path in args.pretraining.items()},
                    configs={name: str(path) for name, path in args.configs.items()})  # fmt: skip
    write_atomically(work_dir / 'temporal.json', json.dumps(document, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
