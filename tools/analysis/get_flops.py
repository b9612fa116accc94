#!/usr/bin/env python3
"""Parameters and FLOPs of a config's model by stage, for one sample; needs no data set and no checkpoint.

tools/analysis/get_flops.py configs/fusion_occ/fusion_occ.py
tools/analysis/get_flops.py CONFIG --depth 2 --data-root data/nuscenes       two levels of modules, on a real sample

Two FLOPs for each multiply-add of convolutions, matrix products, attention, sparse convolution and frustum pooling, in
a forward pass of inference. Work that depends on the content (sparse convolutions) is that of the sample: of noise,
unless --data-root is given.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'benchmarks'))
import _cli
from model import count_flops, random_samples


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--data-root', help='of a real sample (default: a sample of noise)')
    parser.add_argument('--depth', type=int, default=1, help='levels of modules in the table (default: 1)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--out', help='write the numbers to this JSON file as well')
    args = parser.parse_args(argv)
    if args.depth < 1:
        parser.error('--depth must be 1 or more')
    return args


def table(model, counts, depth):
    """Rows (path, parameters, FLOPs) of the modules down to a depth, those with neither left out.

    ``counts``: FLOPs by module path, of ``count_flops``.
    """
    root = type(model).__name__
    rows = []
    for path, module in model.named_modules():
        if not path or path.count('.') >= depth:
            continue
        parameters = sum(parameter.numel() for parameter in module.parameters())
        flops = counts.get(f'{root}.{path}', 0)
        if parameters or flops:
            rows.append((path, parameters, flops))
    return rows


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors
    from occforge.fileio import atomic_write

    with cli_errors():
        import contextlib
        import json

        from mmdet3d.registry import DATASETS, MODELS
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import DefaultScope
        from occforge.engine import load_config

        overrides = [*args.cfg_options, *([f'data_root={args.data_root}'] if args.data_root else [])]
        cfg = load_config(args.config, overrides)
        DefaultScope.get_instance('get_flops', scope_name=cfg.get('default_scope', 'mmdet3d'))
        with contextlib.nullcontext() if args.data_root else random_samples(cfg, 1):
            sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
        model = _cli.run(lambda: MODELS.build(cfg.model), cfg)
        model.eval()
        batch = model.data_preprocessor(pseudo_collate([sample]), False)
        counts = count_flops(lambda: model(**batch, mode='predict'))
        parameters, flops = sum(p.numel() for p in model.parameters()), counts.get('Global', 0)
        rows = table(model, counts, args.depth)
        print(f'{"module":<48}{"parameters":>14}{"GFLOP":>12}')
        for path, own, work in [*rows, (type(model).__name__, parameters, flops)]:
            print(f'{path:<48}{own:>14,}{work / 1e9:>12,.2f}')
        print(f'one sample, {"of the data set" if args.data_root else "random"}; inference')
        if args.out:
            document = dict(config=args.config, parameters=parameters, flops=flops,
                            modules={path: dict(parameters=p, flops=f) for path, p, f in rows})  # fmt: skip
            with atomic_write(args.out, 'w') as file:
                file.write(json.dumps(document, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(main())
