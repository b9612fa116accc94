#!/usr/bin/env python3
"""From nothing to a trained and tested FusionOcc on the synthetic city, with pictures (`make demo`).

    tools/demo.py                     what is finished is used again; a killed demo goes on where it stopped
    tools/demo.py --fresh             from the beginning
    tools/demo.py --scenes 4 --keyframes 6 --cfg-options image_epochs=1 max_epochs=3    a quick look at the path

Each stage is one command that a user would type; it is printed before it runs.
"""

import argparse
import json
import math
import os
import re
import sys
from pathlib import Path

from stage_runner import (
    StageRunner,
    clear_work_dir,
    duration,
    last_checkpoint,
    read_results,
    resumable,
    write_atomically,
)

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / 'configs/fusion_occ/fusion_occ_synthetic.py'
MASKS = {'no_mask': 'no mask', 'camera_mask': 'camera mask', 'lidar_mask': 'LiDAR mask'}
ENOUGH = 500  # voxels a class must have in the held-out labels to say something


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--config', default=str(CONFIG), help='default: configs/fusion_occ/fusion_occ_synthetic.py')
    parser.add_argument('--seed', type=int, default=0, help='of the city and of the training (default: %(default)s)')
    parser.add_argument('--pictures', type=int, help='at most so many (default: every held-out sample)')
    add_common_arguments(parser, 'work_dirs/demo')
    args = parser.parse_args(argv)
    check_common_arguments(parser, args, args.config)
    if args.pictures is not None and args.pictures < 0:
        parser.error('--pictures must be 0 or more')
    return args


def relative(path) -> str:
    """A path as one would type it here."""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 (AMX or AVX512-BF16): --amp then saves a third of a training's
    time or more."""
    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    return 'amx_bf16' in flags or 'avx512_bf16' in flags


def config_overrides(data_root, seed, extra=()) -> list:
    """--cfg-options that point a config at a city and a seed; only what differs from the default."""
    options = []
    if os.path.normpath(data_root) != os.path.normpath('data/synthetic_city'):
        options.append(f'data_root={data_root}')  # the config's linked field: a data set may be wrapped in another
    if seed:
        options.append(f'randomness.seed={seed}')
    options += extra
    return ['--cfg-options', *options] if options else []


def add_common_arguments(parser, work_dir: str, seeds=None) -> None:
    """What the demo and the studies share: folders, size of the city, how trainings run.

    Many short scenes teach more than few long ones, and the network sees 448 pixels a row.

    Args:
        parser: gets the options.
        work_dir: default of --work-dir.
        seeds: default of --seeds, for studies of several trainings; None: there is no such option.
    """
    cores = min(os.cpu_count() or 1, 8)
    if seeds is not None:
        text = f'of the trainings (default: {" ".join(map(str, seeds))})'
        parser.add_argument('--seeds', nargs='+', type=int, default=list(seeds), help=text)
    parser.add_argument('--data-root', default='data/synthetic_city', help='the city (default: %(default)s)')
    parser.add_argument('--work-dir', default=work_dir, help='everything else (default: %(default)s)')
    parser.add_argument('--scenes', type=int, default=40, help='of the city (default: %(default)s)')
    parser.add_argument('--keyframes', type=int, default=5, help='per scene (default: %(default)s)')
    parser.add_argument('--image-size', default='512x288', metavar='WxH', help='of its images (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=cores, help='processes (default: cores)')
    parser.add_argument('--fresh', action='store_true', help='delete what an earlier run left in --work-dir')
    parser.add_argument('--no-amp', action='store_true', help='train in float32 even where bfloat16 is faster')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to all trainings and tests'
    )


def named_configs(parser, entries, default: dict) -> dict:
    """{name: path} of ``--configs NAME=FILE ...``, or the default where the option is not given."""
    if not entries:
        return default
    configs = {}
    for entry in entries:
        name, equals, path = entry.partition('=')
        if not (name and equals and path) or name in configs:
            parser.error(f'--configs: {entry!r} is not NAME=FILE with a new NAME')
        configs[name] = Path(path)
    return configs


def add_pretraining_arguments(parser, default: str) -> None:
    """``--pretraining FILE`` and ``--no-pretraining`` of a study; ``default``: its words in the help."""
    text = f'config of the image branch that the trainings start from (default: {default})'
    parser.add_argument('--pretraining', metavar='FILE', help=text)
    parser.add_argument('--no-pretraining', action='store_true', help='start from random weights')


def pretraining_of(parser, args, default: dict) -> dict:
    """``pretraining`` of ``run_study`` by these options."""
    if args.no_pretraining and args.pretraining:
        parser.error('--pretraining and --no-pretraining exclude each other')
    if args.pretraining:
        if not Path(args.pretraining).is_file():
            parser.error(f'{args.pretraining}: no such file')
        return dict.fromkeys(args.configs, args.pretraining)
    return {} if args.no_pretraining else default


def check_common_arguments(parser, args, *files) -> None:
    """Ends the tool where a number or one of ``files`` cannot be used."""
    if min(args.scenes, args.keyframes, args.workers) < 1:
        parser.error('--scenes, --keyframes and --workers must be 1 or more')
    if len(set(getattr(args, 'seeds', ()))) != len(getattr(args, 'seeds', ())):
        parser.error('--seeds must be all different')
    for path in files:
        if not Path(path).is_file():
            parser.error(f'{path}: no such file')


def make_city(stages: StageRunner, args) -> None:
    """Stages of the data: the city with its info files."""
    command = [relative(TOOLS / 'create_data.py'), 'synthetic_city', '--root-path', args.data_root]
    command += ['--scenes', args.scenes, '--keyframes', args.keyframes, '--image-size', args.image_size]
    command += ['--seed', args.seed, '--workers', args.workers]
    infos = [Path(args.data_root, f'nuscenes_infos_{split}.pkl') for split in ('train', 'val')]
    stages.run('city', command, infos)


def measure_prior(stages: StageRunner, args, out) -> None:
    """What can be had without looking: the floor that a model must beat."""
    infos = [os.path.join(args.data_root, f'nuscenes_infos_{split}.pkl') for split in ('train', 'val')]
    stages.run('label prior', [relative(TOOLS / 'analysis/label_prior.py'), *infos, '--out', out], [out], ['city'])


def train(stages: StageRunner, stage, config, folder, overrides, amp, options=(), after=('city',)) -> None:
    """The stage of a training in ``folder``; ``options``: overrides beside those that its test shares."""
    command = [relative(TOOLS / 'train.py'), relative(config), '--work-dir', folder, '--resume']
    if amp:
        command.append('--amp')
    command += [*(overrides or ['--cfg-options']), *options]
    stages.run(stage, command, [Path(folder, 'last_checkpoint')], after, [folder])


def train_and_test(
    stages: StageRunner,
    name,
    config,
    work_dir,
    overrides,
    amp,
    pictures=None,
    most=None,
    train_options=(),
    after=('city',),
) -> Path:
    """Stages of one model, trained in ``work_dir/training``. Returns its results file.

    ``train_options``: overrides of the training alone; ``after``: stages that it depends on.
    """
    label = f'{name}: ' if name else ''
    config, training, testing = relative(config), Path(work_dir, 'training'), Path(work_dir, 'test')
    # the test stage scores the held-out scenes, so the training need not
    options = ['train_cfg.val_begin=1000000', *train_options]
    train(stages, f'{label}training', config, training, overrides, amp, options, after)
    results = testing / 'results.json'
    test = [relative(TOOLS / 'test.py'), config, relative(last_checkpoint(training)), '--work-dir', testing]
    test += ['--out', results]
    if pictures is not None:
        test += ['--show-dir', pictures]
    if most is not None:
        test += ['--show-samples', most]
    folders = [testing] if pictures is None else [testing, pictures]
    stages.run(f'{label}test', [*test, *overrides], [results], ['city', f'{label}training'], folders)
    return results


def run_study(args, pretraining=None) -> tuple[dict, StageRunner]:
    """The city, then every config of ``args.configs`` (name -> path) with every seed.

    Args:
        args: parsed options.
        pretraining: name -> config of a model that is trained first, once for all seeds; the trainings of that name
            start from its checkpoint, others from random weights.

    Returns:
        Name -> results file's content for each of ``args.seeds``, and the stages with their times.
    """
    work_dir = Path(args.work_dir)
    args.seed = args.city_seed
    amp = has_fast_bfloat16() and not args.no_amp
    if args.fresh:
        clear_work_dir(work_dir)
    stages = StageRunner(work_dir)
    make_city(stages, args)
    pretraining = pretraining or {}
    for config in dict.fromkeys(pretraining.values()):
        folder = work_dir / 'pretraining' / Path(config).stem
        options = ['--cfg-options', f'data_root={args.data_root}']
        train(stages, f'pretraining, {Path(config).stem}', config, folder, options, amp)
    runs = {name: [] for name in args.configs}
    for seed in args.seeds:
        for name, config in args.configs.items():
            folder = work_dir / f'{re.sub("[^A-Za-z0-9]+", "_", name)}_seed{seed}'
            overrides = config_overrides(args.data_root, seed, args.cfg_options)
            start, after = [], ['city']
            if name in pretraining:
                stem = Path(pretraining[name]).stem
                start = ['--load-from', relative(last_checkpoint(work_dir / 'pretraining' / stem))]
                after.append(f'pretraining, {stem}')
            results = train_and_test(
                stages, f'{name}, seed {seed}', config, folder, overrides, amp, train_options=start, after=after
            )
            runs[name].append(read_results(results))
    return runs, stages


def percent(value) -> str:
    return '-' if value is None or not math.isfinite(value) else f'{value:.1f}'


def summary_table(results: dict, prior: dict) -> str:
    """IoU of each class under each mask, its voxels in the held-out labels, and the label prior's IoU."""
    metrics, floor = results['metrics'], prior['metrics']
    head = f'{"class":<22}' + ''.join(f'{text:>13}' for text in MASKS.values())
    lines = [f'{head}{"label prior":>13}{"voxels":>13}', '-' * (22 + 13 * 5)]
    names = [name for name in results['class_names'] if name != 'free']

    def row(title, key, voxels):
        cells = ''.join(f'{percent(metrics[key.format(mask)]):>13}' for mask in MASKS)
        return f'{title:<22}{cells}{percent(floor[key.format("no_mask")]):>13}{voxels:>13,}'

    for name in names:
        lines.append(row(name, f'IoU/{{}}/{name}', results['voxels']['no_mask'][name]))
    total = sum(results['voxels']['no_mask'][name] for name in names)
    lines += ['-' * (22 + 13 * 5), row('mIoU', 'mIoU/{}', total), row('geometric IoU', 'geo_IoU/{}', total)]
    return '\n'.join(lines)


def print_summary(args, stages, results, prior, work_dir, pictures) -> None:
    drawn = sorted(Path(pictures).glob('*.png'))
    names = [name for name in results['class_names'] if name != 'free']
    many = [name for name in names if results['voxels']['no_mask'][name] >= ENOUGH]
    mean = [results['metrics'][f'IoU/no_mask/{name}'] for name in many]
    table = summary_table(results, prior)
    lines = [
        '',
        f'FusionOcc on {results["samples"]} held-out key frames of the synthetic city (IoU in %)',
        '',
        table,
        '',
        f'{len(many)} classes have {ENOUGH} voxels or more in the held-out labels; their mean IoU without a mask is '
        f'{percent(sum(mean) / len(mean) if mean else None)}.',
        'label prior: at each voxel position the most frequent training label, scored in the same way (no mask).',
        '',
        'time      ' + ',  '.join(f'{name} {duration(spent)}' for name, spent in stages.seconds.items())
        + f';  together {duration(sum(stages.seconds.values()))}',
        f'data      {args.data_root}',
        f'model     {relative(last_checkpoint(work_dir / "training"))}  (curves: metrics.csv beside it)',
        f'results   {work_dir / "test/results.json"}',
        f'pictures  {pictures}  ({len(drawn)} of them; for example {drawn[0].name})' if drawn else '',
    ]  # fmt: skip
    text = '\n'.join(lines).rstrip() + '\n'
    print(text)
    write_atomically(work_dir / 'summary.txt', text.lstrip())
    document = dict(results=results['metrics'], label_prior=prior['metrics'], voxels=results['voxels'])
    document.update(seconds=stages.seconds, classes_with_enough_voxels=many)
    write_atomically(work_dir / 'summary.json', json.dumps(document, indent=1) + '\n')


@resumable
def main(argv=None) -> int:
    args = parse_args(argv)
    work_dir, pictures = Path(args.work_dir), Path(args.work_dir) / 'pictures'
    overrides = config_overrides(args.data_root, args.seed, args.cfg_options)
    if args.fresh:
        clear_work_dir(work_dir)
    stages = StageRunner(work_dir)
    make_city(stages, args)
    measure_prior(stages, args, work_dir / 'label_prior.json')
    amp = has_fast_bfloat16() and not args.no_amp
    results = train_and_test(stages, '', args.config, work_dir, overrides, amp, pictures, args.pictures)
    print_summary(args, stages, read_results(results), read_results(work_dir / 'label_prior.json'), work_dir, pictures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
