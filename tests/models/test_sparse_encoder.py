import pytest
import torch
from mmdet3d.registry import MODELS
from occforge.models.backbones.sparse_encoder import CustomSparseEncoder, grid_shape
from torch import nn

SMALL = dict(
    type='CustomSparseEncoder',
    point_cloud_range=[-4, -4, -1, 4, 4, 2.2],
    voxel_size=[0.2, 0.2, 0.2],
    base_channels=4,
    encoder_channels=((4, 8), (8, 8)),
    output_channels=6,
)


def cloud(points, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(points, 3, generator=generator) * torch.tensor([8.2, 8.2, 3.4]) - torch.tensor([4.1, 4.1, 1.1])
    return torch.cat([xyz, torch.rand(points, 2, generator=generator)], 1)


def test_official_parameter_tree():
    encoder = CustomSparseEncoder(sparse_shape=[1600, 1600, 128])
    names = dict(encoder.named_parameters())
    assert sum(p.numel() for p in names.values()) == 556016
    assert len(encoder.state_dict()) == 68
    assert names['conv_input.0.weight'].shape == (16, 1, 1, 1, 5)
    assert names['encoder_layers.encoder_layer3.2.0.weight'].shape == (64, 3, 3, 3, 48)
    assert names['conv_out.0.weight'].shape == (32, 1, 1, 1, 64)
    norm = encoder.encoder_layers.encoder_layer1[0][1]
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    strides = [m.stride[0] for m in encoder.modules() if hasattr(m, 'stride')]
    assert strides.count(2) == 3


def test_stages_set_the_output_grid():
    encoder = MODELS.build(SMALL)
    assert encoder([cloud(300), cloud(200, 1)]).shape == (2, 6, 8, 20, 20)
    whole = MODELS.build({**SMALL, 'encoder_channels': ((4, 4),)})
    assert whole([cloud(300)]).shape == (1, 6, 16, 40, 40)


@pytest.mark.parametrize(
    'low, high, size, voxels', [(0, 9.6, 0.1, 96), (-40, 40, 0.05, 1600), (-1, 5.4, 0.05, 128), (0, 0.3, 0.1, 3)]
)
def test_grid_shape_rounds(low, high, size, voxels):
    assert grid_shape([low] * 3 + [high] * 3, [size] * 3) == (voxels,) * 3


def test_bad_configs():
    with pytest.raises(ValueError, match='whole'):
        grid_shape([0, 0, 0, 1, 1, 1], [0.3, 0.3, 0.3])
    with pytest.raises(ValueError, match='sparse_shape'):
        MODELS.build({**SMALL, 'sparse_shape': [40, 40, 15]})
    with pytest.raises(ValueError, match='encoder_channels'):
        MODELS.build({**SMALL, 'encoder_channels': ()})
    encoder = MODELS.build(SMALL)
    with pytest.raises(ValueError, match=r'points\[1\]'):
        encoder([cloud(4), cloud(4)[:, :4]])
    with pytest.raises(ValueError, match='empty list'):
        encoder([])


@pytest.mark.parametrize('sizes', [(0, 200), (200, 0), (0, 0), (0, 200, 0)])
@pytest.mark.parametrize('training', [True, False])
def test_empty_clouds(sizes, training):
    encoder = MODELS.build(SMALL)
    encoder.train(training)
    volume = encoder([cloud(n) for n in sizes])
    assert volume.shape == (len(sizes), 6, 8, 20, 20)
    for sample, n in zip(volume, sizes):
        assert bool(sample.any()) == (n > 0)
    volume.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_points_outside_and_extra_columns_are_dropped():
    encoder = MODELS.build(SMALL).eval()
    inside = cloud(100)
    inside[:, :3] = inside[:, :3].clamp(-0.9, 2)
    outside = inside + torch.tensor([100.0, 0, 0, 0, 0])
    broken = inside[:3].clone()
    broken[0, 0], broken[1, 1], broken[2, 2] = float('nan'), float('inf'), -float('inf')
    every = torch.cat([torch.cat([inside, outside, broken]), torch.rand(203, 1)], 1)
    torch.testing.assert_close(encoder([every]), encoder([inside]))


def test_samples_do_not_mix():
    encoder = MODELS.build(SMALL).eval()
    first, second = cloud(300), cloud(200, 1)
    both = encoder([first, second])
    torch.testing.assert_close(both, torch.cat([encoder([first]), encoder([second])]))


def test_volume_axes():
    encoder = MODELS.build({**SMALL, 'encoder_channels': ((4,),)}).eval()
    point = torch.tensor([[-3.9, 0.1, 2.1, 0.5, 3.0]])
    filled = encoder([point])[0].abs().sum(0).nonzero()
    assert filled.tolist() == [[15, 20, 0]]


def test_norm_by_config():
    encoder = MODELS.build({**SMALL, 'norm_cfg': dict(type='LN', requires_grad=False)})
    norms = [m for m in encoder.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 4 and not any(p.requires_grad for m in norms for p in m.parameters())
    encoder([cloud(50)])


def test_paint_and_voxel_offsets_reach_the_first_layer():
    encoder = MODELS.build({**SMALL, 'paint_channels': 2, 'voxel_offsets': True}).eval()
    seen = []
    encoder.conv_input.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    # two points of one voxel of 0.2 m and one of another sample
    first = torch.tensor([[0.02, 0.1, 0.1, 0.5, 1.0], [0.06, 0.1, 0.14, 0.7, 3.0]])
    second = torch.tensor([[-0.15, 0.1, 0.3, 0.1, 2.0]])
    encoder([first, second], lambda position, sample: torch.stack([position[:, 0] * 10, sample.float()], 1))
    size = torch.tensor(encoder.voxel_size)
    mean = torch.stack([first.mean(0), second[0]])
    offset = (mean[:, :3] - torch.tensor(encoder.point_cloud_range[:3])) / size
    offset = offset - offset.floor() - 0.5
    paint = torch.tensor([[0.4, 0.0], [-1.5, 1.0]])
    torch.testing.assert_close(seen[0].features, torch.cat([mean, offset, paint], 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='paint_channels 2'):
        encoder([first, second])
