#!/usr/bin/env python3
"""Train the model of a config, on CPU, one GPU or many.

tools/train.py configs/fusion_occ/fusion_occ_synthetic.py
tools/train.py CONFIG --work-dir D --resume                        go on where D stopped
tools/train.py CONFIG --cfg-options model.use_mask=False           change fields
tools/train.py CONFIG --optimizer.lr 5e-5 --data.workers_per_gpu 0
torchrun --nproc_per_node=2 tools/train.py CONFIG                  or tools/dist_train.sh CONFIG 2
"""

import _cli


def parse_args(arguments=None):
    parser = _cli.Parser(__doc__)
    parser.add_argument('config', help='config file (.py, .yaml)')
    _cli.add_common(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='continue from the newest loadable checkpoint of the work dir (none: a fresh start), or from CKPT',
    )
    parser.add_argument(
        '--resume-from',
        '--resume_from',
        dest='resume_from',
        metavar='CKPT',
        help='continue from CKPT; its weights alone, with a warning, if it is of another model or already finished',
    )
    parser.add_argument(
        '--load-from',
        '--load_from',
        dest='load_from',
        metavar='CKPT',
        help='start from the weights of CKPT that fit; a config whose load_from is a dict says how they are adapted',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on the CPU')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the total batch (auto_scale_lr)'
    )
    args = _cli.parse(parser, arguments)
    resumed = args.resume if args.resume not in (None, 'auto') else None
    _cli.prepare(
        args,
        ('config', args.config),
        ('checkpoint', resumed),
        ('checkpoint', args.resume_from),
        ('checkpoint', args.load_from),
    )
    return args


def main() -> None:
    args = parse_args()
    _cli.use_this_checkout()
    from occforge.engine.partial_load import with_path
    from occforge.errors import ConfigError, cli_errors

    with cli_errors():
        cfg = _cli.set_up(args)
        for field in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
            if cfg.get(field) is None:
                raise ConfigError(f'{args.config}: {field} is missing, so there is nothing to train')
        if args.resume is not None:
            cfg.resume = args.resume
        if args.resume_from is not None:
            cfg.resume_from = args.resume_from
        if args.load_from is not None:
            cfg.load_from = with_path(cfg.get('load_from'), args.load_from)
        if args.amp:
            kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
            if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'OccAmpOptimWrapper'):
                raise ConfigError(f'--amp: optim_wrapper.type is {kind!r}; only OptimWrapper can be replaced')
            cfg.optim_wrapper.type = 'OccAmpOptimWrapper'
        if args.auto_scale_lr:
            if not cfg.get('auto_scale_lr', {}).get('base_batch_size'):
                raise ConfigError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
            cfg.auto_scale_lr.enable = True
        runner = _cli.build_runner(cfg)
        _cli.run(runner.train, cfg)


if __name__ == '__main__':
    main()
