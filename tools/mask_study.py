#!/usr/bin/env python3
"""What the mask of the training does and what the metric's mask does, measured apart, on the synthetic city.

FusionOcc is trained over all voxels and over those that a camera observes, each from random weights and from a
camera-only model's image backbone (as BEVDet's is used), and every model is scored without a mask, under the camera
mask, under the LiDAR mask and by RayIoU. The masked models are then trained on for a few epochs over all voxels.

    tools/mask_study.py                        seeds 0 and 1
    tools/mask_study.py --seeds 0 --scenes 4 --keyframes 6 --cfg-options image_epochs=1 max_epochs=2

Finished trainings are used again; a killed study goes on where it stopped. The tables are printed as Markdown and
written to <work-dir>/mask_study.md and mask_study.json.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import _cli
from ablation import mean
from demo import (
    MASKS,
    TOOLS,
    add_common_arguments,
    check_common_arguments,
    config_overrides,
    has_fast_bfloat16,
    make_city,
    percent,
    train_and_test,
)
from stage_runner import StageRunner, clear_work_dir, duration, last_checkpoint, read_results, resumable
from stage_runner import write_atomically as write

FOLDER = TOOLS.parent / 'configs/fusion_occ'
STARTS = {'scratch': 'random weights', 'pretrained': "a camera model's backbone"}
MASKED = {False: 'all voxels', True: 'camera mask'}
QUANTITIES = {
    **{f'mIoU/{mask}': f'mIoU, {text}' for mask, text in MASKS.items()},
    'RayIoU': 'RayIoU',
    'geo_IoU/no_mask': 'geometric IoU, no mask',
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--config', type=Path, default=FOLDER / 'fusion_occ_synthetic.py', help='with a field use_mask')
    parser.add_argument(
        '--pretraining',
        type=Path,
        default=FOLDER / 'fusion_occ_synthetic_camera.py',
        help='config of the model that gives its img_backbone',
    )
    parser.add_argument('--finetune-epochs', type=int, default=2, help='over all voxels, after a masked training')
    parser.add_argument('--finetune-lr', type=float, help="their learning rate (default: a fifth of the config's)")
    parser.add_argument('--city-seed', type=int, default=0, help='(default: %(default)s)')
    add_common_arguments(parser, 'work_dirs/mask_study', seeds=(0, 1))
    args = parser.parse_args(argv)
    check_common_arguments(parser, args, args.config, args.pretraining)
    if args.finetune_epochs < 1:
        parser.error('--finetune-epochs must be 1 or more')
    return args


def study(stages, args, amp) -> dict:
    """{(start, training): results of each seed}."""
    runs = {}
    work_dir = Path(args.work_dir)
    for seed in args.seeds:
        overrides = config_overrides(args.data_root, seed, args.cfg_options)

        def run(name, config, options, after=('city',), seed=seed, overrides=overrides):
            folder = work_dir / f'{name.replace(" ", "_").replace(",", "")}_seed{seed}'
            label = f'{name}, seed {seed}'
            results = train_and_test(stages, label, config, folder, overrides, amp, train_options=options, after=after)
            return folder / 'training', f'{label}: training', read_results(results)

        source, source_stage, _ = run('pretraining', args.pretraining, [])
        backbone = [f'+load_from.path={last_checkpoint(source)}', '+load_from.take=[img_backbone]']
        for start, text in STARTS.items():
            loaded, after = (backbone, ('city', source_stage)) if start == 'pretrained' else ([], ('city',))
            for masked, trained in MASKED.items():
                name = f'{start}, {trained}'
                folder, stage, results = run(name, args.config, [f'use_mask={masked}', *loaded], after)
                runs.setdefault((text, trained), []).append(results)
                if masked:
                    further = [f'+load_from.path={last_checkpoint(folder)}', 'use_mask=False']
                    further += ['image_epochs=0', f'max_epochs={args.finetune_epochs}', f'lr={finetune_rate(args)}']
                    _, _, results = run(f'{name}, then all', args.config, further, ('city', stage))
                    runs.setdefault((text, f'{trained}, then all voxels'), []).append(results)
    return runs


def finetune_rate(args) -> float:
    if args.finetune_lr is not None:
        return args.finetune_lr
    _cli.use_this_checkout()
    from occforge.engine import load_config

    given = [option.split('=')[1] for option in args.cfg_options if option.split('=')[0] == 'lr']
    return float(given[-1] if given else load_config(args.config).lr) / 5


def average(results, key) -> float:
    return mean([result['metrics'].get(key) for result in results])


def difference(a: float, b: float) -> str:
    return f'{a - b:+.1f}' if math.isfinite(a - b) else '-'


def markdown(runs: dict) -> str:
    """The table of all models, then each mask's share in the gap between the two usual numbers."""
    lines = ['| start | trained over | ' + ' | '.join(QUANTITIES.values()) + ' |']
    lines.append('| --- | --- |' + ' ---: |' * len(QUANTITIES))
    for (start, trained), results in runs.items():
        cells = []
        for key in QUANTITIES:
            each = [result['metrics'].get(key) for result in results]
            each = [math.nan if value is None else value for value in each]
            spread = f' ({", ".join(percent(value) for value in each)})' if len(each) > 1 else ''
            cells.append(f'**{percent(average(results, key))}**{spread}')
        lines.append(f'| {start} | {trained} | ' + ' | '.join(cells) + ' |')
    lines += ['', 'Camera-mask score of the masked model against the unmasked score of the other:', '']
    head = ['whole gap', 'training mask, scored without', 'training mask, scored with']
    head += ["metric's mask, model of all voxels", "metric's mask, masked model"]
    lines.append(f'| start | {" | ".join(head)} |')
    lines.append('| --- |' + ' ---: |' * 5)
    for start in dict.fromkeys(start for start, _ in runs):
        score = {
            (masked, mask): average(runs[start, trained], f'mIoU/{mask}')
            for masked, trained in MASKED.items()
            for mask in ('no_mask', 'camera_mask')
        }
        cells = [
            difference(score[True, 'camera_mask'], score[False, 'no_mask']),
            difference(score[True, 'no_mask'], score[False, 'no_mask']),
            difference(score[True, 'camera_mask'], score[False, 'camera_mask']),
            difference(score[False, 'camera_mask'], score[False, 'no_mask']),
            difference(score[True, 'camera_mask'], score[True, 'no_mask']),
        ]
        lines.append(f'| {start} | ' + ' | '.join(cells) + ' |')
    lines += [
        '',
        "Training mask: what training over the observed voxels adds, at the same score. Metric's mask: what the camera "
        'mask of the metric adds, for the same model.',
    ]
    return '\n'.join(lines)


@resumable
def main(argv=None) -> int:
    args = parse_args(argv)
    work_dir = Path(args.work_dir)
    args.seed = args.city_seed
    if args.fresh:
        clear_work_dir(work_dir)
    stages = StageRunner(work_dir)
    make_city(stages, args)
    runs = study(stages, args, has_fast_bfloat16() and not args.no_amp)
    samples = next(iter(runs.values()))[0]['samples']
    seeds = f'Mean of {len(args.seeds)} seeds (each in brackets)' if len(args.seeds) > 1 else f'Seed {args.seeds[0]}'
    text = f'{seeds}, {samples} held-out key frames, in %.\n\n{markdown(runs)}\n'
    print(f'\n{text}\ntime: together {duration(sum(stages.seconds.values()))}')
    write(work_dir / 'mask_study.md', text)
    document = dict(
        runs=[
            dict(start=start, trained=trained, seed=seed, metrics=result['metrics'])
            for (start, trained), results in runs.items()
            for seed, result in zip(args.seeds, results)
        ],
        seconds=stages.seconds,
    )
    write(work_dir / 'mask_study.json', json.dumps(document, indent=1) + '\n')
    print(f'written to {work_dir / "mask_study.md"} and mask_study.json')
    return 0


if __name__ == '__main__':
    sys.exit(main())
