#!/usr/bin/env python3
"""What memory a training or inference of a config needs, without a GPU and without a data set.

tools/analysis/estimate_memory.py configs/fusion_occ/fusion_occ.py --batch 1 2 4
tools/analysis/estimate_memory.py CONFIG --cfg-options model.with_cp=True        with activation checkpointing

A training step holds weights, gradients, the optimizer's state, averaged weights where there is an EMA hook, and what
the forward pass keeps for the backward pass. The last is measured: one forward pass of one sample of noise, on the CPU,
counting each kept tensor once; it grows with the batch. Not counted are what an operator needs while it runs, cuDNN's
work space and the CUDA context (about 0.5 GiB), so a GPU should have a quarter more than the sum.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'benchmarks'))
import _cli
from model import random_samples

# tensors of the parameters' size that an optimizer keeps; MuonAdamW: of kernels, which are nearly all of them
MOMENTS = dict(
    Adam=2, AdamW=2, NAdam=2, RAdam=2, Adamax=2, SGD=1, RMSprop=1, Adagrad=1, Adadelta=2, MuonAdamW=1
)  # fmt: skip
GIB = 2**30


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--batch', type=int, nargs='+', help="samples a device (default: the config's)")
    parser.add_argument('--data-root', help='of a real sample (default: a sample of noise)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = parser.parse_args(argv)
    if args.batch and min(args.batch) < 1:
        parser.error('--batch must be 1 or more')
    return args


def kept_bytes(model, run):
    """Bytes that ``run()`` keeps for the backward pass: each storage once, the model's own tensors not."""
    import torch

    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def fixed_bytes(model, optimizer, ema):
    """{part: bytes} that do not depend on the batch."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    parts = dict(weights=weights, gradients=trained, optimizer=MOMENTS.get(optimizer.get('type'), 2) * trained)
    if optimizer.get('type') == 'SGD' and not optimizer.get('momentum'):
        parts['optimizer'] = 0
    if ema:
        parts['averaged weights'] = weights
    return parts


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        import contextlib

        from mmdet3d.registry import DATASETS, MODELS
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import DefaultScope
        from occforge.engine import load_config

        overrides = [*args.cfg_options, *([f'data_root={args.data_root}'] if args.data_root else [])]
        cfg = load_config(args.config, overrides)
        DefaultScope.get_instance('estimate_memory', scope_name=cfg.get('default_scope', 'mmdet3d'))
        with contextlib.nullcontext() if args.data_root else random_samples(cfg, 1):
            sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
        model = _cli.run(lambda: MODELS.build(cfg.model), cfg)
        model.train()
        batch = model.data_preprocessor(pseudo_collate([sample]), True)
        print('one forward pass on the CPU: minutes for a model of official size', file=sys.stderr, flush=True)
        activations = kept_bytes(model, lambda: model(**batch, mode='loss'))
        hooks = [str(hook.get('type')) for hook in cfg.get('custom_hooks') or ()]
        parts = fixed_bytes(model, cfg.optim_wrapper.optimizer, any('EMA' in name for name in hooks))
        for name, size in parts.items():
            print(f'{name:<34}{size / GIB:>9.2f} GiB')
        print(f'{"kept by the forward pass, a sample":<34}{activations / GIB:>9.2f} GiB  (float32)')
        for size in args.batch or [cfg.train_dataloader.get('batch_size', 1)]:
            whole, half = (sum(parts.values()) + size * activations / divisor for divisor in (1, 2))
            print(f'training, batch {size:<3} {whole / GIB:8.2f} GiB; mixed precision about {half / GIB:.2f} GiB')


if __name__ == '__main__':
    sys.exit(main())
