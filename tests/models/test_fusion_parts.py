"""Necks, 3D encoder and view transformer on properties that no golden file shows."""

import math

import pytest
import torch
from mmdet3d.registry import MODELS
from occforge.models.necks import LSSFPN3D, SkipUpsample3D
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


def test_mismatched_configs_are_refused():
    with pytest.raises(ValueError, match='makes 16 bins'):
        cross_modal(depth_channels=20)
    with pytest.raises(ValueError, match='must be equal'):
        cross_modal(out_channels=5)
    with pytest.raises(ValueError, match='camera_norm'):
        cross_modal(camera_norm='group')


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
            painted = paint_positions(inner, index, features[:, camera : camera + 1], **alone, input_size=(32, 64))
            expected = features[sample, camera, :, 1:-1, 1:-1].flatten(1).t().repeat(view.num_bins, 1)
            torch.testing.assert_close(painted, expected, rtol=1e-3, atol=1e-3)
    behind = 2 * points[0, 0, 0].mean((0, 1)) - points[0, 0, 3].mean((0, 1))  # a metre behind the first camera
    rest = paint_positions(behind[None], torch.tensor([0]), features[:, :1], **alone, input_size=(32, 64))
    assert rest.abs().max() == 0
    painted.sum().backward()
    assert features.grad[1, 2, :, 1:-1, 1:-1].min() > 0 and features.grad[0].abs().max() == 0


def test_paint_tells_whether_the_depth_agrees():
    lower, step, bins = 1.0, 1.0, 8
    rig = {key: value[:, :1] if key != 'bda' else value for key, value in _rig().items()}
    view = LSSViewTransformer(
        grid_config=dict(x=[-8, 8, 1], y=[-8, 8, 1], z=[-2, 2, 1], depth=[lower, lower + bins * step, step]),
        input_size=(32, 64),
        downsample=8,
        in_channels=1,
        out_channels=1,
    )
    points = view.ego_points(**rig)[0, 0, :, 1:-1, 1:-1]  # (D, h, w, 3)
    depth = torch.zeros(2, 1, bins, 4, 8)
    depth[:, :, 4] = 0.7  # everything is 5 m away, they say, or 1 m
    depth[:, :, 0] = 0.3
    features = torch.zeros(2, 1, 2, 4, 8)
    painted = paint_positions(
        points.reshape(-1, 3),
        torch.zeros(points[..., 0].numel(), dtype=torch.long),
        features,
        **rig,
        input_size=(32, 64),
        depth=depth,
        depth_range=(lower, lower + bins * step, step),
    )
    assert painted.shape[1] == 3
    agrees = painted[:, 2].view(bins, -1)
    expected = torch.tensor([0.3, 0.3, 0, 0.7, 0.7, 0.7, 0, 0])[:, None].expand_as(agrees)
    torch.testing.assert_close(agrees, expected, rtol=1e-3, atol=1e-3)
