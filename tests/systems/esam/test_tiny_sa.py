"""Tiny-SA: the identity at first, no leak between samples, no dependence on order."""

import pytest
import torch
from esam_world import BACKBONE
from mmdet3d.registry import MODELS
from occforge.errors import ConfigError
from occforge.models.minkowski import voxelize_points
from occforge.models.sparse import SparseTensor
from occforge.systems.esam import TinySA2D, TinySANeck
from occforge.systems.esam.tiny_sa import _nearest_of_all, nearest


def cloud(seed, voxels=300, channels=8):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(voxels, 3, generator=generator) * 40 - 20
    return xyz, torch.randn(voxels, channels, generator=generator)


def tensor_of(*clouds):
    xyz, features = (torch.cat(each) for each in zip(*clouds))
    sample = torch.cat([torch.full((len(c[0]),), i) for i, c in enumerate(clouds)])
    return voxelize_points(xyz, features, sample, len(clouds)).tensor


def opened(module):
    for name, parameter in module.named_parameters():
        if 'proj' in name or 'mlp.2' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_a_fresh_neck_changes_nothing():
    x = tensor_of(cloud(0), cloud(1))
    assert torch.equal(TinySANeck(8)(x).features, x.features)


def test_samples_do_not_see_each_other():
    neck = opened(TinySANeck(8, radius=0.5))
    a, b = cloud(0), cloud(1)
    joint, alone = neck(tensor_of(a, b)), neck(tensor_of(a))
    own = joint.coords[:, 0] == 0
    torch.testing.assert_close(joint.features[own], alone.features, atol=1e-5, rtol=1e-5)
    assert (neck(tensor_of(a)).features - tensor_of(a).features).abs().max() > 0.1


def test_order_of_voxels_does_not_matter():
    neck, x = opened(TinySANeck(8)), tensor_of(cloud(2))
    order = torch.randperm(len(x.coords))
    moved = SparseTensor(x.features[order], x.coords[order], x.spatial_shape, 1)
    torch.testing.assert_close(neck(moved).features, neck(x).features[order], atol=1e-5, rtol=1e-5)


def test_fewer_voxels_than_neighbours():
    x = tensor_of(cloud(3, voxels=2), cloud(4, voxels=1))
    assert torch.isfinite(opened(TinySANeck(8, max_k=32, interp_k=5))(x).features).all()


def test_a_block_looks_no_further_than_its_radius():
    neck = opened(TinySANeck(8, radius=0.2, cell=2, num_layers=1, interp_k=1))
    near, far = cloud(5, voxels=50), cloud(6, voxels=50)
    far = far[0] + 500, far[1]
    both = torch.cat([near[0], far[0]]), torch.cat([near[1], far[1]])
    changed = torch.cat([near[0], far[0]]), torch.cat([near[1], far[1] + 3])
    a, b = neck(tensor_of(both)), neck(tensor_of(changed))
    close = a.coords[:, 1] < a.coords[:, 1].min() + 200
    torch.testing.assert_close(a.features[close], b.features[close], atol=1e-6, rtol=0)


@pytest.mark.parametrize('search', [nearest, _nearest_of_all])
def test_nearest_equals_all_distances(search):
    # of another seed two neighbours may be equally near within float32
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5000, 3, generator=generator), torch.randn(70, 3, generator=generator)
    distance, index = search(a, b, 4)
    expected = (a[:, None].double() - b[None].double()).norm(dim=2).topk(4, 1, largest=False)
    torch.testing.assert_close(distance, expected.values.float())
    assert torch.equal(index, expected.indices)


def test_published_names():
    names = {name for name, _ in TinySANeck(96, num_layers=1).named_parameters()}
    linear = {f'layers.0.{n}.{p}' for n in ('norm1', 'norm2', 'proj', 'mlp.0', 'mlp.2', 'pos_embed.0', 'pos_embed.2')
              for p in ('weight', 'bias')}  # fmt: skip
    assert names == linear | {f'layers.0.{n}.weight' for n in ('q', 'k', 'v')}
    assert TinySANeck(dim=32).layers[0].q.in_features == 32
    assert TinySANeck(8, sample_ratio=0.25).cell == 4


def unet(**changes):
    torch.manual_seed(0)
    return MODELS.build(dict(BACKBONE, in_channels=8, **changes)).eval()


def test_inside_the_u_net_it_is_the_identity_at_first():
    x = tensor_of(cloud(0), cloud(1))
    plain, inside = unet(), unet(insert_stages=(3, 4), insert=dict(num_heads=2), voxel_size=0.05)
    inside.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split('.')[1] for name in inside.state_dict() if name.startswith('inserted.')} == {'3', '4'}
    third, fourth = inside.inserted['3'], inside.inserted['4']
    assert (third.voxel_size, fourth.voxel_size) == pytest.approx((0.4, 0.8))  # metres
    assert (third.cell, third.radius, fourth.radius) == (1, pytest.approx(1.6), pytest.approx(3.2))
    assert (third.layers[0].q.in_features, fourth.layers[0].q.in_features) == (6, 8)
    assert torch.equal(inside(x).features, plain(x).features)


@pytest.mark.parametrize('stage', [1, 2, 3, 4])
def test_inside_the_u_net_it_changes_the_voxels_of_its_sample_and_learns(stage):
    net = unet(insert_stages=(stage,), insert=dict(num_heads=2))
    opened(net.inserted)
    a, b = cloud(0), cloud(1)
    joint, alone, plain = net(tensor_of(a, b)), net(tensor_of(a)), unet()(tensor_of(a))
    own = joint.coords[:, 0] == 0
    change = (alone.features - plain.features).abs().max()
    assert change > 1e-6 and (joint.features[own] - alone.features).abs().max() < 0.01 * change
    joint.features.square().sum().backward()
    missing = [name for name, p in net.inserted.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # equal shifts of all logits of a token cancel
    assert all(name.endswith('pos_embed.2.bias') for name in missing)


def test_levels_that_are_none_are_refused():
    with pytest.raises(ConfigError, match='levels of 1 to 4, found 5'):
        unet(insert_stages=(5,))


@pytest.mark.parametrize('size', [(16, 16), (13, 21)])
def test_windows_of_a_map(size):
    module = TinySA2D(8, num_heads=2, window=8)
    x = torch.randn(2, 8, *size)
    assert torch.equal(module(x), x)
    opened(module)
    changed = x.clone()
    changed[:, :, 9:, 9:] += 1.0
    a, b = module(x), module(changed)
    assert a.shape == x.shape and torch.isfinite(a).all()
    torch.testing.assert_close(a[:, :, :8, :8], b[:, :, :8, :8])  # another window
    assert not torch.allclose(a[:, :, 8:, 8:], b[:, :, 8:, 8:] - 1.0)
