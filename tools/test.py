#!/usr/bin/env python3
"""Test a checkpoint.

tools/test.py CONFIG CKPT --work-dir D
tools/test.py CONFIG CKPT --out results.json       metrics as JSON (default: results.json in the work dir)
tools/test.py CONFIG CKPT --out predictions/       predictions, one <token>.npz a sample (Occ3D's submission form)
tools/test.py CONFIG CKPT CKPT2 CKPT3               occupancy: what they say of each voxel, averaged
tools/test.py CONFIG CKPT --show-dir pictures      one PNG a sample (models that render: what their cameras see, too)
tools/dist_test.sh CONFIG CKPT 2
"""

import _cli


def parse_args(arguments=None):
    parser = _cli.Parser(__doc__)
    parser.add_argument('config', help='config file (.py, .yaml)')
    parser.add_argument('checkpoint', nargs='+', help='checkpoint file; several: an ensemble')
    _cli.add_common(parser)
    parser.add_argument('--out', metavar='FILE|DIR', help='metrics (a name ending in .json) or predictions (a folder)')
    parser.add_argument('--show-dir', '--show_dir', dest='show_dir', metavar='DIR', help='pictures go here')
    parser.add_argument('--show-samples', type=int, metavar='N', help='at most so many pictures (default: all)')
    parser.add_argument(
        '--min-loaded',
        type=float,
        default=1.0,
        metavar='SHARE',
        help='least share of the parameters that CKPT must give (default: 1, all of them)',
    )
    args = _cli.parse(parser, arguments)
    _cli.prepare(args, ('config', args.config), *(('checkpoint', name) for name in args.checkpoint))
    return args


def main() -> None:
    args = parse_args()
    _cli.use_this_checkout()
    from occforge.errors import ConfigError, cli_errors

    with cli_errors():
        cfg = _cli.set_up(args)
        for field in ('test_dataloader', 'test_cfg', 'test_evaluator'):
            if cfg.get(field) is None:
                raise ConfigError(f'{args.config}: {field} is missing, so there is nothing to test')
        cfg.load_from = dict(path=args.checkpoint[0], min_loaded=args.min_loaded)
        if len(args.checkpoint) > 1:
            cfg.model = dict(type='OccupancyEnsemble', members=[cfg.model] * len(args.checkpoint))
            sources = [dict(path=path, to=f'members.{number}') for number, path in enumerate(args.checkpoint)]
            cfg.load_from = dict(sources=sources, min_loaded=args.min_loaded)
        cfg.resume = False
        cfg.resume_from = None
        hooks = list(cfg.get('custom_hooks') or [])
        if args.out is not None:
            is_file = args.out.endswith('.json')
            hooks.append(dict(type='ResultFilesHook', **{'out_file' if is_file else 'dump_dir': args.out}))
        if args.show_dir is not None:
            hooks.append(dict(type='PredictionVisHook', out_dir=args.show_dir, max_samples=args.show_samples))
            if cfg.model.get('nerf_head') or cfg.model.get('detector', {}).get('nerf_head'):
                hooks.append(dict(type='RenderedViewsHook', out_dir=args.show_dir, max_samples=args.show_samples))
        cfg.custom_hooks = hooks
        runner = _cli.build_runner(cfg)
        _cli.run(runner.test, cfg)


if __name__ == '__main__':
    main()
