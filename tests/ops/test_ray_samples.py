import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import clip_rays, sample_rays
from occforge.ops.ray_samples import clip_rays_reference, ray_samples_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension

LOWER, UPPER = [-2.0, -1.0, 0.0], [2.0, 1.0, 3.0]


def rays(count, seed=0, dtype=torch.float32):
    """Rays in and around the box, some along the axes."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 2
    directions = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    directions[torch.rand(count, 3, generator=generator) < 0.2] = 0
    return origins.to(dtype), directions.to(dtype)


def test_hand_numbers():
    origins = torch.tensor([[-4.0, 0.0, 1.0], [0.0, 0.0, 1.0], [-4.0, 0.0, 5.0], [0.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
    directions = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    near, far = clip_rays(origins, directions, LOWER, UPPER, near=0.5, far=3.5)
    # from 2 m before the box at 2 m per unit of t: 1 to 3; from inside: 0.5 (near) to 2; above it: no part; no
    # direction: no part; 2 to 4, cut at 3.5
    assert near.tolist() == [1.0, 0.5, 3.5, 0.5, 2.0]
    assert far.tolist() == [3.0, 2.0, 3.5, 0.5, 3.5]
    samples = sample_rays(near, far, step=0.75)
    assert samples.offset.tolist() == [0, 3, 5, 5, 5, 7]  # 2 / 0.75, 1.5 / 0.75, none, none, 1.5 / 0.75
    assert samples.ray.tolist() == [0, 0, 0, 1, 1, 4, 4]
    assert samples.t.tolist() == [1.375, 2.125, 2.875, 0.875, 1.625, 2.375, 3.125]
    assert sample_rays(near, far, step=0.75, min_count=1).offset.tolist() == [0, 3, 5, 6, 7, 9]
    counted = sample_rays(near, far, counts=torch.tensor([1, 2, 3, 4, 0]), position=0.0)
    assert counted.offset.tolist() == [0, 1, 3, 3, 3, 3] and counted.t.tolist() == [1.0, 0.5, 1.25]


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 2**31),
    near=st.sampled_from([-1.0, 0.0, 0.5]),
    far=st.sampled_from([0.5, 4.0, math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_reference(count, seed, near, far, dtype):
    origins, directions = rays(count, seed, dtype)
    origins.flatten()[: seed % 2] = math.nan
    directions.flatten()[-(seed % 3) :] = math.inf if seed % 3 else 1.0
    found = clip_rays(origins, directions, LOWER, UPPER, near, far)
    wanted = clip_rays_reference(origins, directions, LOWER, UPPER, near, far)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)
    check_fake('clip_rays', origins, directions, LOWER, UPPER, near, far)
    low, high = found
    inside = (low < high) & (high < math.inf)
    for t in (low + 1e-3 * (high - low), high - 1e-3 * (high - low)):
        points = (origins + t[:, None] * directions)[inside].double()
        assert ((points >= torch.tensor(LOWER) - 1e-4) & (points <= torch.tensor(UPPER) + 1e-4)).all()
    high = high.clamp_max(20)
    counts = torch.where(high > low, torch.arange(count) % 7, 0)
    step = torch.rand(count, dtype=dtype) + 0.1
    for chosen in (None, torch.tensor([seed - 2**40])):
        found = torch.ops.occforge.ray_samples(low, step, counts, 0.25, chosen) if count else None
        if found is None:
            continue
        check_fake('ray_samples', low, step, counts, 0.25, chosen)
        wanted = ray_samples_reference(low, step, counts, 0.25, chosen)
        torch.testing.assert_close(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1]) and torch.equal(found[2], wanted[2])


test_equals_reference = needs_extension(test_equals_reference)


def test_stratified_samples():
    near, far = torch.zeros(500), torch.full((500,), 10.0)
    samples = sample_rays(near, far, step=0.5, seed=7)
    inside = (samples.t / 0.5).view(500, 20) - torch.arange(20)
    assert ((inside >= -1e-5) & (inside <= 1 + 1e-5)).all()  # one in each interval
    assert abs(float(inside.mean()) - 0.5) < 0.02 and abs(float(inside.var()) - 1 / 12) < 0.005
    flat = inside - inside.mean()
    assert abs(float((flat[:, 1:] * flat[:, :-1]).mean())) < 0.005  # neighbours along a ray and across rays
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.005
    assert torch.equal(samples.t, sample_rays(near, far, step=0.5, seed=torch.tensor(7)).t)
    assert not torch.equal(samples.t, sample_rays(near, far, step=0.5, seed=8).t)


@needs_extension
def test_opcheck():
    ops = torch.ops.occforge
    for count in (0, 1, 9):
        origins, directions = rays(count)
        torch.library.opcheck(
            ops.clip_rays.default, (origins, directions, LOWER, UPPER, 0.0, 9.0), test_utils=OPCHECK_TESTS
        )
        step, counts = torch.rand(count), torch.arange(count) + 1
        for seed in (None, torch.tensor(3)):
            torch.library.opcheck(
                ops.ray_samples.default, (origins[:, 0], step, counts, 0.5, seed), test_utils=OPCHECK_TESTS
            )


def test_memory_layout_threads_and_types():
    origins, directions = rays(3000)
    near, far = clip_rays(origins, directions, LOWER, UPPER, 0.0, 9.0)
    samples = sample_rays(near, far, step=0.01, seed=1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = clip_rays(awkward(origins), awkward(directions), LOWER, UPPER, 0.0, 9.0)
            assert torch.equal(again[0], near) and torch.equal(again[1], far)
            again = sample_rays(awkward(near), awkward(far), step=0.01, seed=1)
            assert all(torch.equal(a, b) for a, b in zip(again, samples))
    finally:
        torch.set_num_threads(threads)
    assert clip_rays(origins.double(), directions, LOWER, UPPER)[0].dtype == torch.float64


def test_bad_input():
    origins, directions = rays(4)
    near, far = torch.zeros(4), torch.ones(4)
    for message, call in {
        'origins must have shape': lambda: clip_rays(origins[0], directions, LOWER, UPPER),
        'directions must be of dtype': lambda: clip_rays(origins, directions.half(), LOWER, UPPER),
        'must be as many': lambda: clip_rays(origins[:2], directions, LOWER, UPPER),
        'lower must be below upper': lambda: clip_rays(origins, directions, UPPER, LOWER),
        'not above far': lambda: clip_rays(origins, directions, LOWER, UPPER, 2.0, 1.0),
        'either step or counts': lambda: sample_rays(near, far),
        'step must be finite and above 0': lambda: sample_rays(near, far, 0.0),
        'step must be one number': lambda: sample_rays(near, far, torch.ones(3)),
        'position must be in': lambda: sample_rays(near, far, 0.1, position=2.0),
        'counts must be of dtype': lambda: sample_rays(near, far, counts=torch.ones(4)),
        'counts must be in 0': lambda: sample_rays(near, far, counts=torch.tensor([1, -1, 1, 1])),
        'counts must be in': lambda: sample_rays(near, far + math.inf, 0.1),
        'seed must be an int64 tensor': lambda: sample_rays(near, far, 0.1, seed=torch.zeros(2)),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@needs_extension
def test_compile():
    origins, directions = rays(20)

    def place(origins, directions, seed):
        near, far = clip_rays(origins, directions, LOWER, UPPER, 0.0, 9.0)
        samples = sample_rays(near, far, step=0.1, seed=seed)
        return samples.t, samples.offset

    seed = torch.tensor(5)
    compiled = torch.compile(place, fullgraph=True, backend='aot_eager')
    for a, b in zip(compiled(origins, directions, seed), place(origins, directions, seed)):
        assert torch.equal(a, b)


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('ignore')
from occforge.ops import clip_rays, sample_rays
near, far = clip_rays(torch.tensor([[-1., .5, .5]]), torch.tensor([[1., 0, 0]]), [0, 0, 0], [1, 1, 1])
print(*near.tolist(), *far.tolist(), *sample_rays(near, far, counts=2).t.tolist())
"""
    assert run_without_extension(code).split() == ['1.0', '2.0', '1.25', '1.75']
