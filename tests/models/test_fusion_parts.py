"""Necks, 3D encoder and view transformer on properties that no golden file shows."""

import math

import pytest
import torch
from mmdet3d.registry import MODELS
from occforge.models.necks import LSSFPN3D, SkipUpsample3D
from occforge.models.sparse import SparseTensor
from occforge.models.view_transforms import CrossModalLSS, LSSViewTransformer, paint_positions
from torch.nn.functional import interpolate


@pytest.mark.parametrize('align_corners', [True, False])
def test_joining_levels_before_the_upsampling_changes_nothing(align_corners):
    torch.manual_seed(0)
    neck = LSSFPN3D(3 + 5 + 4, 6, align_corners=align_corners)
    levels = [torch.randn(2, c, 8 // s, 12 // s, 16 // s) for c, s in ((3, 1), (5, 2), (4, 4))]
    up = [interpolate(x, size=(8, 12, 16), mode='trilinear', align_corners=align_corners) for x in levels]
    for mode in (True, False):
        neck.train(mode)
        torch.testing.assert_close(neck(levels), neck.conv(torch.cat(up, 1)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='12 expected'):
        neck(levels[:2])


def test_skip_upsample_aligns_voxel_centres():
    module = SkipUpsample3D(1, 0, 1)
    torch.nn.init.ones_(module.coarse.weight)
    torch.nn.init.zeros_(module.coarse.bias)
    # a volume that holds its own x, at the centres of 0.8 m voxels: upsampled it holds x of 0.4 m voxels
    coarse = ((torch.arange(10) + 0.5) * 0.8).expand(1, 1, 4, 4, 10)
    fine = module(coarse)
    expected = (torch.arange(20) + 0.5) * 0.4
    torch.testing.assert_close(fine[0, 0, 3, 3, 1:-1], expected[1:-1])
    with pytest.raises(ValueError, match='skip_channels'):
        module(coarse, fine)
    both = SkipUpsample3D(1, 3, 2)
    assert both(coarse, torch.zeros(1, 3, 8, 8, 20)).shape == (1, 2, 8, 8, 20)


def test_skip_upsample_of_sparse_voxels():
    """A sparse skip equals the dense volume with zeros elsewhere; single voxels equal those of the whole."""
    torch.manual_seed(0)
    module = SkipUpsample3D(3, 5, 4)
    coarse = torch.randn(2, 3, 2, 3, 4)
    coords = torch.tensor([[0, 0, 0, 0], [1, 7, 5, 3], [1, 2, 4, 1], [0, 3, 1, 2]], dtype=torch.int32)
    skip = SparseTensor(torch.randn(4, 5, requires_grad=True), coords, (8, 6, 4), 2)
    dense = skip.features.new_zeros(2, 5, 4, 6, 8)
    for row, (b, x, y, z) in zip(skip.features, coords):
        dense[b, :, z, y, x] = row
    whole = module(coarse, dense)
    torch.testing.assert_close(module(coarse, skip), whole)
    rows = torch.randperm(2 * 4 * 6 * 8)[:250]
    expected = whole.permute(0, 2, 3, 4, 1).flatten(0, 3)[rows]
    for form in (dense, skip):
        torch.testing.assert_close(module.at(coarse, form, rows), expected)
    weight = torch.randn_like(whole)
    wanted = torch.autograd.grad((whole * weight).sum(), skip.features)[0]
    index = torch.arange(2 * 4 * 6 * 8)
    single = (module.at(coarse, skip, index) * weight.permute(0, 2, 3, 4, 1).flatten(0, 3)).sum()
    torch.testing.assert_close(torch.autograd.grad(single, skip.features)[0], wanted)


def test_pixel_seg_head_answers_at_the_finer_map():
    torch.manual_seed(0)
    head = MODELS.build(dict(type='PixelSegHead', in_channels=(2, 3), channels=16, num_classes=5)).eval()
    fine, coarse = torch.randn(2, 2, 8, 12), torch.randn(2, 3, 4, 6)
    logits = head(fine, coarse)
    assert logits.shape == (2, 5, 8, 12)
    # a constant coarse map stays one between its pixels, so that only the finer map tells pixels apart
    flat = head(torch.zeros_like(fine), torch.ones_like(coarse))[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))
    fine.requires_grad_()
    head(fine, coarse)[0, 0, 4, 6].backward()
    assert fine.grad[0, :, 3:6, 5:8].abs().sum() > 0 and fine.grad[1].abs().sum() == 0


def test_checkpointed_stages_compute_the_same():
    torch.manual_seed(0)
    config = dict(type='CustomResNet3D', numC_input=3, num_layer=[1, 2], num_channels=[4, 6], stride=[1, 2])
    plain, recomputed = MODELS.build(config), MODELS.build(dict(config, with_cp=True))
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 4, 8, 8)
    grads = []
    for module in (plain, recomputed):
        leaf = x.clone().requires_grad_()
        module.train()
        sum(volume.square().mean() for volume in module(leaf)).backward()
        grads.append((leaf.grad, module.layers[0][0].conv1.conv.weight.grad))
    for first, second in zip(*grads):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize('entry_kernel, reach', [(1, 1), (3, 2)])
def test_entry_kernel_is_that_of_the_convolutions_that_read_the_input(entry_kernel, reach):
    torch.manual_seed(0)
    config = dict(type='CustomResNet3D', numC_input=3, num_layer=[1, 1], num_channels=[4, 6], stride=[1, 2])
    encoder = MODELS.build(dict(config, entry_kernel=entry_kernel)).eval()
    (first,), (second,) = encoder.layers
    for block, kernel in ((first, entry_kernel), (second, 3)):
        assert block.conv1.conv.kernel_size == block.downsample.conv.kernel_size == (kernel,) * 3
        assert block.conv2.conv.kernel_size == (3, 3, 3)
    x = torch.randn(1, 3, 7, 7, 7, requires_grad=True)
    volumes = encoder(x)
    assert [tuple(volume.shape) for volume in volumes] == [(1, 4, 7, 7, 7), (1, 6, 4, 4, 4)]
    volumes[0][0, :, 3, 3, 3].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    near = slice(3 - reach, 4 + reach)
    assert seen[near, near, near].any(2).any(1).all()
    seen[near, near, near] = False
    assert not seen.any()


def test_swin_returns_the_stages_it_is_asked_for():
    config = dict(type='SwinTransformer', embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4)
    image = torch.rand(1, 3, 64, 64)
    shapes = []
    for extra in (
        dict(out_indices=(2, 3)),
        dict(out_indices=(2, 3), return_stereo_feat=True),
        dict(out_indices=(2, 3), output_missing_index_as_none=True),
    ):
        model = MODELS.build(dict(config, **extra))
        assert model.eval() is model
        shapes.append([None if out is None else tuple(out.shape[1:]) for out in model(image)])
    assert shapes == [
        [(32, 4, 4), (64, 2, 2)],
        [(8, 16, 16), (32, 4, 4), (64, 2, 2)],
        [None, None, (32, 4, 4), (64, 2, 2)],
    ]
    with pytest.raises(ValueError, match="pretrain_style is 'timm'"):
        MODELS.build(dict(config, pretrain_style='timm'))


GRID_CONFIG = dict(x=[-8, 8, 0.8], y=[-8, 8, 0.8], z=[-1, 2.2, 0.8], depth=[1.0, 9.0, 0.5])


def forward_camera():
    """A camera at the ego origin that looks along x, 60 degrees wide."""
    sensor2ego = torch.eye(4, dtype=torch.float64).view(1, 1, 4, 4).clone()
    sensor2ego[..., :3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    intrins = torch.tensor([[48.0, 0, 24], [0, 48.0, 16], [0, 0, 1]]).view(1, 1, 3, 3)
    return sensor2ego, intrins


def test_frustum_points_lie_where_a_pinhole_camera_sees_them():
    view = LSSViewTransformer(GRID_CONFIG, (32, 48), 16, in_channels=4, out_channels=2, collapse_z=False)
    sensor2ego, intrins = forward_camera()
    mirrored = torch.diag(torch.tensor([-1.0, 1, 1])).view(1, 1, 3, 3)  # image flip: u' = 47 - u
    shift = torch.tensor([47.0, 0, 0]).view(1, 1, 3)
    plain = view.ego_points(
        sensor2ego, intrins, torch.eye(3).view(1, 1, 3, 3), torch.zeros(1, 1, 3), torch.eye(3)[None]
    )
    flipped = view.ego_points(sensor2ego, intrins, mirrored, shift, torch.eye(3)[None])
    assert plain.shape == (1, 1, 16, 2, 3, 3)
    depth, u, v = 3.0, 47.0, 31.0  # bin 4, last column, last row: both ends of the image are in the frustum
    expected = torch.tensor([depth, -(u - 24) / 48 * depth, -(v - 16) / 48 * depth])
    torch.testing.assert_close(plain[0, 0, 4, 1, 2], expected)
    torch.testing.assert_close(flipped[0, 0, 4, 1, 0], expected)
    flip_x = torch.diag(torch.tensor([-1.0, 1, 1]))[None]
    behind = view.ego_points(sensor2ego, intrins, mirrored, shift, flip_x)
    torch.testing.assert_close(behind[0, 0, 4, 1, 0], expected * torch.tensor([-1.0, 1, 1]))


def test_poses_of_kilometres_do_not_blur_the_points():
    view = LSSViewTransformer(GRID_CONFIG, (32, 48), 16, in_channels=4, out_channels=2)
    sensor2ego, intrins = forward_camera()
    eye, zero, bda = torch.eye(3).view(1, 1, 3, 3), torch.zeros(1, 1, 3), torch.eye(3)[None]
    near = view.ego_points(sensor2ego, intrins, eye, zero, bda)
    yaw = torch.tensor(0.7, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    pose[:3, 3] = torch.tensor([1234.5, 5678.9, 3.0])
    through_global = torch.linalg.inv(pose) @ pose @ sensor2ego
    far = view.ego_points(through_global, intrins, eye, zero, bda)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-5)


def test_lss_view_transformer_by_itself():
    view = LSSViewTransformer(GRID_CONFIG, (32, 48), 16, in_channels=4, out_channels=2)
    sensor2ego, intrins = forward_camera()
    eye, zero, bda = torch.eye(3).view(1, 1, 3, 3), torch.zeros(1, 1, 3), torch.eye(3)[None]
    volume, depth = view(torch.randn(1, 1, 4, 2, 3), sensor2ego, intrins, eye, zero, bda)
    assert volume.shape == (1, 4 * 2, 20, 20)  # planes of z on the channels
    assert depth.shape == (1, 16, 2, 3)
    assert volume[..., :9].abs().sum() == 0  # nothing behind the camera


def cross_modal(**changes):
    config = dict(
        feature_channels=4,
        seg_num_classes=18,
        grid_config=GRID_CONFIG,
        input_size=(32, 48),
        in_channels=4,
        mid_channels=8,
        depth_channels=16,
        downsample=16,
        depthnet_cfg=dict(aspp_mid_channels=4),
    )
    return CrossModalLSS(**{**config, **changes})


def test_depth_is_dropped_in_training_only():
    view = cross_modal(depth_drop_prob=0.5)
    bins = torch.full((2, 2, 3), 5)
    like = torch.zeros(2, 8, 2, 3)
    view.eval()
    assert view._depth_input(like, bins, 1, None).sum() == bins.numel()
    view.train()
    total = sum(float(view._depth_input(like, bins, 1, [seed]).sum()) for seed in range(200)) / 200
    assert total == pytest.approx(bins.numel() / 2, rel=0.1)
    always = cross_modal(depth_drop_prob=1.0, drop_in_eval=True)
    always.eval()
    assert always._depth_input(like, bins, 1, None).sum() == 0
    never = cross_modal(is_train=False)
    never.train()
    assert never._depth_input(like, bins, 1, None).sum() == bins.numel()


def test_depth_labels_at_either_resolution():
    view = cross_modal()
    full = torch.zeros(1, 1, 32, 48)
    full[0, 0, 3, 5], full[0, 0, 9, 9], full[0, 0, 20, 40] = 4.2, 3.0, 8.99
    pooled = torch.zeros(1, 1, 2, 3)
    pooled[0, 0, 0, 0], pooled[0, 0, 1, 2] = 3.0, 8.99
    assert torch.equal(view.depth_bins(full), view.depth_bins(pooled))
    assert view.depth_bins(pooled).tolist() == [[[5, 0, 0], [0, 0, 16]]]
    with pytest.raises(ValueError, match=r'sparse_depth is \(16, 24\)'):
        view.depth_bins(torch.zeros(1, 1, 16, 24))


def test_losses_without_labels_are_zero_with_a_graph():
    view = cross_modal()
    depth = torch.full((1, 16, 2, 3), 1 / 16).requires_grad_()
    logits = torch.zeros(1, 18, 2, 3).requires_grad_()
    total = view.depth_loss(torch.zeros(1, 2, 3, dtype=torch.long), depth)
    total = total + view.seg_loss(torch.full((1, 1, 2, 3), 17), logits)
    assert float(total.detach()) == 0.0
    total.backward()
    assert depth.grad.abs().sum() == logits.grad.abs().sum() == 0


def test_finer_class_labels_are_pooled():
    """Labels at twice the logits' resolution: the smallest of a block, whose things come before grounds."""
    view = cross_modal()
    fine = torch.full((1, 1, 4, 6), 17)
    fine[0, 0, 0, 0], fine[0, 0, 1, 1] = 11, 7
    fine[0, 0, 2, 4] = 13
    pooled = torch.full((1, 1, 2, 3), 17)
    pooled[0, 0, 0, 0], pooled[0, 0, 1, 2] = 7, 13
    logits = torch.randn(1, 18, 2, 3)
    assert torch.equal(view.seg_loss(fine, logits), view.seg_loss(pooled, logits))
    with pytest.raises(ValueError, match='or a multiple of it'):
        view.seg_loss(fine[..., :5], logits)


def test_mismatched_configs_are_refused():
    with pytest.raises(ValueError, match='makes 16 bins'):
        cross_modal(depth_channels=20)
    with pytest.raises(ValueError, match='must be equal'):
        cross_modal(out_channels=5)
    with pytest.raises(ValueError, match='camera_norm'):
        cross_modal(camera_norm='group')


SIZE = (32, 64)


def _rig(cameras=3):
    """Cameras all around with image and BEV augmentation: keyword arguments of ``ego_points``."""
    generator = torch.Generator().manual_seed(1)
    pose = torch.eye(4, dtype=torch.float64).repeat(2, cameras, 1, 1)
    for n in range(cameras):
        yaw = 0.3 + n * 2 * math.pi / cameras
        pose[:, n, :3, :3] = torch.tensor(
            [[math.sin(yaw), 0, math.cos(yaw)], [-math.cos(yaw), 0, math.sin(yaw)], [0, -1.0, 0]]
        )
    pose[..., :3, 3] = torch.rand(2, cameras, 3, generator=generator).double() - 0.5
    intrins = torch.tensor([[60.0, 0, 50], [0, 62.0, 30], [0, 0, 1]]).repeat(2, cameras, 1, 1)
    post_rots = torch.eye(3).repeat(2, cameras, 1, 1)
    post_rots[..., :2, :2] = 0.62 * torch.tensor([[-0.9998, 0.02], [0.02, 0.9998]])  # scaled, mirrored, turned
    post_trans = torch.zeros(2, cameras, 3)
    post_trans[..., 0], post_trans[..., 1] = 63.0, -5.0
    bda = torch.diag_embed(torch.tensor([[1.0, -1.0, 1.0], [-1.05, 1.05, 1.05]]))
    return dict(sensor2keyego=pose, intrins=intrins, post_rots=post_rots, post_trans=post_trans, bda=bda)


def test_painting_inverts_the_lift():
    view = LSSViewTransformer(
        grid_config=dict(x=[-8, 8, 1], y=[-8, 8, 1], z=[-2, 2, 1], depth=[1.0, 9.0, 1.0]),
        input_size=(32, 64),
        downsample=8,
        in_channels=1,
        out_channels=1,
    )
    rig = _rig()
    points = view.ego_points(**rig)  # (B, N, D, h, w, 3): what each pixel of the feature maps sees
    torch.manual_seed(0)
    features = torch.randn(2, 3, 5, 4, 8, requires_grad=True)
    # one camera's map at a time: a position that other cameras see too holds the mean
    for camera in range(3):
        alone = {key: value[:, camera : camera + 1] if key != 'bda' else value for key, value in rig.items()}
        for sample in range(2):
            inner = points[sample, camera, :, 1:-1, 1:-1].reshape(-1, 3)
            index = torch.full((len(inner),), sample)
            seen = features[:, camera : camera + 1]
            painted = torch.cat(  # depth by depth: a pixel's positions would hide each other
                [
                    paint_positions(part, index[: len(part)], seen, **alone, input_size=SIZE)
                    for part in inner.view(view.num_bins, -1, 3)
                ]
            )
            expected = features[sample, camera, :, 1:-1, 1:-1].flatten(1).t().repeat(view.num_bins, 1)
            torch.testing.assert_close(painted[:, :-1], expected, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(painted[:, -1], torch.ones(len(painted)))
    behind = 2 * points[0, 0, 0].mean((0, 1)) - points[0, 0, 3].mean((0, 1))  # a metre behind the first camera
    rest = paint_positions(behind[None], torch.tensor([0]), features[:, :1], **alone, input_size=SIZE)
    assert rest.abs().max() == 0
    painted.sum().backward()
    assert features.grad[1, 2, :, 1:-1, 1:-1].min() > 0 and features.grad[0].abs().max() == 0


def test_what_hides_a_position_takes_its_paint():
    """Two cameras at one place, of two moments: one sees a thing before a wall, the other one the wall alone."""
    rig = {key: value[:1, :1] if key != 'bda' else value[:1] for key, value in _rig().items()}
    pose = rig['sensor2keyego'][0, 0]

    def at(depth):  # on the axis of the camera, in the augmented ego frame
        point = pose @ torch.tensor([0, 0, depth, 1.0], dtype=torch.float64)
        return (rig['bda'][0].double() @ point[:3]).float()

    positions = torch.stack([at(4.0), at(8.0)])
    index, features = torch.zeros(2, dtype=torch.long), torch.full((1, 1, 2, 4, 8), 3.0)
    painted = paint_positions(positions, index, features, **rig, input_size=SIZE)
    torch.testing.assert_close(painted, torch.tensor([[3.0, 3.0, 1.0], [3.0, 3.0, 0.5]]), rtol=1e-4, atol=1e-4)

    later = rig['sensor2keyego'].clone()
    later[0, 0] = pose @ torch.tensor(  # 6 m ahead, past the thing
        [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 6], [0, 0, 0, 1]], dtype=torch.float64
    )
    both = {key: torch.cat([value, value], 1) if key != 'bda' else value for key, value in rig.items()}
    both['sensor2keyego'] = torch.cat([rig['sensor2keyego'], later], 1)
    features = torch.cat([features, torch.full_like(features, 5.0)], 1)
    painted = paint_positions(positions, index, features, **both, input_size=SIZE)
    mean = (3.0 * 0.5**4 + 5.0) / (0.5**4 + 1)
    torch.testing.assert_close(painted, torch.tensor([[3.0, 3.0, 1.0], [mean, mean, 1.0]]), rtol=1e-4, atol=1e-4)
    used = torch.tensor([[False, True]])
    painted = paint_positions(positions, index, features, **both, input_size=SIZE, used=used)
    torch.testing.assert_close(painted, torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 1.0]]), rtol=1e-4, atol=1e-4)
