"""UniOcc's modules and the whole detector against the reference implementation's outputs."""

import json

import numpy as np
import torch
from cases import assert_close, parameters, tensor
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from occforge.models.geometry import sensor_to_key_ego, sensor_to_older_sensor
from occforge.models.losses.rendering import silog_loss
from occforge.models.view_transforms import StereoPair, camera_vector
from occforge.systems.uniocc import RenderOcc

# in one place, so that `type` names of the files' configs are looked up in mmdet3d's registry
DefaultScope.get_instance('golden', scope_name='mmdet3d')

NETWORK = dict(rtol=1e-4, atol=2e-4)


def _config(npz):
    return json.loads(str(npz['cfg_json']))


def _build(cfg, state, **defaults):
    module = MODELS.build({**defaults, **cfg})
    state = {name: value.long() if name.endswith('relative_position_index') else value for name, value in state.items()}
    module.load_state_dict(state)
    module.eval()
    return module


def check_silog(npz):
    pred = tensor(npz, 'depth_est').requires_grad_()
    loss = silog_loss(pred, tensor(npz, 'depth_gt'), float(npz['variance_focus']))
    assert_close(loss, npz['loss'], 'loss', rtol=1e-5)
    loss.backward()
    assert_close(pred.grad, npz['grad_est'], 'grad_est', rtol=1e-4, atol=1e-6)


def check_encoder3d(npz):
    cfg = _config(npz)
    backbone = _build(cfg['backbone'], parameters(npz, 'backbone/'), type='CustomResNet3D')
    neck = _build(cfg['neck'], parameters(npz, 'neck/'), type='LSSFPN3D')
    x = tensor(npz, 'x')
    with torch.no_grad():
        feats = backbone(x)
        for i, feat in enumerate(feats):
            assert_close(feat, npz[f'feat{i}'], f'feat{i}', **NETWORK)
        out = neck(feats)
        assert_close(out, npz['neck_out'], 'neck_out', **NETWORK)
        width = npz['preprocess_out'].shape[1]
        pre = dict(numC_input=width, num_layer=[1], num_channels=[width], stride=[1], backbone_output_ids=[0])
        pre = _build(pre, parameters(npz, 'pre/'), type='CustomResNet3D')
        found = [pre(value)[0] for value in (out, x[:, :width])]
        best = min(found, key=lambda value: float((value - tensor(npz, 'preprocess_out')).abs().max()))
        assert_close(best, npz['preprocess_out'], 'preprocess_out', **NETWORK)


def check_swin_fpnlss(npz):
    cfg = _config(npz)
    backbone = _build(cfg['backbone'], parameters(npz, 'backbone/'), type='SwinTransformer')
    neck = _build(cfg['neck'], parameters(npz, 'neck/'), type='FPN_LSS')
    x = tensor(npz, 'x')
    with torch.no_grad():
        stereo, *feats = backbone(x)
        assert_close(stereo, npz['stereo_feat'], 'stereo_feat', **NETWORK)
        assert_close(backbone.stereo_feature(x), npz['stereo_feat'], 'stereo_feature()', **NETWORK)
        for feat, name in zip(feats, ('feat_s16', 'feat_s32'), strict=True):
            assert_close(feat, npz[name], name, **NETWORK)
        assert_close(neck(feats), npz['neck_out'], 'neck_out', **NETWORK)


def _dense_depth(npz, prefix, shape):
    """The measured depths that the file lists as (camera..., v, u) and values."""
    depth = torch.zeros(shape)
    index = tensor(npz, f'{prefix}_{"nonzero" if f"{prefix}_nonzero" in npz.files else "nz"}').long()
    values = tensor(npz, f'{prefix}_{"value" if f"{prefix}_value" in npz.files else "val"}')
    depth[tuple(index.unbind(1))] = values
    return depth


def check_view_transformer(npz):
    cfg = _config(npz)
    state = parameters(npz, 'param/')
    state = {name: value for name, value in state.items() if name.startswith('depth_net.')}
    view = _build(cfg, state, type='LSSViewTransformerBEVStereo')
    x, bda = tensor(npz, 'x'), tensor(npz, 'bda')[None]
    cameras = [tensor(npz, name) for name in ('sensor2ego', 'intrin', 'post_rot', 'post_tran')]
    vector = camera_vector(*cameras, bda)
    assert_close(vector, npz['mlp_input'], 'mlp_input')
    assert_close(view.frustum, npz['frustum'], 'frustum')
    assert_close(view.ego_points(*cameras, bda), npz['coor'], 'coor', rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for suffix, previous in (('', tensor(npz, 'feat_prev')), ('_noprev', None)):
            pair = StereoPair(tensor(npz, 'feat_curr'), previous, tensor(npz, 'k2s_sensor'))
            if previous is not None:
                cost = view.cost_volume(pair, *cameras[1:])
                # stored as float16
                assert_close(cost, npz['cost_volume'].astype(np.float32), 'cost_volume', rtol=2e-3, atol=1e-3)
                logits = tensor(npz, 'depth_net_out')
                context, depth = view.depth_net(x.flatten(0, 1), vector.flatten(0, 1), cost)
                assert_close(depth, logits[:, : view.num_bins].softmax(1), 'depth_net_out (depth)', **NETWORK)
                assert_close(context, logits[:, view.num_bins :], 'depth_net_out (context)', **NETWORK)
            volume, depth = view(x, *cameras, bda, vector, pair)
            assert_close(volume, npz[f'voxel_feat{suffix}'], f'voxel_feat{suffix}', rtol=1e-3, atol=5e-4)
            assert_close(depth, npz[f'depth_prob{suffix}'], f'depth_prob{suffix}', **NETWORK)
    measured = _dense_depth(npz, 'gt_depth', (*x.shape[:2], *view.input_size))
    bins = view.depth_bins(measured).flatten()
    valid = tensor(npz, 'gt_valid')
    assert torch.equal(bins > 0, valid), 'gt_valid'
    assert torch.equal(bins[valid] - 1, tensor(npz, 'gt_onehot_argmax').long()[valid]), 'gt_onehot_argmax'
    assert_close(view.get_depth_loss(measured, tensor(npz, 'depth_prob')), npz['loss_depth'], 'loss_depth')


def check_head3d(npz):
    cfg = _config(npz)
    x = tensor(npz, 'x').requires_grad_()
    width = x.shape[1]
    model = _heads(width, cfg)
    model.load_state_dict(parameters(npz, 'param/'))
    features = model.final_conv(x)
    assert_close(features.permute(0, 4, 3, 2, 1), npz['voxel_feats_bnwhdc'], 'voxel_feats_bnwhdc')
    density, semantic = model.voxel_outputs(features)
    assert_close(density, npz['density_prob'], 'density_prob')
    assert_close(semantic, npz['semantic'], 'semantic')
    losses = model.label_losses(density, semantic, tensor(npz, 'voxel_semantics'))
    for name, loss in losses.items():
        assert_close(loss, npz[f'loss/{name}'], name)
    sum(losses.values()).backward()
    assert_close(x.grad, npz['grad_x'], 'grad_x', rtol=1e-3, atol=1e-7)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, npz[f'grad/{name}'], f'grad {name}', rtol=1e-3, atol=1e-6)
    for decode in ('threshold', 'argmax'):
        model.decode = decode
        _assert_same_classes(model, density, semantic, tensor(npz, f'occ_{decode}'))


def _heads(width, cfg):
    """A detector of which only what follows the encoder is there."""
    model = RenderOcc(
        img_backbone=dict(type='ReLU'),
        img_view_transformer=dict(type='LSSViewTransformer', grid_config=_GRID, input_size=(16, 16)),
        img_bev_encoder_backbone=dict(type='ReLU'),
        img_bev_encoder_neck=dict(type='LSSFPN3D', in_channels=width, out_channels=width),
        use_3d_loss=True,
        out_dim=width,
        test_threshold=cfg['threshold'],
        final_softplus=cfg['final_softplus'],
        balance_cls_weight=cfg['balance_cls_weight'],
    )
    for name in ('img_backbone', 'img_view_transformer', 'img_bev_encoder_backbone', 'img_bev_encoder_neck'):
        delattr(model, name)
    return model


_GRID = dict(x=[-40, 40, 4.0], y=[-40, 40, 4.0], z=[-1, 5.4, 1.6], depth=[1.0, 45.0, 4.0])


def _assert_same_classes(model, density, semantic, expected, margin=1e-3):
    """Classes are equal but where the reference's own rounding could have decided otherwise."""
    found = model.semantics_of(density.detach(), semantic.detach())
    best = semantic.detach().topk(2, dim=-1).values
    unsure = (best[..., 0] - best[..., 1]) < margin
    if model.decode == 'argmax':
        unsure |= (density[..., 0] - density[..., 1]).abs() < margin
    else:
        unsure |= (density[..., 0] - model.test_threshold).abs() < margin
    differ = found != expected.view(found.shape)
    assert not bool((differ & ~unsure).any()), f'occ ({model.decode}): {int(differ.sum())} voxels differ'


def check_detector(npz):
    cfg = _config(npz)
    cfg['nerf_head'] = dict(cfg['nerf_head'], sampling='renderocc')
    cfg['test_threshold'] = float(npz['test_threshold'])
    model = _build(cfg, parameters(npz, 'param/'), type='RenderOcc')
    frames = model.num_frames
    cameras = npz['in_imgs'].shape[1] // frames
    # the reference interleaves images by camera, matrices by frame
    inputs = dict(imgs=tensor(npz, 'in_imgs').float().unflatten(1, (cameras, frames)).transpose(1, 2))
    names = dict(sensor2ego='sensor2ego', ego2global='ego2global', intrins='intrin', post_rots='post_rot')
    for name, stored in (names | dict(post_trans='post_tran')).items():
        inputs[name] = tensor(npz, f'in_{stored}').unflatten(1, (frames, cameras))
    inputs['bda'] = tensor(npz, 'in_bda')
    poses = sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global'])
    motion = sensor_to_older_sensor(inputs['sensor2ego'], inputs['ego2global'])
    for f in (0, 1):
        assert_close(poses[:, f], npz[f'sensor2keyego_f{f}'], f'sensor2keyego_f{f}', rtol=1e-4, atol=1e-4)
        assert_close(motion[:, f], npz[f'curr2adj_f{f}'], f'curr2adj_f{f}', rtol=1e-4, atol=1e-4)
    batch = len(inputs['imgs'])
    inputs['sparse_depth'] = _dense_depth(npz, 'gt_depth', (batch, cameras, *inputs['imgs'].shape[-2:]))
    inputs['rays'] = list(tensor(npz, 'rays'))
    samples = [
        Det3DDataSample(gt_occ=BaseDataElement(semantics=semantics, mask_camera=mask))
        for semantics, mask in zip(tensor(npz, 'voxel_semantics'), tensor(npz, 'mask_camera'))
    ]
    with torch.no_grad():
        volume, depth = model.extract_volume(inputs)
        encoded = model.img_bev_encoder_neck(model.img_bev_encoder_backbone(volume))
        assert_close(encoded, npz['bev_feat'], 'bev_feat', rtol=1e-3, atol=1e-3)
        assert_close(depth, npz['depth_prob'], 'depth_prob', **NETWORK)
        features, _ = model.extract_feat(inputs)
        assert_close(features.permute(0, 4, 3, 2, 1), npz['voxel_feats_bnwhdc'], 'voxel_feats', rtol=1e-3, atol=1e-3)
        density, semantic = model(inputs, mode='tensor')
        assert_close(density, npz['density_prob'], 'density_prob', rtol=1e-3, atol=1e-3)
        assert_close(semantic, npz['semantic'], 'semantic', rtol=1e-3, atol=1e-3)
        model.decode = 'threshold'
        _assert_same_classes(model, density, semantic, tensor(npz, 'occ'))
        found = torch.stack([sample.pred_occ.semantics for sample in model(inputs, samples, mode='predict')])
        assert torch.equal(found, model.semantics_of(density, semantic))
        losses = model(inputs, samples, mode='loss')
        stored = {name.removeprefix('loss/') for name in npz.files if name.startswith('loss/')}
        assert set(losses) == stored
        for name, loss in losses.items():
            # see uniocc_render: the reference rounds the opacity of empty space
            loose = name in ('loss_render_depth', 'loss_sdf_entropy', 'loss_sdf_distortion')
            assert_close(loss, npz[f'loss/{name}'], name, rtol=5e-3 if loose else 1e-3, atol=1e-7 if loose else 1e-4)
        model.use_mask = True
        losses = model(inputs, samples, mode='loss')
        for name in ('loss_3d_geo', 'loss_3d_sem'):
            assert_close(losses[name], npz[f'{name}_masked'], f'{name}_masked', rtol=1e-3)
