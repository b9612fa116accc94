#!/usr/bin/env python3
"""Fusion against camera only and LiDAR only: the same schedule, several seeds, one table (`make ablation`).

    tools/ablation.py                         three configs, seeds 0 and 1
    tools/ablation.py --seeds 0 --cfg-options image_epochs=1 max_epochs=3
    tools/ablation.py --study uniocc          visibility mask, rendering, stronger setting, rendering without 3D labels
    tools/ablation.py --study uniocc-labels --seeds 0 1 2    a tenth of the labels against all, with rendering, teacher
    tools/ablation.py --configs a=configs/x.py b=configs/y.py     any configs

UniOcc's trainings start from an image branch that has learnt depth from the LiDAR's points, once for all of them
(--no-pretraining: from random weights). Finished trainings are used again, those of the other studies in the same
--work-dir, too; a killed run goes on where it stopped. The table is printed as Markdown and written to
<work-dir>/ablation.md and ablation.json (ablation_<study>.* with --study).
"""

import argparse
import json
import math
import sys
from pathlib import Path

from demo import (
    MASKS,
    TOOLS,
    add_common_arguments,
    add_pretraining_arguments,
    check_common_arguments,
    named_configs,
    percent,
    pretraining_of,
    run_study,
)
from stage_runner import duration, resumable, write_atomically
from transfer_study import compare
from transfer_study import markdown as table_of_gains

FOLDER = TOOLS.parent / 'configs/fusion_occ'
CONFIGS = {
    'fusion': FOLDER / 'fusion_occ_synthetic.py',
    'camera only': FOLDER / 'fusion_occ_synthetic_camera.py',
    'LiDAR only': FOLDER / 'fusion_occ_synthetic_lidar.py',
}


UNIOCC = TOOLS.parent / 'configs/uniocc'
STUDIES = {
    'fusion': CONFIGS,
    'uniocc': {
        'all labels, no visibility mask': UNIOCC / 'uniocc_synthetic_labels_nomask.py',
        'all labels': UNIOCC / 'uniocc_synthetic_labels.py',
        'all labels, rendering': UNIOCC / 'uniocc_synthetic.py',
        'stronger setting': UNIOCC / 'uniocc_synthetic_stronger.py',
        'rendering alone': UNIOCC / 'uniocc_synthetic_rendering.py',
    },
    'uniocc-labels': {
        '10 % of the labels': UNIOCC / 'uniocc_synthetic_10percent.py',
        '10 %, rendering': UNIOCC / 'uniocc_synthetic_10percent_rendering.py',
        '10 %, teacher-student': UNIOCC / 'uniocc_synthetic_10percent_teacher.py',
        'all labels': UNIOCC / 'uniocc_synthetic_labels.py',
    },
}
PRETRAINING = dict.fromkeys(
    [*STUDIES['uniocc'], *STUDIES['uniocc-labels']], UNIOCC / 'uniocc_synthetic_depth_pretrain.py'
)
PRETRAINING['stronger setting'] = UNIOCC / 'uniocc_synthetic_stronger_depth_pretrain.py'


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--configs', nargs='+', metavar='NAME=FILE', help='instead of those of --study')
    parser.add_argument('--study', choices=sorted(STUDIES), default='fusion', help='(default: %(default)s)')
    parser.add_argument('--city-seed', type=int, default=0, help='(default: %(default)s)')
    add_pretraining_arguments(parser, "the study's own, if any")
    add_common_arguments(parser, 'work_dirs/ablation', seeds=(0, 1))
    args = parser.parse_args(argv)
    own_configs = bool(args.configs)
    args.configs = named_configs(parser, args.configs, STUDIES[args.study])
    check_common_arguments(parser, args, *args.configs.values())
    default = {} if own_configs else {name: PRETRAINING[name] for name in args.configs if name in PRETRAINING}
    args.pretraining = pretraining_of(parser, args, default)
    return args


def mean(values) -> float:
    """Mean of the values that are there; nan if none is."""
    values = [value for value in values if value is not None and math.isfinite(value)]
    return sum(values) / len(values) if values else math.nan


def markdown(runs: dict) -> str:
    """The tables: mIoU by mask and seed, then IoU by class. ``runs``: name -> results per seed."""
    lines = ['| config | seeds | ' + ' | '.join(f'mIoU, {text}' for text in MASKS.values()) + ' | geometric IoU |']
    lines.append('| --- |' + ' ---: |' * (len(MASKS) + 2))
    for name, results in runs.items():
        cells = []
        for key in [f'mIoU/{mask}' for mask in MASKS] + ['geo_IoU/no_mask']:
            values = [result['metrics'][key] for result in results]
            each = f' ({", ".join(percent(value) for value in values)})' if len(values) > 1 else ''
            cells.append(f'**{percent(mean(values))}**{each}')
        lines.append(f'| {name} | {len(results)} | ' + ' | '.join(cells) + ' |')
    first = next(iter(runs.values()))[0]
    names = [name for name in first['class_names'] if name != 'free']
    lines += ['', '| class, IoU without a mask | ' + ' | '.join(runs) + ' | voxels |']
    lines.append('| --- |' + ' ---: |' * (len(runs) + 1))
    for name in names:
        cells = [percent(mean([r['metrics'][f'IoU/no_mask/{name}'] for r in results])) for results in runs.values()]
        lines.append(f'| {name} | ' + ' | '.join(cells) + f' | {first["voxels"]["no_mask"][name]:,} |')
    return '\n'.join(lines)


@resumable
def main(argv=None) -> int:
    args = parse_args(argv)
    work_dir = Path(args.work_dir)
    runs, stages = run_study(args, args.pretraining)
    samples = next(iter(runs.values()))[0]['samples']
    seeds = (
        f'Mean of {len(args.seeds)} seeds (each in brackets), ' if len(args.seeds) > 1 else f'Seed {args.seeds[0]}, '
    )
    text = f'{seeds}{samples} held-out key frames, IoU in %.\n\n{markdown(runs)}\n'
    if len(args.seeds) > 1:
        mask = 'no_mask' if args.study == 'fusion' else 'lidar_mask'
        scores = {name: [result['metrics'][f'mIoU/{mask}'] for result in results] for name, results in runs.items()}
        text += f'\n{table_of_gains(compare(scores, 0), "config", f"mIoU, {MASKS[mask]}", 0)}\n'
    print(f'\n{text}\ntime: together {duration(sum(stages.seconds.values()))}')
    stem = 'ablation' if args.study == 'fusion' else f'ablation_{args.study}'
    write_atomically(work_dir / f'{stem}.md', text)
    document = {
        name: [
            dict(seed=seed, metrics=result['metrics'], voxels=result['voxels'])
            for seed, result in zip(args.seeds, results)
        ]
        for name, results in runs.items()
    }
    document = dict(runs=document, seconds=stages.seconds, configs={k: str(v) for k, v in args.configs.items()},
                    pretraining={k: str(v) for k, v in args.pretraining.items()})  # fmt: skip
    write_atomically(work_dir / f'{stem}.json', json.dumps(document, indent=1) + '\n')
    print(f'written to {work_dir / stem}.md and {stem}.json')
    return 0


if __name__ == '__main__':
    sys.exit(main())
