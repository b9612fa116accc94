"""Every operator against the same list, whoever wrote it; what an operator computes is tested in its own file."""

import re
from pathlib import Path

import pytest
import torch
from occforge.ops import extension_devices, has_extension
from op_testing import OPCHECK_TESTS, awkward

if not has_extension():
    pytest.skip('the compiled operators are not built', allow_module_level=True)

from samples import SAMPLES

CSRC = Path(__file__).resolve().parents[2] / 'csrc'
NAMES = sorted(SAMPLES)
SEED = {'ray_samples': 4, 'volume_render': 5, 'volume_render_backward': 13}  # place of this argument
# a GPU adds these by atomics, whose order varies
ATOMIC = {'deform_attn_backward', 'volume_render_backward', 'volume_render_samples_backward'}
# the host waits for the size of the result or for what has to be raised, so a graph cannot hold them
WAITS = {'confusion_matrix', 'ray_samples', 'sparse_map', 'sparse_sites', 'voxel_assign', 'voxel_limit'}


def run(name, arguments):
    """The operator's outputs as a tuple of tensors without gradients."""
    out = getattr(torch.ops.occforge, name)(*arguments)
    return tuple(value.detach() for value in (out if isinstance(out, (tuple, list)) else (out,)))


def same(found, expected):
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        for a, b in zip(found, expected)
    )


def on(device, arguments):
    return [value.detach().to(device) if isinstance(value, torch.Tensor) else value for value in arguments]


def test_no_operator_is_left_out():
    assert set(re.findall(r'm\.def\(\s*"(\w+)\(', (CSRC / 'registration.cpp').read_text())) == set(SAMPLES)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', NAMES)
def test_opcheck(name):
    """Schema, gradient registration, fake kernel (shapes, types, strides) and AOT dispatch with dynamic shapes."""
    for seed in range(10):
        operator = getattr(torch.ops.occforge, name).default
        torch.library.opcheck(operator, tuple(SAMPLES[name](seed)), test_utils=OPCHECK_TESTS)


@pytest.mark.parametrize('name', NAMES)
def test_compile(name):
    torch._dynamo.reset()  # all operators look like one function to it, compiled again and again
    operator = getattr(torch.ops.occforge, name)
    arguments = SAMPLES[name](5)
    compiled = torch.compile(operator, fullgraph=True, backend='aot_eager')(*arguments)
    compiled = compiled if isinstance(compiled, (tuple, list)) else (compiled,)
    assert same([value.detach() for value in compiled], run(name, arguments))


@pytest.mark.parametrize('name', NAMES)
def test_layout_threads_and_repeats(name):
    """The same bits from any memory layout, at any number of threads, 21 times."""
    arguments = SAMPLES[name](4, scale=40)
    expected = run(name, arguments)
    strange = [awkward(value.detach()) if isinstance(value, torch.Tensor) else value for value in arguments]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert same(run(name, strange), expected)
            assert all(same(run(name, arguments), expected) for _ in range(6))
    finally:
        torch.set_num_threads(threads)


def corrupted(name, arguments, generator):
    """The arguments with one tensor of another type or rank; what it is that was done."""

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=generator))

    arguments = on('cpu', arguments)
    # a seed is one number of any shape
    places = [i for i, value in enumerate(arguments) if isinstance(value, torch.Tensor) and i != SEED.get(name)]
    place = places[draw(len(places))]
    value = arguments[place]
    if draw(2):
        arguments[place] = value.to([torch.complex64, torch.int16, torch.float8_e5m2][draw(3)])
        return arguments, f'argument {place} of type {arguments[place].dtype}'
    arguments[place] = value[None, None] if draw(2) else value.unsqueeze(-1).expand(*value.shape, 2)
    return arguments, f'argument {place} of shape {tuple(arguments[place].shape)} instead of {tuple(value.shape)}'


@pytest.mark.parametrize('name', NAMES)
def test_corrupt_tensors_give_errors(name):
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        arguments, what = corrupted(name, SAMPLES[name](2 + trial % 5), generator)
        with pytest.raises((ValueError, TypeError, RuntimeError, NotImplementedError)):
            run(name, arguments)
            pytest.fail(f'{what}: accepted')


@pytest.mark.parametrize('name', NAMES)
def test_corrupt_numbers_do_no_harm(name):
    """Whole numbers that lead anywhere: an error or a result, never a stray access (`make test-asan` sees them)."""
    generator = torch.Generator().manual_seed(1)
    far = [-(2**63), -(2**31), -2, -1, 1, 1000, 2**31 - 1, 2**31, 2**62, 2**63 - 1]
    for trial in range(60):
        arguments = on('cpu', SAMPLES[name](2 + trial % 5))
        tensors = [value for value in arguments if isinstance(value, torch.Tensor) and value.numel()]
        tensors = [value for value in tensors if value.dtype in (torch.int64, torch.int32)]
        if not tensors:
            continue
        chosen = tensors[trial % len(tensors)]
        place, number = (int(torch.randint(0, high, (1,), generator=generator)) for high in (chosen.numel(), len(far)))
        number = far[number]
        if chosen.dtype == torch.int32:
            number = max(-(2**31), min(2**31 - 1, number))
        elif name == 'ray_samples' and chosen is arguments[2]:
            number = min(number, 1000)  # samples wanted, not a place: memory is all that bounds them
        chosen.view(-1)[place] = number
        try:
            run(name, arguments)
        except (ValueError, TypeError, RuntimeError):
            continue


@pytest.mark.cuda
@pytest.mark.skipif(
    'cuda' not in extension_devices() or not torch.cuda.is_available(), reason='no GPU, or operators built without it'
)
@pytest.mark.parametrize('name', sorted(set(NAMES) - {'scene_bvh'}))
class TestCuda:
    def compare(self, name, found, expected):
        for a, b in zip(found, expected):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4, equal_nan=True)

    @pytest.mark.parametrize('seed', range(10))
    def test_equals_cpu(self, name, seed):
        arguments = SAMPLES[name](seed, scale=1 + 20 * (seed > 5))
        self.compare(name, run(name, on('cuda', arguments)), run(name, arguments))

    def test_side_stream_and_layout(self, name):
        arguments = SAMPLES[name](6, scale=20)
        strange = [awkward(value.detach()) if isinstance(value, torch.Tensor) else value for value in arguments]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = run(name, on('cuda', strange))
        stream.synchronize()
        self.compare(name, found, run(name, arguments))

    def test_repeats(self, name):
        arguments = on('cuda', SAMPLES[name](6, scale=20))
        expected = run(name, arguments)
        for _ in range(20):
            found = run(name, arguments)
            self.compare(name, found, [value.cpu() for value in expected])
            assert name in ATOMIC or same(found, expected)

    def test_graph_capture(self, name):
        if name in WAITS:
            pytest.skip('the host waits for the size of the result')
        arguments = on('cuda', SAMPLES[name](6, scale=20))
        expected = run(name, arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run(name, arguments)
        graph.replay()
        torch.cuda.synchronize()
        self.compare(name, found, [value.cpu() for value in expected])
