"""The library of compiled operators as a whole: what each of them must come with, and what happens without some."""

import os
import re
from pathlib import Path

import pytest
import torch
from occforge.ops import scene_cast, sparse_conv  # noqa: F401  the last two declare operators
from occforge.ops._backend import _library, absent_operators
from op_testing import needs_extension, run_python, run_without_extension

CSRC = Path(__file__).resolve().parents[2] / 'csrc'
TEXT = re.sub(r'"\s+"', '', (CSRC / 'registration.cpp').read_text())
SCHEMAS = {name: schema for schema, name in re.findall(r'm\.def\(\s*"((\w+)\(.*?)"\s*\)', TEXT, re.DOTALL)}
# Not differentiable: numbers of cells and rows come out, or nothing but geometry goes in.
WITHOUT_GRADIENT = {
    'cast_rays', 'clip_rays', 'confusion_matrix', 'frustum_indices', 'observed_cells', 'ray_counts', 'ray_samples',
    'scene_bvh', 'scene_cast', 'sparse_map', 'sparse_sites', 'sparse_transpose_map', 'voxel_assign', 'voxel_limit',
}  # fmt: skip
# Not summed, or only over what the caller chose the type of: autocast leaves them alone.
AS_GIVEN = {'sparse_max_pool', 'voxel_reduce'}


def has_kernel(name, key):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f'occforge::{name}', key)


@needs_extension
@pytest.mark.parametrize('name', sorted(SCHEMAS))
class TestOperator:
    """A new operator fails here until it is whole."""

    def test_the_library_is_built_from_these_sources(self, name):
        assert hasattr(torch.ops.occforge, name), 'the compiled operators are out of date: make setup'
        built = str(getattr(torch.ops.occforge, name).default._schema)
        wanted = str(torch._C.parse_schema(f'occforge::{SCHEMAS[name]}'))
        assert built == wanted, 'the compiled operators are out of date: make setup'

    def test_python_declares_it(self, name):
        assert name in _library.operators

    def test_kernels(self, name):
        assert has_kernel(name, 'CPU') and not has_kernel(name, 'CompositeImplicitAutograd')
        sources = [path.read_text() for path in CSRC.rglob('*.cu')]
        by_torch = {'voxel_limit', 'scene_bvh'}  # sorting by torch's own operators; built once, on the host
        assert (name in by_torch) == (not any(f'm.impl("{name}"' in source for source in sources))

    def test_fake_kernel(self, name):
        assert torch._library.simple_registry.singleton.find(f'occforge::{name}').fake_impl.kernel is not None

    def test_gradient(self, name):
        """A backward operator has one as well: it raises where a second derivative is not offered."""
        assert has_kernel(name, 'Autograd') == (name not in WITHOUT_GRADIENT)

    def test_autocast_rule(self, name):
        ruled = name not in WITHOUT_GRADIENT | AS_GIVEN and not name.endswith(('_backward', '_weight'))
        assert has_kernel(name, 'AutocastCPU') == has_kernel(name, 'AutocastCUDA') == ruled


@needs_extension
def test_every_declared_operator_exists():
    assert set(_library.operators) == set(SCHEMAS) and absent_operators() == ()


@pytest.mark.skipif(os.environ.get('OCCFORGE_SANITIZE', '0') != '1', reason='for make test-asan')
def test_the_sanitized_library_is_the_one_that_is_tested():
    assert b'__asan_init' in _library.path.read_bytes() and b'__ubsan' in _library.path.read_bytes()


STALE = """
import warnings, torch
from torch._ops import _OpNamespace

find = _OpNamespace.__getattr__

def as_built_earlier(self, name):
    if name in ('volume_render_backward', 'voxel_limit'):
        raise AttributeError(name)
    return find(self, name)

_OpNamespace.__getattr__ = as_built_earlier
warnings.simplefilter('always')
from occforge.ops import absent_operators, confusion_matrix, hard_voxelize, has_extension, render_rays, voxelize
from occforge.ops._backend import choose

with warnings.catch_warnings(record=True) as caught:
    points = torch.tensor([[.1, .1, .1, 1.], [.2, .2, .2, 3.], [1.1, .1, .1, 5.]])
    grid = [0, 0, 0], [1, 1, 1], [2, 2, 2]
    print(*voxelize(points, None, *grid).features[:, 3].tolist())
    print(len(caught))
    print(*hard_voxelize(points, None, *grid, 1, 9).features[:, 3].tolist())
    density, semantics = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.ones(1, 2, 1, 1, 1)
    rays = torch.tensor([[-1., .5, .5]]), torch.tensor([[1., 0, 0]])
    out = render_rays(density, semantics, *rays, [0, 0, 0], [1, 1, 1], step=1.0)
    out.depth.sum().backward()
    print(round(out.depth.item(), 4), density.grad is not None)
print(has_extension(), *absent_operators())
cpu = torch.device('cpu')
print(*(choose(name, cpu, None) is not None for name in ('voxel_assign', 'voxel_limit', 'volume_render')))
print(len(caught), caught[0].message)
"""


@needs_extension
def test_an_older_library_serves_with_what_it_has():
    lines = run_python(STALE).splitlines()
    assert lines[:4] == ['2.0 5.0', '0', '1.0 5.0', '1.375 True']
    assert lines[4] == 'True volume_render_backward voxel_limit'
    assert lines[5] == 'True False False'  # without its backward the forward operator is not used
    assert lines[6] == (
        '1 the compiled operators of occforge are out of date: volume_render_backward, voxel_limit came later. For '
        'these the plain-torch references run instead, correct but slow. Build them with `make setup` or `pip install '
        '-e . --no-build-isolation`.'
    )


def test_switched_off():
    code = """
import warnings, torch
warnings.simplefilter('always')
from occforge.ops import absent_operators, extension_devices, has_extension, voxelize
from occforge.ops.scene_cast import BOX, Scene, primitive_rows
with warnings.catch_warnings(record=True) as caught:
    for _ in range(2):
        voxelize(torch.zeros(2, 3), None, [0, 0, 0], [1, 1, 1], [2, 2, 2])
    Scene(primitive_rows(BOX, (5, 0, 1), torch.eye(3), (1, 1, 1)))
print(has_extension(), absent_operators(), set(extension_devices()))
print(len(caught), str(caught[0].message).split(':')[0])
"""
    assert run_without_extension(code).splitlines() == [
        'False () set()',
        '1 the compiled operators of occforge are switched off by OCCFORGE_DISABLE_EXT=1',
    ]
