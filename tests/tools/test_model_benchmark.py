"""benchmarks/model.py on a tiny model: stages, FLOPs and kept memory against numbers that can be written down."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from occforge.errors import ConfigError
from occforge.ops.sparse_conv import neighbour_map, sparse_conv
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools' / 'benchmarks'))
import model as benchmark


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return dict(answer=[self.second(self.first(x) * 2)])


def test_stages_of_forward_and_backward():
    model, x = Two(), torch.randn(5, 4, requires_grad=True)
    probe = benchmark.Probe(model, torch.device('cpu'))
    with probe:
        loss = model(x)['answer'][0].sum()
        with probe.backward():
            loss.backward()
    assert list(probe.stages) == ['first', 'second']
    assert all(seconds > 0 for seconds in (*probe.forward_seconds.values(), *probe.backward_seconds.values()))
    # what a linear layer saves is its input (5, 4) and (5, 8), float32; the weights are there anyway
    assert probe.kept_bytes == dict(first=5 * 4 * 4, second=5 * 8 * 4)
    with torch.no_grad():
        model(x)  # the hooks are gone
    assert probe.kept_bytes['first'] == 80


def test_methods_may_be_stages():
    class Doubling(Two):
        stage_methods = ('double',)

        def double(self, x):
            return x * 2

        def forward(self, x):
            return dict(answer=[self.second(self.double(self.first(x)))])

    model, x = Doubling(), torch.randn(5, 4, requires_grad=True)
    probe = benchmark.Probe(model, torch.device('cpu'))
    with probe:
        loss = model(x)['answer'][0].sum()
        with probe.backward():
            loss.backward()
    assert probe.forward_seconds['double'] > 0 and probe.backward_seconds['double'] > 0
    assert 'double' not in vars(model)


def halve(x):
    time.sleep(0.02)
    return x / 2


def test_stages_inside_of_stages_are_not_counted_twice():
    class Nested(Two):
        stage_methods = ('first.prepare', f'{__name__}:halve', 'third.prepare')

        def forward(self, x):
            return dict(answer=[self.second(self.first(x))])

    class First(nn.Linear):
        def prepare(self, x):
            time.sleep(0.03)
            return halve(x)

        def forward(self, x):
            return super().forward(self.prepare(x))

    model, x, before = Nested(), torch.randn(5, 4), halve
    model.first = First(4, 8)
    probe = benchmark.Probe(model, torch.device('cpu'))
    start = time.perf_counter()
    with probe:
        model(x)
    whole, seconds = time.perf_counter() - start, probe.forward_seconds
    assert seconds['first.prepare'] >= 0.03 and seconds[f'{__name__}:halve'] >= 0.02
    assert sum(seconds.values()) <= whole and seconds['first'] <= whole - 0.05
    assert 'third.prepare' not in seconds and halve is before and 'prepare' not in vars(model.first)


def test_places_of_a_batch_are_drives():
    samples = [Det3DDataSample() for _ in range(2)]
    for index, sample in enumerate(samples):
        sample.set_metainfo(dict(sequence_group_idx=7, start_of_sequence=False, prev_token=f't{index}'))
    benchmark.Benchmark.drive_on(None, dict(data_samples=samples), start=True)
    assert [sample.sequence_group_idx for sample in samples] == [0, 1]
    assert all(sample.start_of_sequence and 'prev_token' not in sample for sample in samples)
    bare = Det3DDataSample()
    benchmark.Benchmark.drive_on(None, dict(data_samples=[bare]), start=True)
    assert not bare.metainfo


def test_flops_count_our_operators():
    model, x = Two(), torch.randn(5, 4)
    counts = benchmark.count_flops(lambda: model(x))
    assert counts['Global'] == 2 * 5 * (4 * 8 + 8 * 3) and counts['Two.first'] == 2 * 5 * 4 * 8
    coords = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2]], dtype=torch.int32)
    index = neighbour_map(coords, coords, (4, 4, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    pairs = int((index >= 0).sum())
    counts = benchmark.count_flops(lambda: sparse_conv(torch.randn(2, 3), torch.randn(5, 27, 3), index))
    assert pairs == 4 and counts['Global'] == 2 * pairs * 3 * 5


def test_loading_is_timed_by_transform():
    class Data:
        def __init__(self):
            self.pipeline = SimpleNamespace(transforms=[lambda x: x + 1, Add(2)])

        def full_init(self):
            pass

        def __len__(self):
            return 2

        def __getitem__(self, index):
            for step in self.pipeline.transforms:
                index = step(index)
            return index

    class Add:
        def __init__(self, number):
            self.number = number

        def __call__(self, x):
            return x + self.number

    samples, seconds = benchmark.load_samples(Data(), 3)
    assert samples == [3, 4, 3] and set(seconds) == {'function', 'Add'}


def test_unfused_rendering_computes_the_same(monkeypatch):
    from occforge.ops import render_rays, volume_render

    for name in ('choose', 'interpolate_grids'):  # put back after the test
        monkeypatch.setattr(volume_render, name, getattr(volume_render, name))
    torch.manual_seed(0)
    density = (3 * torch.randn(1, 8, 7, 5)).requires_grad_()
    semantics = torch.randn(1, 8, 7, 5, 4).requires_grad_()
    origins, directions = torch.randn(50, 3), torch.randn(50, 3)

    def rendered():
        found = render_rays(density, semantics, origins, directions, [-4.0, -3.5, -2.5], [1.0] * 3, step=0.5)
        loss = found.depth.sum() + found.semantics.square().sum() + found.distortion.sum()
        return *found, *torch.autograd.grad(loss, (density, semantics))

    fused = rendered()
    benchmark.render_unfused()
    unfused = rendered()
    for one, other in zip(fused, unfused):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.equal(fused[1], unfused[1]), 'the same bits: the fused operator has run again'
    with pytest.raises(ConfigError, match='--batch 1'):
        render_rays(
            density.expand(2, -1, -1, -1), semantics.expand(2, -1, -1, -1, -1), origins, directions, [-4.0, -3.5, -2.5],
            [1.0] * 3, step=0.5, grid_index=torch.zeros(50, dtype=torch.int64),
        )  # fmt: skip
