#!/usr/bin/env python3
"""What texture is worth indoors: ESAM's three routes on synthetic rooms, in which some neighbours differ by their
pattern alone, several seeds, one table of AP50 on held-out rooms for single frames and one for whole scenes.

    tools/rooms_study.py                                        seeds 0, 1 and 2
    tools/rooms_study.py --seeds 0 --rooms 3 --frames 6 --cfg-options max_epochs=1
    tools/rooms_study.py --stages sv                            single frames alone

Every route is trained on single frames from scratch, equally long, and then on scenes from its own single-frame
weights. A further row of the scenes has a memory of two frames in place of all. The features of Bi-Fusion's images are
computed once, with CLIP's first layer (--clip-ckpt) or a random one. Finished trainings are used again; a killed study
goes on where it stopped. The tables are printed as Markdown and written to <work-dir>/rooms.md and rooms.json.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from demo import TOOLS, percent, relative
from stage_runner import (
    StageRunner,
    clear_work_dir,
    duration,
    last_checkpoint,
    read_results,
    resumable,
    write_atomically,
)
from transfer_study import compare, markdown, mean_and_error, train

FOLDER = TOOLS.parent / 'configs/ESAM'
ROUTES = {'3D': '3d', '3D + Tiny-SA': '3dtsa', 'Bi-Fusion': 'bifusion'}
STAGES = {'sv': 'single frames', 'mv': 'scenes'}
# rows of the scenes: route, and what differs from its config
SCENES = {name: (name, []) for name in ROUTES} | {'Bi-Fusion, queue=2': ('Bi-Fusion', ['model.memory.queue=2'])}
STEP = 40  # raw frames between two: every frame of a room, for single frames, too
METRIC, QUANTITY = 'all_ap_50%', 'AP50'
MORE = {'AP': 'all_ap', 'AP25': 'all_ap_25%', 'mCov': 'mcov', 'mRec': 'mrec', 'mIoU': 'miou'}
POINTS = 3.0  # what counts as better, besides more than two standard errors


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='of the trainings (default: 0 1 2)')
    parser.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES), help='(default: both)')
    parser.add_argument('--work-dir', default='work_dirs/rooms', help='of all files (default: %(default)s)')
    parser.add_argument('--rooms', type=int, default=32, help='(default: %(default)s)')
    parser.add_argument('--held-out', type=int, help='of them (default: a fourth)')
    parser.add_argument('--frames', type=int, default=11, help='of a room (default: %(default)s)')
    parser.add_argument('--room-seed', type=int, default=0, help='(default: %(default)s)')
    parser.add_argument('--num-sample', type=int, default=4000, help='points of a frame (default: %(default)s)')
    parser.add_argument('--clip-ckpt', help="CLIP ViT-B/16's weights (default: random ones of seed 0)")
    parser.add_argument('--workers', type=int, default=min(os.cpu_count() or 1, 8), help='processes (default: cores)')
    parser.add_argument('--fresh', action='store_true', help='delete what an earlier run left in --work-dir')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to all trainings and tests'
    )
    args = parser.parse_args(argv)
    args.held_out = max(1, args.rooms // 4) if args.held_out is None else args.held_out
    if min(args.frames, args.workers, args.num_sample) < 1 or not 0 < args.held_out < args.rooms:
        parser.error('--frames, --workers, --num-sample: 1 or more; --held-out: 1 or more, and fewer than --rooms')
    if len(set(args.seeds)) != len(args.seeds):
        parser.error('--seeds must be all different')
    if args.clip_ckpt and not Path(args.clip_ckpt).is_file():
        parser.error(f'{args.clip_ckpt}: no such file')
    return args


def make_data(stages: StageRunner, args) -> None:
    """Stages of the data: rooms, then frames or scenes of them with the features of their images."""
    create, root = relative(TOOLS / 'create_data.py'), Path(args.work_dir, 'data')
    exports = root / 'exports'
    command = [create, 'synthetic_rooms', '--root-path', exports, '--rooms', args.rooms, '--frames', args.frames]
    command += ['--held-out', args.held_out, '--seed', args.room_seed, '--workers', args.workers]
    stages.run('rooms', command, [exports / 'meta_data/scannetv2_val.txt'], folders=[exports])
    for stage in args.stages:
        out, tag = root / stage, f'scannet200_{stage}'
        infos = [out / f'{tag}_oneformer3d_infos_{split}.pkl' for split in ('train', 'val')]
        command = [create, tag, '--root-path', exports, '--out-dir', out, '--rec-dir', root / 'rec']
        command += ['--num-sample', args.num_sample, '--workers', args.workers, '--step', STEP]
        stages.run(STAGES[stage], command, infos, ['rooms'], [out])
        command = [relative(TOOLS / 'precompute_clip_feats.py'), '--info-pkl', *infos, '--data-root', out]
        command += ['--num-workers', args.workers]
        command += ['--clip-ckpt', args.clip_ckpt] if args.clip_ckpt else ['--random-weights']
        stages.run(f'image features of {STAGES[stage]}', command, [out / 'clip_feat'], [STAGES[stage]])


def run_route(stages: StageRunner, args, stage: str, name: str, seed: int, source=None, after=()) -> Path:
    """Training and test of a row. Returns the folder of both."""
    route, changes = SCENES[name] if stage == 'mv' else (name, [])
    kind = 'online' if stage == 'mv' else 'sv'
    config = FOLDER / f'ESAM_{kind}_{ROUTES[route]}_rooms.py'
    folder = Path(args.work_dir, f'{stage}_{re.sub("[^A-Za-z0-9]+", "_", name)}_seed{seed}')
    options = ['--cfg-options', f'data_root={args.work_dir}/data/{stage}/', f'randomness.seed={seed}', *changes]
    if stage == 'mv':
        options.append(f'rec_root={args.work_dir}/data/rec')
    data = f'image features of {STAGES[stage]}' if route == 'Bi-Fusion' else STAGES[stage]
    label = f'{STAGES[stage]}, {name}, seed {seed}'
    options += args.cfg_options
    train(stages, label, config, folder, data, options, amp=False, source=source, after=after)
    return folder


def tables(runs: dict) -> tuple[str, dict]:
    """Markdown of all stages and the rows behind it. ``runs``: {stage: {row: metrics of each seed}}."""
    parts, rows = [], {}
    for stage, named in runs.items():
        values = {name: [100 * each[METRIC] for each in metrics] for name, metrics in named.items()}
        rows[stage] = compare(values, POINTS)
        means = {
            name: {key: mean_and_error(100 * each[key] for each in metrics)[0] for key in MORE.values()}
            for name, metrics in named.items()
        }
        more = {title: {name: percent(each[key]) for name, each in means.items()} for title, key in MORE.items()}
        parts.append(markdown(rows[stage], STAGES[stage], QUANTITY, POINTS, more))
    return '\n\n'.join(parts), rows


@resumable
def main(argv=None) -> int:
    args = parse_args(argv)
    work_dir = Path(args.work_dir)
    runs: dict = {stage: {name: [] for name in (SCENES if stage == 'mv' else ROUTES)} for stage in args.stages}
    if args.fresh:
        clear_work_dir(work_dir)
    stages = StageRunner(work_dir)
    make_data(stages, args)
    for seed in args.seeds:
        singles = {}
        for name in ROUTES if 'sv' in args.stages else ():
            singles[name] = run_route(stages, args, 'sv', name, seed)
            runs['sv'][name].append(read_results(singles[name] / 'test/results.json')['metrics'])
        for name, (route, _) in SCENES.items() if 'mv' in args.stages else ():
            begin = {}
            if route in singles:
                begin['source'] = relative(last_checkpoint(singles[route] / 'training'))
                begin['after'] = [f'{STAGES["sv"]}, {route}, seed {seed}: training']
            folder = run_route(stages, args, 'mv', name, seed, **begin)
            runs['mv'][name].append(read_results(folder / 'test/results.json')['metrics'])
    table, rows = tables(runs)
    text = f'{len(args.seeds)} seeds, {args.held_out} held-out rooms, mean ± standard error, in %.\n\n{table}\n'
    print(f'\n{text}\ntime: together {duration(sum(stages.seconds.values()))}')
    write_atomically(work_dir / 'rooms.md', text)
    document = dict(runs=rows, metrics=runs, metric=METRIC, seeds=args.seeds, seconds=stages.seconds)
    write_atomically(work_dir / 'rooms.json', json.dumps(document, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
