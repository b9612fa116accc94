"""Checks of FusionOcc's model parts against the reference implementation's outputs."""

import torch
from cases import assert_close, config, parameters, tensor
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from occforge.models.losses import OccupancyLoss
from occforge.models.view_transforms import camera_vector

# in one place, so that `type` names of the files' configs are looked up in mmdet3d's registry
DefaultScope.get_instance('golden', scope_name='mmdet3d')


def _build(cfg, state):
    module = MODELS.build(cfg)
    module.load_state_dict(state)
    module.eval()
    return module


def check_swin(npz):
    outputs = _build(config(npz), parameters(npz))(tensor(npz, 'img'))
    for name, output in zip(('stage0_stereo', 'out_stage2', 'out_stage3'), outputs, strict=True):
        assert_close(output, npz[name], name)


def check_fpn_lss(npz):
    output = _build(config(npz), parameters(npz))([tensor(npz, 'x0'), tensor(npz, 'x1')])
    assert_close(output, npz['out_eval'], 'out_eval')


def check_encoder3d(npz):
    cfg = config(npz)
    backbone = _build(cfg['backbone'], parameters(npz, 'p/backbone.'))
    neck = _build(cfg['neck'], parameters(npz, 'p/neck.'))
    x = tensor(npz, 'x').requires_grad_()
    feats = backbone(x)
    for i, feat in enumerate(feats):
        assert_close(feat, npz[f'feat{i}'], f'feat{i}')
    out = neck(feats)
    assert_close(out, npz['out'], 'out')
    (out * tensor(npz, 'w')).sum().backward()
    assert_close(x.grad, npz['grad_x'], 'grad_x')


def _cameras(npz):
    return [tensor(npz, name) for name in ('sensor2keyego', 'intrins', 'post_rots', 'post_trans', 'bda')]


def check_depth_label(npz):
    cfg = config(npz)
    bins = len(npz['frustum_depth'])
    view = MODELS.build(
        dict(
            type='CrossModalLSS',
            feature_channels=cfg['out_channels'],
            seg_num_classes=18,
            mid_channels=8,
            depth_channels=bins,
            **{key: cfg[key] for key in ('grid_config', 'input_size', 'downsample', 'in_channels', 'sid')},
        )
    )
    assert_close(camera_vector(*_cameras(npz)), npz['mlp_input'], 'mlp_input')
    assert_close(view.frustum[:, 0, 0, 2], npz['frustum_depth'], 'frustum_depth')
    index = view.depth_bins(tensor(npz, 'sparse_depth'))
    assert torch.equal(index, tensor(npz, 'bin_index')), 'bin_index'
    hot = view.one_hot(index).movedim(1, -1).reshape(-1, bins)
    assert torch.equal(hot, tensor(npz, 'onehot')), 'onehot'
    assert_close(view.depth_loss(index, tensor(npz, 'depth_pred')), npz['depth_loss'], 'depth_loss')


def check_cross_modal_lss(npz):
    view = _build(config(npz), parameters(npz))
    x = tensor(npz, 'x').requires_grad_()
    cameras = _cameras(npz)
    bins = view.depth_bins(tensor(npz, 'sparse_depth'))
    volume, depth, seg = view(x, *cameras, camera_vector(*cameras), bins)
    depth_loss = view.depth_loss(bins, depth)
    seg_loss = view.seg_loss(tensor(npz, 'segs'), seg)
    assert_close(camera_vector(*cameras), npz['mlp_input'], 'mlp_input')
    assert_close(volume, npz['feat3d'], 'feat3d')
    assert_close(depth, npz['depth_prob'], 'depth_prob')
    assert_close(seg, npz['seg_logits'], 'seg_logits')
    assert_close(depth_loss, npz['depth_loss'], 'depth_loss')
    assert_close(seg_loss, npz['seg_loss'], 'seg_loss')
    (0.01 * (volume * tensor(npz, 'w')).sum() + depth_loss + seg_loss).backward()
    assert_close(x.grad, npz['grad_x'], 'grad_x')
    assert_close(view.further_fuse.conv1.weight.grad, npz['grad_further_fuse_conv1'], 'grad_further_fuse_conv1')
    assert_close(view.depth_encoder[0].weight.grad, npz['grad_depth_encoder0'], 'grad_depth_encoder0')


def _check_occupancy_loss(npz, logits_name, semantics_name, mask_name):
    logits = tensor(npz, logits_name)
    semantics, mask = tensor(npz, semantics_name), tensor(npz, mask_name)
    loss_module = OccupancyLoss(num_classes=config(npz)['num_classes'])
    for name, chosen_mask in (('mask', mask), ('nomask', None)):
        leaf = logits.clone().requires_grad_()
        targets = loss_module.targets(semantics, chosen_mask, logits.shape[1:4])
        loss = loss_module(leaf.flatten(0, 3)[targets.index], targets, masked=chosen_mask is not None)['loss_occ']
        loss.backward()
        assert_close(loss, npz[f'loss_{name}'], f'loss_{name}')
        assert_close(leaf.grad, npz[f'grad_{name}'], f'grad_{name}')


def check_occ_loss(npz):
    _check_occupancy_loss(npz, 'logits', 'semantics', 'mask_camera')


def check_occ_loss_fine_mask(npz):
    _check_occupancy_loss(npz, 'logits_coarse', 'semantics_fine', 'mask_fine')


def _detector_inputs(npz, frames):
    """The reference's flat layouts as (B, T, N, ...): images are interleaved by camera, matrices by frame."""
    imgs = tensor(npz, 'img')
    cameras = imgs.shape[1] // frames
    inputs = dict(imgs=imgs.unflatten(1, (cameras, frames)).transpose(1, 2))
    for name in ('sensor2ego', 'ego2global', 'intrins', 'post_rots', 'post_trans'):
        inputs[name] = tensor(npz, name).unflatten(1, (frames, cameras))
    for name in ('bda', 'sparse_depth', 'segs'):
        inputs[name] = tensor(npz, name)
    points = sorted((name for name in npz.files if name.startswith('points')), key=lambda name: int(name[6:]))
    inputs['points'] = [tensor(npz, name) for name in points]
    return inputs


def check_detector(npz):
    cfg = config(npz)
    model = _build(dict(cfg['detector'], lidar_encoder=cfg['lidar_encoder']), parameters(npz))
    inputs = _detector_inputs(npz, cfg['detector']['num_adj'] + 1)
    samples = [
        Det3DDataSample(gt_occ=BaseDataElement(semantics=semantics, mask_camera=mask))
        for semantics, mask in zip(tensor(npz, 'voxel_semantics'), tensor(npz, 'mask_camera'))
    ]
    with torch.no_grad():
        assert_close(
            model.sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global']), npz['sensor2keyego'], 'sensor2keyego'
        )
        volumes, auxiliary = model.extract_camera(inputs)
        assert_close(torch.cat(volumes, dim=1), npz['img_feat3d'], 'img_feat3d')
        assert_close(auxiliary['depth'], npz['depth_prob'], 'depth_prob')
        assert_close(auxiliary['seg'], npz['seg_logits'], 'seg_logits')
        assert_close(model.extract_lidar(inputs), npz['lidar_feat_B_C_Z_Y_X'], 'lidar_feat')
        logits = model(inputs, mode='tensor')
        assert_close(logits, npz['occ_logits_B_X_Y_Z_C'], 'occ_logits', atol=1e-4)
        prediction = torch.stack([sample.pred_occ.semantics for sample in model(inputs, samples, mode='predict')])
        assert torch.equal(prediction, tensor(npz, 'occ_pred')), 'occ_pred'
        for name, use_mask in (('mask', True), ('nomask', False)):
            model.use_mask = use_mask
            losses = model(inputs, samples, mode='loss')
            for key in ('depth_loss', 'seg_loss', 'loss_occ'):
                assert_close(losses[key], npz[f'{key}_{name}'], f'{key}_{name}')
