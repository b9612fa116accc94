"""Ray casting of analytic solids: the tree against brute force in plain torch, and known answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops.scene_cast import (
    BOX,
    CONE,
    ELLIPSOID,
    Scene,
    primitive_rows,
    scene_bvh_reference,
    scene_cast_reference,
    tile_maxima,
)
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

EYE = torch.eye(3)


def random_rotations(count, generator):
    return torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0]


def random_scene(seed, count=60, cells=(23, 37)):
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (count,), generator=g)
    centre = torch.rand(count, 3, generator=g, dtype=torch.float64) * torch.tensor([18.0, 11.0, 4.0])
    half = 0.1 + torch.rand(count, 3, generator=g, dtype=torch.float64)
    top = torch.rand(count, 2, generator=g, dtype=torch.float64) * 1.3
    shift = torch.rand(count, generator=g, dtype=torch.float64) - 0.5
    rows = primitive_rows(kind, centre, random_rotations(count, g), half, top, shift)
    heights = torch.rand(cells[0] + 1, cells[1] + 1, generator=g)
    return Scene(rows, heights, (-0.3, 0.2), 0.5), g


def arguments_of(scene):
    """The scene's part of the operator's arguments."""
    return scene.primitives, *scene.tree, scene.heights, scene.maxima, *scene.lower, scene.cell, scene.top


def compare(scene, origins, directions, far=math.inf):
    got = scene.cast(origins, directions, far=far)
    want = scene_cast_reference(*arguments_of(scene), origins, directions, 1e-6, min(far, 1e9), False)
    same = got.primitive == want[0]
    # two surfaces at one distance (a solid that cuts the ground) may swap by rounding
    tie = (got.distance - want[1]).abs() < 1e-6
    assert (same | tie).all()
    hit = same & (want[0] >= 0)
    assert hit.sum() > 0
    torch.testing.assert_close(got.distance[hit], want[1][hit], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.normal[hit], want[2][hit], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.uv[hit], want[3][hit], rtol=1e-4, atol=1e-4)
    assert (got.face[hit] == want[4][hit]).all()
    shadow = scene.occluded(origins, directions, near=1e-6, far=far)
    assert (shadow == (got.primitive >= 0)).all()
    return hit.sum()


@pytest.mark.parametrize('seed', range(6))
def test_tree_equals_brute_force(seed):
    scene, g = random_scene(seed)
    origins = torch.rand(300, 3, generator=g, dtype=torch.float64) * torch.tensor([20.0, 12.0, 3.0])
    origins[:, 2] += 1.5
    directions = torch.randn(300, 3, generator=g, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    compare(scene, origins, directions)
    compare(scene, origins[:1], directions, far=5.0)


@needs_extension
@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 9), cells=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 2**31))
def test_small_scenes_equal_brute_force(count, cells, seed):
    scene, g = random_scene(seed, count, cells)
    origins = torch.rand(15, 3, generator=g, dtype=torch.float64) * torch.tensor([20.0, 12.0, 4.0])
    origins[:, 2] += 1.01  # above the ground
    directions = torch.randn(15, 3, generator=g, dtype=torch.float64)
    got = scene.cast(origins, directions)
    want = scene_cast_reference(*arguments_of(scene), origins, directions, 1e-6, 1e9, False)
    assert ((got.primitive == want[0]) | ((got.distance - want[1]).abs() < 1e-6)).all()
    torch.testing.assert_close(got.distance, want[1], rtol=1e-7, atol=1e-6)
    check_fake('scene_bvh', scene.primitives)
    check_fake('scene_cast', *arguments_of(scene), origins, directions, 1e-6, 1e9, False)


@pytest.mark.parametrize('axis', [(1, 0, 0), (0, -1, 0), (0, 0, -1), (1, 0, -0.05), (0, 1, -0.05)])
def test_rays_along_the_axes(axis):
    scene, g = random_scene(11)
    origins = torch.rand(200, 3, generator=g, dtype=torch.float64) * torch.tensor([18.0, 11.0, 1.0])
    origins[:, 2] += 1.01
    compare(scene, origins, torch.tensor([axis], dtype=torch.float64).repeat(200, 1))


def test_known_answers():
    rows = torch.cat(
        [
            primitive_rows(BOX, (5, 0, 1), EYE, (1, 1, 1)),
            primitive_rows(CONE, (0, 5, 1), EYE, (1, 0, 1)),
            primitive_rows(ELLIPSOID, (-5, 0, 1), EYE, (1, 2, 1)),
            primitive_rows(BOX, (0, -5, 1), EYE, (1, 1, 1), top=(1, 0)),
        ]
    )
    scene = Scene(rows, torch.zeros(41, 41), (-10.0, -10.0), 0.5)
    origins = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    directions = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1]]).double()
    hits = scene.cast(origins, directions)
    assert hits.primitive.tolist() == [0, 1, 2, 3, 4, -1]
    torch.testing.assert_close(hits.distance[:5], torch.tensor([4.0, 4.5, 4.0, 4.5, 1.0]).double())
    assert hits.distance[5] == math.inf
    assert hits.face[:5].tolist() == [0, 1, 1, 3, 5]
    torch.testing.assert_close(hits.normal[0], torch.tensor([-1.0, 0, 0]))
    torch.testing.assert_close(hits.normal[3], torch.tensor([0, 2.0, 1.0]) / math.sqrt(5))
    torch.testing.assert_close(hits.uv[0], torch.tensor([1.0, 1.0]))


def test_a_solid_is_not_seen_from_inside():
    rows = torch.cat([primitive_rows(kind, (0, 0, 0), EYE, (1, 1, 1)) for kind in (BOX, CONE, ELLIPSOID)])
    directions = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (Scene(rows).cast(torch.zeros(1, 3).double(), directions).primitive == -1).all()


def test_nothing_to_hit_and_no_rays():
    empty = torch.zeros(0, 20, dtype=torch.float64)
    ray = torch.tensor([[0.0, 0, -1]]).double()
    assert Scene(empty).cast(torch.zeros(1, 3).double(), ray).primitive.tolist() == [-1]
    hits = Scene(empty, torch.zeros(3, 3)).cast(torch.zeros(1, 3).double(), torch.zeros(0, 3).double())
    assert hits.primitive.shape == (0,) and hits.normal.shape == (0, 3)


def test_what_is_refused():
    rows = primitive_rows(BOX, (0, 0, 0), EYE, (1, 1, 1))
    with pytest.raises(ValueError, match=r'primitives must be \(P, 20\) float64'):
        Scene(rows.float())
    with pytest.raises(ValueError, match='not finite'):
        Scene(rows, torch.full((3, 3), math.nan))
    with pytest.raises(ValueError, match='directions must be'):
        Scene(rows).cast(torch.zeros(1, 3).double(), torch.zeros(4, 2).double())
    with pytest.raises(ValueError, match='3 origins do not match 4'):
        Scene(rows).cast(torch.zeros(3, 3).double(), torch.zeros(4, 3).double())
    for column, value, message in (
        (15, 0.0, 'primitive 1 has no extent'),
        (0, 3.0, 'primitive 1 has the unknown type 3'),
        (5, math.nan, 'primitive 1 has a value that is not finite in column 5'),
    ):
        bad = rows.repeat(2, 1)
        bad[1, column] = value
        for build in (Scene, scene_bvh_reference):
            with pytest.raises(ValueError, match=message):
                build(bad)


def test_tile_maxima_cover_the_border_nodes():
    heights = torch.rand(50, 35, generator=torch.Generator().manual_seed(3))
    maxima = tile_maxima(heights)
    assert maxima.shape == (4, 3)
    for j in range(4):
        for i in range(3):
            assert maxima[j, i] == heights[16 * j : 16 * j + 17, 16 * i : 16 * i + 17].max()


def rays_of(scene, generator, count):
    """Origins and directions, and the arguments of the operator for them."""
    origins = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 10 + 1
    directions = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return origins, directions, [*arguments_of(scene), origins, directions, 1e-6, 1e9, False]


@needs_extension
@pytest.mark.parametrize('count', [0, 1, 60])
def test_opcheck(count):
    scene, g = random_scene(2, count)
    torch.library.opcheck(torch.ops.occforge.scene_bvh.default, (scene.primitives,), test_utils=OPCHECK_TESTS)
    for rays in (0, 1, 50):
        *_, arguments = rays_of(scene, g, rays)
        for any_hit in (False, True):
            arguments[-1] = any_hit
            torch.library.opcheck(torch.ops.occforge.scene_cast.default, tuple(arguments), test_utils=OPCHECK_TESTS)


@needs_extension
def test_memory_layout_and_threads():
    scene, g = random_scene(2)
    origins, directions, _ = rays_of(scene, g, 5000)
    expected = scene.cast(origins, directions)
    strange = Scene(awkward(scene.primitives), awkward(scene.heights), scene.lower, scene.cell)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for found in (scene.cast(origins, directions), strange.cast(awkward(origins), awkward(directions))):
                assert all(torch.equal(a, b) for a, b in zip(found, expected))
    finally:
        torch.set_num_threads(threads)


def test_rays_that_are_no_numbers_hit_nothing():
    scene, _ = random_scene(4)
    origins = torch.tensor([[1.0, 2, 9]]).double().repeat(6, 1)
    directions = torch.tensor([[0.0, 0, -1]]).double().repeat(6, 1)
    origins[0, 0], origins[1, 2] = math.nan, math.inf
    directions[2, 1], directions[3, 2] = math.nan, -math.inf
    directions[4] = 0
    hits = scene.cast(origins, directions)
    assert hits.primitive[:5].tolist() == [-1] * 5 and hits.primitive[5] >= 0
    assert (hits.distance[:5] == math.inf).all()
    reference = scene_cast_reference(*arguments_of(scene), origins, directions, 1e-6, 1e9, False)
    assert torch.equal(reference[0], hits.primitive)


@needs_extension
def test_thousand_corrupt_trees_give_errors():
    scene, g = random_scene(3, 20)
    *_, good = rays_of(scene, g, 5)

    def draw(count):
        return int(torch.randint(0, count, (1,), generator=g))

    for _ in range(1000):
        bad = list(good)
        which = draw(3)
        place = [2, 3, [0, 1, 2, 3, 4, 5, 10, 11][draw(8)]][which]  # links, order, any tensor
        bad[place] = bad[place].clone()
        if which == 2 and draw(2):
            bad[place] = bad[place].to(torch.int64)
        elif which == 2:
            bad[place] = bad[place].flatten()[:-1]
        else:
            values = bad[place].view(-1)
            values[draw(len(values))] = [-(2**31), -1, 2**30, 2**31 - 1][draw(4)]
        with pytest.raises((ValueError, TypeError)):
            torch.ops.occforge.scene_cast(*bad)


@needs_extension
def test_compile():
    scene, g = random_scene(2)
    origins, directions, _ = rays_of(scene, g, 50)
    found = torch.compile(scene.cast, fullgraph=True, backend='aot_eager')(origins, directions)
    assert all(torch.equal(a, b) for a, b in zip(found, scene.cast(origins, directions)))


def test_without_extension():
    code = """
import torch
from occforge.ops import has_extension
from occforge.ops.scene_cast import BOX, Scene, primitive_rows
scene = Scene(primitive_rows(BOX, (5, 0, 1), torch.eye(3), (1, 1, 1)), torch.zeros(9, 9), (-4.0, -4.0), 1.0)
rays = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 0, 1]]).double()
hits = scene.cast(torch.tensor([[0.0, 0, 1]]).double(), rays)
print(has_extension(), *hits.primitive.tolist(), *hits.distance.tolist())
"""
    assert run_without_extension(code).split() == ['False', '0', '1', '-1', '4.0', '1.0', 'inf']
