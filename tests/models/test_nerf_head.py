"""NerfHead: what rays see, against numbers that can be worked out by hand and against a plain loop."""

import math

import numpy as np
import pytest
import torch
from occforge.datasets.rays import ray_rows
from occforge.errors import ConfigError, DataError
from occforge.models.heads import NerfHead, Rays
from occforge.models.losses.rendering import (
    l1_loss,
    line_of_sight_loss,
    log_l1_loss,
    silog_loss,
    weighted_cross_entropy,
)

RANGE = [0.0, -8.0, -2.0, 16.0, 8.0, 2.0]
SHAPE = (40, 40, 10)  # cells of 0.4 m
FRONT = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # camera -> ego: looks along x
INTRINSICS = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])


def head(**fields):
    fields = dict(point_cloud_range=RANGE, voxel_size=0.4, alpha_init=1e-6, step_size=0.25, near=0.1) | fields
    return NerfHead(**fields)


def wall(x=10.0, label=4, density=40.0):
    """A wall from x (metres) on, all of one class; empty before."""
    grid = torch.zeros(1, *SHAPE)
    grid[:, round(x / 0.4) :] = density
    semantic = torch.zeros(1, *SHAPE, 17)
    semantic[..., label] = 8.0
    return grid, semantic


def rays(uv=((50, 50), (90, 50), (20, 60)), depth=10.0, label=4):
    uv = np.array(uv, dtype=float)
    return torch.from_numpy(ray_rows(uv, np.full(len(uv), depth), np.full(len(uv), label), FRONT, INTRINSICS))


def test_depth_is_measured_along_the_cameras_axis_and_not_along_the_ray():
    density, semantic = wall()
    own = Rays.of(rays())
    found = head().render(density, semantic, own.origin, own.direction)
    # the wall's first cell centre is at 10.2 m; between it and the empty cell before the density rises
    assert bool(((found.depth > 9.6) & (found.depth < 10.2)).all()), found.depth
    assert float(found.depth.max() - found.depth.min()) < 0.15
    along = head().render(density, semantic, own.origin, rays()[:, 10:13])
    torch.testing.assert_close(along.depth, found.depth * own.direction.norm(dim=1), rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.semantics.argmax(1), torch.full((3,), 4))
    torch.testing.assert_close(found.semantics[:, 4], torch.full((3,), 8.0), rtol=1e-2, atol=0)
    assert float(found.transmittance.max()) < 1e-3


@pytest.mark.parametrize('mode', ['metric_z', 'metric_ray'])
def test_the_right_depth_has_the_least_loss(mode):
    density, semantic = wall()
    found = {
        depth: float(
            head(depth_mode=mode, depth_loss='l1')(density, semantic, [rays(depth=depth)])['loss_render_depth']
        )
        for depth in (9.0, 9.9, 11.0)
    }
    assert found[9.9] < 0.15 and found[9.9] < min(found[9.0], found[11.0]) / 4


def test_the_augmentation_of_the_ego_frame_turns_the_rays():
    centred = [-8.0, -8.0, -2.0, 8.0, 8.0, 2.0]
    density = torch.zeros(1, *SHAPE)
    density[:, :10] = 40.0  # a wall behind
    semantic = torch.zeros(1, *SHAPE, 17)
    module, bda = head(point_cloud_range=centred, depth_loss='l1'), torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    turned = module(density, semantic, [rays(uv=[(50, 50)], depth=3.9)], bda)
    assert float(turned['loss_render_depth']) < 0.15
    assert float(module(density, semantic, [rays(uv=[(50, 50)], depth=3.9)])['loss_render_depth']) > 3


def test_both_layouts_and_batches_are_one():
    torch.manual_seed(0)
    density, semantic = torch.randn(2, *SHAPE) * 3, torch.randn(2, *SHAPE, 17)
    lists = [rays(depth=5.0), rays(uv=[(60, 40)], depth=7.0, label=255)]
    module = head(alpha_init=0.02, weight_line_of_sight=0.3)
    together = module(density, semantic, lists)
    channel_first = module(density.permute(0, 3, 2, 1), semantic.permute(0, 4, 3, 2, 1), lists, layout='bcdhw')
    single = [module(density[i : i + 1], semantic[i : i + 1], lists[i : i + 1]) for i in (0, 1)]
    for name, loss in together.items():
        torch.testing.assert_close(channel_first[name], loss, msg=name)
        torch.testing.assert_close(sum(part[name] for part in single) / 2, loss, msg=name)


def test_missing_depth_and_missing_class_leave_the_other():
    density, semantic = (value.requires_grad_() for value in wall(density=3.0))
    module = head(alpha_init=0.02)
    only_class = module(density, semantic, [rays(depth=0.0, label=7)])
    assert only_class['loss_render_depth'] == 0 and only_class['loss_render_semantic'] > 0
    only_depth = module(density, semantic, [rays(label=255)])
    assert only_depth['loss_render_semantic'] == 0 and only_depth['loss_render_depth'] > 0
    strict = head(alpha_init=0.02, require_depth=True)(density, semantic, [rays(depth=0.0, label=7)])
    assert strict['loss_render_semantic'] == 0


@pytest.mark.parametrize('sampling', ['aabb', 'renderocc'])
@pytest.mark.parametrize('rows', ['none', 'no valid', 'outside', 'beyond'])
def test_no_valid_ray_gives_zeros_with_a_graph(sampling, rows):
    density, semantic = (value.requires_grad_() for value in wall())
    given = {
        'none': torch.zeros(0, 13),
        'no valid': rays(depth=0.0, label=255),
        'outside': rays(),
        'beyond': rays(depth=60.0),
    }[rows]
    if rows == 'outside':
        given = given.clone()
        given[:, 4] += 100  # starts behind the grid and looks away from it
    fields = dict(radius=7.0, point_cloud_range=[-8.0, -8.0, -2.0, 8.0, 8.0, 2.0]) if sampling == 'renderocc' else {}
    losses = head(sampling=sampling, **fields)(density, semantic, [given])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(density.grad).all() and torch.isfinite(semantic.grad).all()
    if rows != 'outside':
        assert sum(losses.values()) == 0


@pytest.mark.parametrize('value', [0.0, -200.0, 200.0], ids=['untrained', 'all free', 'all solid'])
def test_extreme_volumes_have_finite_gradients(value):
    density = torch.full((1, *SHAPE), value, requires_grad=True)
    semantic = torch.zeros(1, *SHAPE, 17, requires_grad=True)
    losses = head(weight_line_of_sight=1.0)(density, semantic, [rays()])
    sum(losses.values()).backward()
    assert torch.isfinite(density.grad).all() and torch.isfinite(semantic.grad).all()


def test_line_of_sight_empties_the_way_and_fills_the_surface():
    density = torch.zeros(1, *SHAPE, requires_grad=True)
    semantic = torch.zeros(1, *SHAPE, 17)
    module = head(
        alpha_init=0.05, weight_depth=0, weight_semantic=0, weight_entropy_last=0, weight_distortion=0,
        weight_line_of_sight=1.0,
    )  # fmt: skip
    losses = module(density, semantic, [rays(uv=[(50, 50)], depth=8.2)])
    assert set(losses) == {'loss_render_sight'}
    losses['loss_render_sight'].backward()
    along = density.grad[0, :, 20, 5]  # the ray runs between cells (20, 5) and their neighbours
    assert bool((along[2:18] > 0).all())  # lower the density on the way
    assert bool((along[20:21] < 0).all())  # raise it at the surface
    assert bool((along[24:] == 0).all())  # nothing is said of what is behind
    # measured beyond the grid: all of the way is free
    density.grad = None
    module(density, semantic, [rays(uv=[(50, 50)], depth=30.0)])['loss_render_sight'].backward()
    assert bool((density.grad[0, 2:39, 20, 5] > 0).all())
    free, hit = torch.tensor([math.exp(-1.0)]), torch.tensor([0.5])
    assert float(line_of_sight_loss(free, hit, eps=0.0)) == pytest.approx(1 + math.log(2))


def test_classified_voxels_render_with_their_probabilities():
    """alpha_init=0.5: a ray through one voxel is stopped with the voxel's probability of being occupied."""
    logits = torch.randn(1, *SHAPE, 18, generator=torch.Generator().manual_seed(0))
    module = head(alpha_init=0.5)
    density = logits[..., :17].logsumexp(-1) - logits[..., 17]
    torch.testing.assert_close(module.opacity(density), 1 - logits.softmax(-1)[..., 17])
    losses = module.forward_logits(logits, [rays()])
    expected = module(density, logits[..., :17], [rays()])
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    with pytest.raises(ConfigError, match='num_classes'):
        module.forward_logits(logits[..., :10], [rays()])


def test_stratified_samples_follow_the_seed_in_training_alone():
    torch.manual_seed(0)
    density, semantic = torch.randn(1, *SHAPE) * 3, torch.randn(1, *SHAPE, 17)
    module = head(alpha_init=0.02)

    def loss(seed):
        return float(module(density, semantic, [rays()], seed=seed)['loss_render_semantic'])

    one, two = torch.tensor([1]), torch.tensor([2])
    module.train()
    assert loss(one) == loss(one) != loss(two)
    module.eval()
    assert loss(one) == loss(two)


def test_losses_by_hand():
    pred, target = torch.tensor([2.0, 8.0]), torch.tensor([1.0, 4.0])
    # a common factor of 2: e = ln 2 twice, of which the variance focus forgives 85 %
    assert float(silog_loss(pred, target)) == pytest.approx(math.log(2) * math.sqrt(0.15), rel=1e-5)
    assert float(log_l1_loss(pred, target, eps=0.0)) == pytest.approx(math.log(2))
    assert float(l1_loss(pred, target)) == 2.5
    exact = pred.clone().requires_grad_()
    silog_loss(exact, pred).backward()
    assert torch.isfinite(exact.grad).all()
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    loss = weighted_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    assert float(loss) == pytest.approx((math.log(2) + 3 * math.log(4 / 3)) / 4)
    for function in (silog_loss, log_l1_loss, l1_loss):
        assert function(torch.zeros(0), torch.zeros(0)) == 0


def test_half_precision_around_the_head_changes_nothing():
    density, semantic = wall(density=3.0)
    module = head(alpha_init=0.02)
    expected = module(density, semantic, [rays()])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = module(density, semantic, [rays()])
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


def test_wrong_arguments_are_named():
    density, semantic = wall()
    with pytest.raises(DataError, match='expected'):
        head()(density, semantic, [torch.zeros(3, 8)])
    with pytest.raises(DataError, match='2 samples'):
        head()(density, semantic, [rays(), rays()])
    for fields in (
        dict(sampling='sphere'),
        dict(depth_mode='contracted'),
        dict(depth_loss='huber'),
        dict(sampling='renderocc', depth_mode='metric_z'),
        dict(sampling='renderocc', weight_line_of_sight=1.0),
        dict(step_size=0),
        dict(class_weight=[1.0]),
        dict(num_classes=5),
    ):
        with pytest.raises(ConfigError):
            head(**fields)
