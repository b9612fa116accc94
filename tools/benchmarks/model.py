#!/usr/bin/env python
"""Times training steps and inference of a config's model by stage: time, memory, FLOPs; loading of the data apart.

    tools/benchmarks/model.py configs/fusion_occ/fusion_occ_synthetic.py
    tools/benchmarks/model.py configs/fusion_occ/fusion_occ.py --data-root data/city_full --precision fp32 bf16
    tools/benchmarks/model.py CONFIG --mode train --precision bf16 --steps 200      200 steps: is any loss not finite?
    tools/benchmarks/model.py configs/uniocc/uniocc_synthetic.py --random --mode train --rendering unfused

Samples come from the config's own data set; where that is not on disk, --random makes some of noise at nuScenes' size
(times are those of real ones, except where a layer's work depends on the content: sparse convolutions), or a synthetic
city in its place will do
(tools/create_data.py synthetic_city --root-path data/city_full --scenes 1 --keyframes 2 --image-size 1600x900).

Stages are the direct children of the model and what its class names in `stage_methods`: methods ("voxelize"), methods
of a part ("view_transform.cell_indices"), functions ("package.module:function"). The time of a stage is without that of
the stages inside of it; "other" is what the model does outside of them all. A model that remembers
earlier frames sees each place of the batch as one long drive. The time of a stage in the backward pass is that from the
arrival of the gradients of its outputs to the next such arrival, with the parts that activation checkpointing computes
again. Whole steps are timed first, without the probes. FLOPs: two for each multiply-add of a forward pass, of
convolutions, matrix products, attention, sparse convolution and frustum pooling. Kept memory: the tensors that a stage
saves for the backward pass. `--rendering unfused` renders rays as one writes it in torch: every sample's place,
grid_sample, opacities, weights and sums are tensors of their own.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli
from _cli import positive

PRECISIONS = dict(fp32=None, bf16='bfloat16', fp16='float16')


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--data-root', help="of the samples, in place of the config's")
    parser.add_argument('--random', action='store_true', help='samples of noise: needs no data set')
    parser.add_argument('--mode', choices=('train', 'test', 'both'), default='both')
    parser.add_argument('--precision', nargs='+', choices=PRECISIONS, help='default: fp32, on a GPU also bf16 and fp16')
    parser.add_argument('--batch', type=positive, help='samples a step (default: as the config says)')
    parser.add_argument('--steps', type=positive, default=3, help='timed steps a row (default: 3)')
    parser.add_argument('--warmup', type=int, default=1, help='steps before them (default: 1)')
    parser.add_argument('--samples', type=positive, default=2, help='samples to load and time (default: 2)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--threads', type=positive, help="CPU threads (default: torch's)")
    parser.add_argument(
        '--rendering', choices=('fused', 'unfused'), default='fused', help='of rays, one sample a step (default: fused)'
    )
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--out', type=Path, help='write the numbers to this JSON file as well')
    return parser.parse_args(argv)


class Memory:
    """The peak of memory in use: a GPU's allocations, or the process's resident memory."""

    def __init__(self, device):
        self.cuda = device.type == 'cuda'

    def forget_peak(self):
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # an older kernel: the peak is then that of the process's life
                Path('/proc/self/clear_refs').write_text('5')

    def _status(self, field):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        return 0

    def peak(self):
        import torch

        return torch.cuda.max_memory_allocated() if self.cuda else self._status('VmHWM')


def owner_of(model, name):
    """The object, and the name of its attribute, that an entry of ``stage_methods`` means. The object is None where the
    model lacks the part."""
    module, colon, function = name.partition(':')
    if colon:
        return importlib.import_module(module), function
    *parts, method = name.split('.')
    owner = model
    for part in parts:
        owner = getattr(owner, part, None)
    return (owner if hasattr(owner, method) else None), method


class Probe:
    """Forward and backward time of a model's children, and the memory of what they keep for the backward pass.

    Within ``with probe:`` every call of a child is timed; ``probe.backward()`` wraps the backward pass.
    """

    def __init__(self, model, device):
        self.device = device
        self.model = model
        self.stages = {
            name: child
            for name, child in model.named_children()
            if name != 'data_preprocessor' and (any(True for _ in child.parameters()) or name != 'loss_occ')
        }
        self.methods = {}  # name -> whose attribute it is, and which
        for name in getattr(model, 'stage_methods', ()):
            owner, attribute = owner_of(model, name)
            if owner is not None:
                self.methods[name] = owner, attribute
        names = [*self.stages, *self.methods]
        self.forward_seconds = dict.fromkeys(names, 0.0)
        self.backward_seconds = dict.fromkeys(names, 0.0)
        self.kept_bytes = dict.fromkeys(names, 0)
        self._running, self._arrivals, self._in_forward = [], [], True
        self._counted = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def clock(self):
        import torch

        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def __enter__(self):
        import torch

        self._saving = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._saving.__enter__()
        self._handles = []
        for name, stage in self.stages.items():
            self._handles.append(stage.register_forward_pre_hook(self._enter_hook(name)))
            self._handles.append(stage.register_forward_hook(self._leave_hook(name)))
        self._replaced = []
        for name, (owner, attribute) in self.methods.items():
            method = getattr(owner, attribute)
            self._replaced.append((owner, attribute, vars(owner).get(attribute)))
            setattr(owner, attribute, self._timed(name, method))
        return self

    def __exit__(self, *error):
        self._saving.__exit__(*error)
        for handle in self._handles:
            handle.remove()
        for owner, attribute, own in self._replaced:
            if own is None:
                delattr(owner, attribute)  # the class's own is behind it
            else:
                setattr(owner, attribute, own)

    def _timed(self, name, method):
        enter, leave = self._enter_hook(name), self._leave_hook(name)

        def timed(*args, **kwargs):
            enter()
            result = method(*args, **kwargs)
            leave(None, None, result)
            return result

        return timed

    def _keep(self, tensor):
        storage = tensor.untyped_storage()
        if self._running and self._in_forward and storage.data_ptr() not in self._counted:
            self._counted.add(storage.data_ptr())
            self.kept_bytes[self._running[-1][0]] += storage.nbytes()
        return tensor

    def _enter_hook(self, name):
        def hook(*_):
            if self._in_forward:
                self._running.append([name, self.clock(), 0.0])

        return hook

    def _leave_hook(self, name):
        from torch.utils._pytree import tree_leaves

        def hook(_module, _inputs, outputs):
            if not self._in_forward:
                return
            _, start, inside = self._running.pop()
            whole = self.clock() - start
            self.forward_seconds[name] += whole - inside
            if self._running:
                self._running[-1][2] += whole
            for tensor in tree_leaves(outputs):
                if getattr(tensor, 'requires_grad', False):
                    tensor.register_hook(lambda _grad: self._arrivals.append((self.clock(), name)))

        return hook

    @contextlib.contextmanager
    def backward(self):
        self._in_forward, self._arrivals = False, []
        yield
        ends = [moment for moment, _ in self._arrivals[1:]] + [self.clock()]
        for (start, name), end in zip(self._arrivals, ends):
            self.backward_seconds[name] += end - start
        self._in_forward = True


def count_flops(run):
    """FLOPs of ``run()`` by module path, our own operators included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def sparse_conv(features, weight, index, *_, **__):
        return 2 * int((index >= 0).sum()) * weight.shape[0] * weight.shape[2]

    def frustum_pool(_depth, feat, voxel, *_, **__):
        return 2 * int((voxel >= 0).sum()) * feat.shape[2]

    own = {}
    for name, formula in (('sparse_conv', sparse_conv), ('frustum_pool', frustum_pool)):
        if hasattr(torch.ops.occforge, name):
            formula._get_raw = True
            own[getattr(torch.ops.occforge, name)] = formula
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with torch.no_grad(), counter:
        run()
    return {path: sum(kinds.values()) for path, kinds in counter.get_flop_counts().items()}


def load_samples(dataset, number):
    """Samples, and the seconds of each transform a sample."""
    seconds = {}

    class Timed:
        def __init__(self, step):
            self.step, self.name = step, type(step).__name__

        def __call__(self, results):
            start = time.perf_counter()
            results = self.step(results)
            seconds.setdefault(self.name, []).append(time.perf_counter() - start)
            return results

    inner = dataset
    while not hasattr(inner, 'pipeline') and hasattr(inner, 'dataset'):
        inner = inner.dataset
    inner.full_init()
    inner.pipeline.transforms = [Timed(step) for step in inner.pipeline.transforms]
    samples = [dataset[i % len(dataset)] for i in range(number)]
    return samples, {name: sum(values) / number for name, values in seconds.items()}


def random_samples(cfg, samples):
    """Let a config read samples of noise; returns the temporary folder that holds them."""
    import tempfile

    from occforge.datasets.random_samples import use_random_samples

    folder = tempfile.TemporaryDirectory(prefix='occforge_')
    use_random_samples(cfg, folder.name, samples=samples)
    return folder


def render_unfused():
    """Let ``render_rays`` and ``render_samples`` run in their plain-torch forms, interpolating by grid_sample."""
    import torch
    from occforge.errors import ConfigError
    from occforge.ops import volume_render

    def grid_sample(grids, points, index):
        if len(grids) > 1:
            raise ConfigError(f'--rendering unfused takes one sample a step (--batch 1), found {len(grids)}')
        size = torch.tensor(grids.shape[1:4], device=points.device)
        places = ((points + 0.5) / size * 2 - 1).flip(-1)[None, None, None]
        found = torch.nn.functional.grid_sample(grids.movedim(-1, 1), places, align_corners=False)
        return found[0, :, 0, 0].T

    volume_render.choose = lambda name, device, reference: reference
    volume_render.interpolate_grids = grid_sample


def summary(values):
    return dict(median=statistics.median(values), fastest=min(values), slowest=max(values), runs=len(values))


class Benchmark:
    def __init__(self, cfg, args, device):
        import torch
        from mmdet3d.registry import MODELS
        from occforge.engine import use_channels_last

        self.cfg, self.args, self.device = cfg, args, device
        torch.manual_seed(0)
        self.model = _cli.run(lambda: MODELS.build(cfg.model), cfg).to(device)
        if cfg.get('channels_last'):
            use_channels_last(self.model)

    def batches(self, samples, batch, training):
        from mmengine.dataset import pseudo_collate

        count = math.ceil(max(len(samples), batch) / batch)
        rows = [[samples[(i * batch + j) % len(samples)] for j in range(batch)] for i in range(count)]
        return [self.model.data_preprocessor(pseudo_collate(row), training) for row in rows]

    def drive_on(self, batch, start):
        """Put the frames of a batch behind those of the batch before: place i is a frame of drive i."""
        for place, sample in enumerate(batch['data_samples']):
            if 'sequence_group_idx' in sample.metainfo:
                sample.set_metainfo(dict(sequence_group_idx=place, start_of_sequence=start, end_of_sequence=False))
                sample.pop('prev_token', None)

    def clock(self):
        import torch

        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def train(self, batches, precision):
        import torch
        from mmengine.optim import build_optim_wrapper

        model = self.model.train()
        wrapper = dict(self.cfg.optim_wrapper, accumulative_counts=1)
        if PRECISIONS[precision]:
            wrapper.update(type='OccAmpOptimWrapper', dtype=PRECISIONS[precision])
        optim = build_optim_wrapper(model, wrapper)
        seconds, losses, memory = [], [], Memory(self.device)
        memory.forget_peak()

        def step(batch, probe=None):
            self.drive_on(batch, start=not losses)
            start = self.clock()
            with optim.optim_context(model):
                terms = model(**batch, mode='loss')
                loss, logged = model.parse_losses(terms)
            forward = self.clock()
            with probe.backward() if probe else contextlib.nullcontext():
                optim.backward(optim.scale_loss(loss))
            backward = self.clock()
            optim.step()
            optim.zero_grad()
            end = self.clock()
            losses.append({name: float(value.detach()) for name, value in logged.items()})
            return [end - start, forward - start, backward - forward, end - backward]

        for number in range(self.args.warmup + self.args.steps):
            taken = step(batches[number % len(batches)])
            if number >= self.args.warmup:
                seconds.append(taken)
        peak = memory.peak()
        probe = Probe(model, self.device)
        with probe:
            probed = step(batches[0], probe)
        bad = [number for number, logged in enumerate(losses) if not all(map(math.isfinite, logged.values()))]
        row = {
            name: summary(values) for name, values in zip(('step', 'forward', 'backward', 'optimizer'), zip(*seconds))
        }
        row.update(peak_bytes=peak, first_losses=losses[0], last_losses=losses[-1], steps_not_finite=bad)
        row['stages'] = self.stages(probe, probed[1], probed[2])
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()  # what one precision has cached may be what the next one lacks
        return row

    def test(self, batches, precision):
        import torch

        model = self.model.eval()
        kind = PRECISIONS[precision]
        context = torch.autocast(self.device.type, dtype=getattr(torch, kind)) if kind else contextlib.nullcontext()
        seconds, memory = [], Memory(self.device)
        memory.forget_peak()
        with torch.no_grad(), context:
            for number in range(self.args.warmup + self.args.steps):
                batch = batches[number % len(batches)]
                self.drive_on(batch, start=number == 0)
                start = self.clock()
                model(**batch, mode='predict')
                if number >= self.args.warmup:
                    seconds.append(self.clock() - start)
            peak = memory.peak()
            probe = Probe(model, self.device)
            with probe:
                start = self.clock()
                model(**batches[0], mode='predict')
                whole = self.clock() - start
        return dict(step=summary(seconds), peak_bytes=peak, stages=self.stages(probe, whole, None))

    def flops(self, batches):
        """FLOPs of one forward pass of the first batch, by stage."""
        self.model.eval()
        self.drive_on(batches[0], start=True)
        counts = count_flops(lambda: self.model(**batches[0], mode='predict'))
        whole = counts.get('Global', 0)
        root = type(self.model).__name__
        stages = {name: counts.get(f'{root}.{name}', 0) for name, _ in self.model.named_children()}
        stages = {name: value for name, value in stages.items() if value}
        return dict(whole=whole, stages=dict(stages, other=whole - sum(stages.values())))

    def stages(self, probe, forward, backward):
        rows = {}
        for name in probe.forward_seconds:
            stage = probe.stages.get(name)
            parameters = 0 if stage is None else sum(parameter.numel() for parameter in stage.parameters())
            if not (parameters or probe.forward_seconds[name]):
                continue
            rows[name] = dict(
                parameters=parameters,
                forward=probe.forward_seconds[name],
                backward=probe.backward_seconds[name] if backward is not None else None,
                kept_bytes=probe.kept_bytes[name],
            )
        rows['other'] = dict(
            parameters=0,
            forward=forward - sum(row['forward'] for row in rows.values()),
            backward=None if backward is None else backward - sum(row['backward'] for row in rows.values()),
            kept_bytes=None,
        )
        return rows


def print_row(title, row, flops):
    def ms(value):
        return '-' if value is None else f'{1e3 * value:,.1f}'

    print(f'\n{title}: {ms(row["step"]["median"])} ms a step (median of {row["step"]["runs"]}, fastest '
          f'{ms(row["step"]["fastest"])}), peak memory {row["peak_bytes"] / 2**30:.2f} GiB')  # fmt: skip
    if 'forward' in row:
        print('  ' + ', '.join(f'{name} {ms(row[name]["median"])} ms' for name in ('forward', 'backward', 'optimizer')))
        terms = ', '.join(f'{name} {value:.4g}' for name, value in row['last_losses'].items())
        print(f'  last losses: {terms}; steps with a loss that is not finite: {len(row["steps_not_finite"])}')
    width = max(26, *(len(name) + 2 for name in row['stages']))
    print(f'  {"stage":<{width}}{"parameters":>13}{"forward ms":>12}{"backward ms":>13}{"GFLOP":>10}{"kept MiB":>10}')
    for name, stage in row['stages'].items():
        gflop, kept = flops['stages'].get(name), stage['kept_bytes']
        cells = [f'{stage["parameters"]:>13,}{ms(stage["forward"]):>12}{ms(stage["backward"]):>13}']
        cells.append(f'{"-" if gflop is None else f"{gflop / 1e9:,.2f}":>10}')
        cells.append(f'{"-" if kept is None else f"{kept / 2**20:,.0f}":>10}')
        print(f'  {name:<{width}}{"".join(cells)}')


def main(argv=None):
    args = parse_arguments(argv)
    _cli.use_this_checkout()
    import torch
    from mmdet3d.registry import DATASETS
    from mmengine.registry import DefaultScope
    from occforge.engine import load_config
    from occforge.engine.memory import keep_freed_memory
    from occforge.errors import ConfigError, cli_errors
    from occforge.ops import has_extension

    with cli_errors():
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.device == 'cuda' and not torch.cuda.is_available():
            raise ConfigError('--device cuda: torch sees no GPU')
        device = torch.device('cuda' if args.device != 'cpu' and torch.cuda.is_available() else 'cpu')
        if args.rendering == 'unfused':
            render_unfused()
        if device.type == 'cpu':  # as trainings do
            keep_freed_memory()
        precisions = args.precision or (list(PRECISIONS) if device.type == 'cuda' else ['fp32'])
        if device.type == 'cpu' and 'fp16' in precisions:
            raise ConfigError('--precision fp16 needs a GPU; the CPU has fp32 and bf16')
        overrides = [*args.cfg_options, *([f'data_root={args.data_root}'] if args.data_root else [])]
        cfg = load_config(args.config, overrides)
        noise = random_samples(cfg, args.samples) if args.random else None  # its folder lives as long as this name
        DefaultScope.get_instance('benchmark', scope_name=cfg.get('default_scope', 'mmdet3d'))
        benchmark = Benchmark(cfg, args, device)
        document = dict(
            config=args.config,
            device=torch.cuda.get_device_name() if device.type == 'cuda' else _cli.processor_name(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            compiled_operators=has_extension(),
            samples='random' if args.random else 'of the data set',
            rendering=args.rendering,
            parameters=sum(parameter.numel() for parameter in benchmark.model.parameters()),
        )
        print(', '.join(f'{name} {value}' for name, value in document.items()))
        flops = None
        for mode in ('train', 'test') if args.mode == 'both' else (args.mode,):
            loader = cfg[f'{"train" if mode == "train" else "test"}_dataloader']
            samples, loading = load_samples(DATASETS.build(loader.dataset), args.samples)
            whole = sum(loading.values())
            print(f'\n{mode}: loading {1e3 * whole:,.1f} ms a sample in one process: '
                  + ', '.join(f'{name} {1e3 * value:,.1f}' for name, value in loading.items()))  # fmt: skip
            batch = args.batch or loader.get('batch_size', 1)
            batches = benchmark.batches(samples, batch, mode == 'train')
            if flops is None:
                flops = benchmark.flops(batches)
                print(f'forward pass of {batch} sample(s): {flops["whole"] / 1e9:,.2f} GFLOP')
            document[mode] = dict(batch=batch, loading=loading, precision={})
            for precision in precisions:
                row = getattr(benchmark, mode)(batches, precision)
                document[mode]['precision'][precision] = row
                print_row(f'{mode}, {precision}, batch {batch}', row, flops)
        document['flops'] = flops
        if args.out:
            args.out.write_text(json.dumps(document, indent=1) + '\n')
            print(f'\nwritten to {args.out}')
        if noise is not None:
            noise.cleanup()


if __name__ == '__main__':
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    sys.exit(main())
