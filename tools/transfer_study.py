#!/usr/bin/env python3
"""What starting from another vehicle's checkpoint is worth: the same number of steps from scratch, with full
fine-tuning, frozen encoders and progressive unfreezing (BEVFusion: also with finer voxels, and with the backbones
alone), several seeds, one table.

    tools/transfer_study.py                                       makes both cities, trains the source, then all
    tools/transfer_study.py --source CKPT                         starts from a checkpoint that there is
    tools/transfer_study.py --seeds 0 --cfg-options image_epochs=1 max_epochs=3
    tools/transfer_study.py --share 0.25                            with a quarter of the target's scenes
    tools/transfer_study.py --learning-rates 2e-3 4e-3 8e-3         each strategy with the best of these (first seed)
    tools/transfer_study.py --rates-of work_dirs/transfer/transfer_share0.25.json     each with what was best there
    tools/transfer_study.py --system bevfusion_lidar --share 0.25       (BEVFusion: of the target's key frames)
    tools/transfer_study.py --system bevfusion --only 'full fine-tuning'        against scratch
    tools/transfer_study.py --configs scratch=a.py mine=b.py --source CKPT      any configs, the first from scratch

The source is the small FusionOcc (--system bevfusion: BEVFusion; bevfusion_lidar: BEVFusion from LiDAR alone) on the
nuScenes rig (six cameras, 32 beams), the target a vehicle with four cameras, 80 beams and eight classes in another
order (BEVFusion's: eight of the ten), whose rows move by name. Finished trainings are used again, whatever --seeds,
--share and --only say the next time; a killed one goes on. The table is printed as Markdown and written to
<work-dir>/transfer.md and transfer.json (with --share 0.25: transfer_share0.25.md and .json); the default work dir ends
in the system's name where that is not fusion_occ.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from demo import (
    TOOLS,
    add_common_arguments,
    check_common_arguments,
    config_overrides,
    has_fast_bfloat16,
    last_checkpoint,
    make_city,
    named_configs,
    percent,
    relative,
)
from stage_runner import StageRunner, clear_work_dir, duration, read_results, resumable, write_atomically

FOLDER = TOOLS.parent / 'configs'
SOURCE = FOLDER / 'fusion_occ/fusion_occ_synthetic.py'
CONFIGS = {
    'from scratch': FOLDER / 'custom/city_4cam_80beam.py',
    'full fine-tuning': FOLDER / 'custom/city_4cam_80beam_finetune.py',
    'frozen encoders': FOLDER / 'custom/city_4cam_80beam_freeze_encoder.py',
    'progressive unfreezing': FOLDER / 'custom/city_4cam_80beam_progressive.py',
}
RIG = 'four_cameras_80_beams'
METRIC = 'mIoU/no_mask'
DEFAULT_WORK_DIR = 'work_dirs/transfer'
BEVFUSION_STRATEGIES = {
    'from scratch': '',
    'full fine-tuning': '_finetune',
    'frozen encoders': '_freeze_encoder',
    'progressive unfreezing': '_progressive',
    'finer voxels': '_fine_voxels',
    'backbones only': '_other_domain',
}
# --system: what is trained first, on which configs, what of it is compared (further metrics: columns of their own), and
# the field that takes a share of the training's samples
SYSTEMS = {
    'fusion_occ': dict(
        source=SOURCE,
        configs=CONFIGS,
        metric=METRIC,
        label='mIoU without a mask',
        more={},
        share='scene_fraction',
    ),
    **{
        system: dict(
            source=FOLDER / f'bevfusion/{source}.py',
            configs={
                name: FOLDER / f'custom/city_bevfusion_{rig}_80beam{suffix}.py'
                for name, suffix in BEVFUSION_STRATEGIES.items()
            },
            metric='mAP',
            label='mAP',
            more={'NDS': 'NDS', 'map IoU': 'map/mean/iou@max'},
            share='num_samples',
        )
        for system, source, rig in (
            ('bevfusion', 'bevfusion_synthetic', '4cam'),
            ('bevfusion_lidar', 'bevfusion_synthetic_lidar', 'lidar'),
        )
    },
}
POINTS, ERRORS = 3.0, 2.0  # what counts as better: so many points, and more than so many standard errors


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--system', choices=SYSTEMS, default='fusion_occ', help='(default: %(default)s)')
    parser.add_argument('--source', metavar='CKPT', help='checkpoint to start from (default: it is trained)')
    parser.add_argument('--configs', nargs='+', metavar='NAME=FILE', help='the first is trained from scratch')
    parser.add_argument(
        '--target-root', default='data/synthetic_city_4cam', help="the target's city (default: %(default)s)"
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these strategies, against the first (default: all)')
    parser.add_argument('--share', type=float, default=1.0, help="of the target's training data (default: %(default)g)")
    parser.add_argument(
        '--learning-rates',
        type=float,
        nargs='+',
        metavar='LR',
        help="try these with the first seed, train the others with the best of each strategy (default: the configs')",
    )
    parser.add_argument('--rates-of', metavar='JSON', help="each strategy's learning rate from an earlier table's file")
    add_common_arguments(parser, DEFAULT_WORK_DIR, seeds=(0, 1, 2))
    args = parser.parse_args(argv)
    if args.work_dir == DEFAULT_WORK_DIR and args.system != 'fusion_occ':  # a ledger of its own
        args.work_dir += f'_{args.system}'
    configs = named_configs(parser, args.configs, SYSTEMS[args.system]['configs'])
    unknown = [name for name in args.only or () if name not in configs]
    if unknown:
        parser.error(f'--only {", ".join(unknown)}: expected some of {", ".join(configs)}')
    if args.only:
        configs = {name: path for number, (name, path) in enumerate(configs.items()) if not number or name in args.only}
    if not 0 < args.share <= 1:
        parser.error(f'--share is {args.share:g}, expected more than 0 and at most 1')
    if any(rate <= 0 for rate in args.learning_rates or ()):
        parser.error(f'--learning-rates {" ".join(f"{rate:g}" for rate in args.learning_rates)}: expected above 0')
    if args.learning_rates and args.rates_of:
        parser.error('--learning-rates tries rates, --rates-of takes those found: expected one of them')
    check_common_arguments(parser, args, *configs.values(), *([args.source] if args.source else []))
    args.configs = configs
    args.rates = rates_of(parser, args.rates_of, configs) if args.rates_of else {}
    return args


def rates_of(parser, file: str, names) -> dict[str, float]:
    """Learning rate of each strategy, by the document that a study with ``--learning-rates`` has written."""
    try:
        rates = json.loads(Path(file).read_text())['learning_rates'] or {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f'--rates-of {file}: expected the JSON file of a study with --learning-rates ({error!r})')
    missing = [name for name in names if name not in rates]
    if missing:
        parser.error(f'--rates-of {file}: no learning rate of {", ".join(missing)}, found {", ".join(rates) or "none"}')
    return {name: rates[name] for name in names}


def make_target_city(stages: StageRunner, args) -> None:
    """The stage of the target's city: another vehicle in other streets."""
    command = [relative(TOOLS / 'create_data.py'), 'synthetic_city', '--root-path', args.target_root, '--rig', RIG]
    command += ['--scenes', args.scenes, '--keyframes', args.keyframes, '--image-size', args.image_size]
    command += ['--seed', 1, '--workers', args.workers]
    infos = [Path(args.target_root, f'nuscenes_infos_{split}.pkl') for split in ('train', 'val')]
    stages.run('target city', command, infos)


def train(stages, name, config, work_dir, city, options, amp, source=None, after=()) -> Path:
    """Stages of one model. Returns its results file."""
    training, testing = Path(work_dir, 'training'), Path(work_dir, 'test')
    command = [relative(TOOLS / 'train.py'), relative(config), '--work-dir', training, '--resume', 'auto']
    command += ['--amp'] * amp + (['--load-from', source] if source else [])
    command += [*(options or ['--cfg-options']), 'train_cfg.val_begin=1000000']
    stages.run(f'{name}: training', command, [training / 'last_checkpoint'], [city, *after], [training])
    results = testing / 'results.json'
    command = [
        relative(TOOLS / 'test.py'),
        relative(config),
        relative(last_checkpoint(training)),
        '--work-dir',
        testing,
    ]
    stages.run(
        f'{name}: test', [*command, '--out', results, *options], [results], [city, f'{name}: training'], [testing]
    )
    return results


def share_reused(folder: Path) -> str:
    """Share of the whole model that came from the checkpoint, by the report in a training's folder. What the config
    leaves out on purpose (``load_from.take``) counts as not reused."""
    report = folder / 'load_report.json'
    if not report.is_file():
        return ''
    modules = json.loads(report.read_text()).get('modules', {}).values()
    reused, rest = (
        sum(module[column]['elements'] for module in modules for column in columns)
        for columns in (('loaded', 'adapted'), ('shape', 'missing', 'kept'))
    )
    return f'{percent(100 * reused / (reused + rest))} %' if reused + rest else ''


def metrics_in_percent(results: dict) -> dict[str, float]:
    """All metrics of a results file; those that it calls fractions times 100."""
    fractions = {number['name'] for number in results.get('numbers', ()) if number['unit'] == 'fraction'}
    return {
        name: 100 * value if name in fractions and value is not None else value
        for name, value in results['metrics'].items()
    }


def mean_and_error(values) -> tuple[float, float]:
    """Mean and its standard error; nan for the error of a single value."""
    values = list(values)
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def compare(runs: dict[str, list[float]], points: float = POINTS) -> dict[str, dict]:
    """Each one's mean and standard error, and its gain over the first with the error of that difference; ``better``:
    by so many ``points`` and more than ERRORS standard errors."""
    base = mean_and_error(next(iter(runs.values())))
    rows = {}
    for name, values in runs.items():
        mean, error = mean_and_error(values)
        gain = mean - base[0]
        gain_error = math.hypot(error, base[1])
        better = gain >= points and gain > ERRORS * gain_error
        rows[name] = dict(values=list(values), mean=mean, error=error, gain=gain, gain_error=gain_error, better=better)
    return rows


def markdown(
    rows: dict[str, dict],
    title: str = 'start',
    quantity: str = 'mIoU without a mask',
    points: float = POINTS,
    more: dict | None = None,
) -> str:
    """The table of what ``compare`` gives; ``more``: {column: {strategy: cell}} to the right."""
    first, more = next(iter(rows)), more or {}
    lines = [
        f'| {title} | {quantity} | each seed | gain over {first} | {points:g} points and {ERRORS:g} SE |'
        + ''.join(f' {column} |' for column in more),
        '| --- | ---: | ---: | ---: | :---: |' + ' ---: |' * len(more),
    ]
    for name, row in rows.items():
        each = ', '.join(percent(value) for value in row['values'])
        gain, verdict = f'{row["gain"]:+.1f} ± {percent(row["gain_error"])}', 'yes' if row['better'] else 'no'
        if name == first:
            gain = verdict = ''
        line = f'| {name} | {percent(row["mean"])} ± {percent(row["error"])} | {each} | {gain} | {verdict} |'
        lines.append(line + ''.join(f' {cells.get(name, "")} |' for cells in more.values()))
    return '\n'.join(lines)


@resumable
def main(argv=None) -> int:
    args = parse_args(argv)
    work_dir = Path(args.work_dir)
    amp = has_fast_bfloat16() and not args.no_amp
    system = SYSTEMS[args.system]
    runs: dict[str, list[float]] = {name: [] for name in args.configs}
    further = {column: {name: [] for name in args.configs} for column in system['more']}
    reused: dict[str, str] = {}
    share, suffix, part = [], '', ''
    if args.share < 1:
        share = [f'{system["share"]}={args.share:g}']
        suffix, part = f'_share{args.share:g}', f', {args.share:g} of the data'
    args.seed = 0
    if args.fresh:
        clear_work_dir(work_dir)
    stages = StageRunner(work_dir)
    source, after = args.source, []
    if source is None:
        make_city(stages, args)
        options = config_overrides(args.data_root, 0, args.cfg_options)
        train(stages, 'source', system['source'], work_dir / 'source', 'city', options, amp)
        source, after = last_checkpoint(work_dir / 'source' / 'training'), ['source: training']
    make_target_city(stages, args)
    roots = [f'{loader}.dataset.data_root={args.target_root}' for loader in
             ('train_dataloader', 'val_dataloader', 'test_dataloader')]  # fmt: skip

    def train_one(name, seed, rate) -> tuple[Path, str]:
        """Results file and stages' label; ``rate``: None for the config's own."""
        tuned, at = ([], '') if rate is None else ([f'lr={rate:g}'], f', lr {rate:g}')
        folder = work_dir / f'{name.replace(" ", "_")}{suffix}{at.replace(", lr ", "_lr")}_seed{seed}'
        options = ['--cfg-options', *roots, f'randomness.seed={seed}', *share, *tuned, *args.cfg_options]
        begin = {} if name == first else dict(source=relative(source), after=after)
        label = f'{name}{part}{at}, seed {seed}'
        return train(stages, label, args.configs[name], folder, 'target city', options, amp, **begin), label

    def score(results) -> float:
        return metrics_in_percent(read_results(results))[system['metric']]

    def best_rate(name):
        if args.rates:
            return args.rates[name]
        tried = {rate: score(train_one(name, args.seeds[0], rate)[0]) for rate in args.learning_rates or ()}
        return max(tried, key=tried.get, default=None)

    first, seconds = next(iter(args.configs)), dict.fromkeys(args.configs, 0.0)
    rates = {name: best_rate(name) for name in args.configs}
    for seed in args.seeds:
        for name in args.configs:
            results, label = train_one(name, seed, rates[name])
            metrics = metrics_in_percent(read_results(results))
            runs[name].append(metrics[system['metric']])
            for column, key in system['more'].items():
                further[column][name].append(metrics[key])
            seconds[name] += stages.seconds.get(f'{label}: training', 0.0)
            reused[name] = '' if name == first else share_reused(results.parents[1] / 'training')
    rows = compare(runs)
    more = {
        column: {name: percent(mean_and_error(values)[0]) for name, values in cells.items()}
        for column, cells in further.items()
    }
    more['parameters reused'] = reused
    more['training'] = {name: duration(value) for name, value in seconds.items()}
    if any(rates.values()):
        more['learning rate'] = {name: f'{rate:g}' for name, rate in rates.items()}
    table = markdown(rows, quantity=system['label'], more=more)
    text = f'{len(args.seeds)} seeds, mean ± standard error, in %{part}.\n\n{table}\n'
    print(f'\n{text}\ntime: together {duration(sum(stages.seconds.values()))}')
    write_atomically(work_dir / f'transfer{suffix}.md', text)
    document = dict(runs=rows, metric=system['metric'], seeds=args.seeds, share=args.share, source=str(source),
                    learning_rates=rates if any(rates.values()) else None,
                    seconds=stages.seconds,
                    configs={name: str(path) for name, path in args.configs.items()})  # fmt: skip
    write_atomically(work_dir / f'transfer{suffix}.json', json.dumps(document, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
