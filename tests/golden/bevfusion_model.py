"""BEVFusion's modules against the reference implementation's outputs."""

import numpy as np
import torch
from cases import assert_close, config, parameters, tensor
from mmdet3d.models.layers import circle_nms
from mmdet3d.registry import MODELS, TASK_UTILS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from occforge.engine.partial_load import Source
from occforge.models.rotated_boxes import bev_nms, box3d_iou
from occforge.systems.bevfusion.bevfusion import MIT_KEY_MAP

# in one place, so that `type` names of the files' configs are looked up in mmdet3d's registry
DefaultScope.get_instance('golden', scope_name='mmdet3d')

MATRICES = ('lidar2img', 'cam2img', 'cam2lidar', 'img_aug_matrix', 'lidar_aug_matrix')


def _build(cfg, state):
    module = MODELS.build(cfg)
    module.load_state_dict(state)
    module.eval()
    return module


def _close(actual, npz, name, rtol=1e-4, share=1e-4):
    """Compare with the file's array; the absolute tolerance is a share of its largest entry."""
    expected = npz[name]
    assert_close(actual, expected, name, rtol=rtol, atol=share * max(float(np.abs(expected).max(initial=0.0)), 1e-6))


def _cotangent(x):
    return torch.linspace(-1, 1, x.numel()).view_as(x)


def _on_a_border(view, geometry) -> int:
    """Frustum points so near a cell's side that float32 may put them on either."""
    lower, step = torch.tensor(view.grid_lower), torch.tensor(view.grid_interval)
    at = (geometry.double() - lower) / step
    near = ((at - at.round()).abs() < 2e-5).any(-1)
    return int((near & (at > -1.1).all(-1) & (at < torch.tensor(view.grid_size) + 0.1).all(-1)).sum())


def _check_view_transform(npz):
    view = _build(config(npz), parameters(npz, 'param/'))
    fresh = MODELS.build(config(npz))
    for name in ('dx', 'bx', 'nx', 'frustum'):
        assert torch.equal(getattr(fresh, name), tensor(npz, f'param/{name}')), name
    lidar2img, cam2img, cam2lidar, img_aug, lidar_aug = (tensor(npz, f'in/{name}') for name in MATRICES)
    geometry = view.get_geometry(cam2lidar, cam2img, img_aug, lidar_aug)
    if 'out/geom' in npz.files:
        _close(geometry[:, :, ::4, ::2, ::2], npz, 'out/geom', share=1e-6)
    points = list(tensor(npz, 'in/points'))
    before = [cloud.clone() for cloud in points]
    feat = tensor(npz, 'in/img_feat').requires_grad_()
    if 'out/sparse_depth' in npz.files:
        depth = view.sparse_depth(points, lidar2img, img_aug, lidar_aug)
        assert torch.equal(depth > 0, tensor(npz, 'out/sparse_depth') > 0), 'pixels with depth'
        _close(depth, npz, 'out/sparse_depth', share=1e-6)
    extra = {}
    if view.supervises_depth:
        extra = dict(camera2ego=tensor(npz, 'in/camera2ego'), gt_depths=tensor(npz, 'in/gt_depths'))
    bev = view(feat, points, lidar2img, cam2img, cam2lidar, img_aug, lidar_aug, **extra)
    assert all(torch.equal(a, b) for a, b in zip(points, before)), 'the points were changed'
    if view.supervises_depth:
        bev, loss = bev
        _close(loss, npz, 'out/depth_loss')
    if 'out/pooled' in npz.files and view.downsample_factor == 1:
        _compare_planes(view, geometry, bev, npz, 'out/pooled')
    _compare_planes(view, geometry, bev, npz, 'out/bev')
    if 'out/grad_img_feat' in npz.files and not _on_a_border(view, geometry):
        grad = torch.autograd.grad(bev, feat, _cotangent(bev))[0]
        _close(grad, npz, 'out/grad_img_feat', share=1e-3)


def _compare_planes(view, geometry, bev, npz, name):
    """All cells agree, save those that points on a border can move (and their neighbours under convolutions)."""
    doubtful = _on_a_border(view, geometry)
    if not doubtful:
        _close(bev, npz, name)
        return
    expected = tensor(npz, name)
    assert bev.shape == expected.shape
    off = ((bev - expected).abs() > 1e-4 * expected.abs().max() + 1e-4 * expected.abs()).any(1).sum()
    assert off <= 2 * 49 * doubtful, f'{name}: {int(off)} cells differ, {doubtful} points lie on a border'


def check_view_transform_lss(npz):
    _check_view_transform(npz)


def check_view_transform_depthlss(npz):
    _check_view_transform(npz)


def check_aware_bevdepth(npz):
    _check_view_transform(npz)


def check_aware_dbevdepth(npz):
    _check_view_transform(npz)


def check_generalized_lss_fpn(npz):
    neck = _build(config(npz), parameters(npz, 'param/'))
    levels = [tensor(npz, f'in/x{i}') for i in range(len(config(npz)['in_channels']))]
    for i, y in enumerate(neck(levels)):
        _close(y, npz, f'out/y{i}')


def check_add_fuser(npz):
    fuser = _build(dict(type='AddFuser', **config(npz)), parameters(npz, 'param/'))
    _close(fuser([tensor(npz, 'in/cam_bev'), tensor(npz, 'in/lidar_bev')]), npz, 'out/fused')


def check_fuser_second_fpn(npz):
    cfg = config(npz)
    norm = dict(type='BN', eps=cfg['bn_eps'], momentum=0.01)
    fuser = _build(
        dict(type='ConvFuser', in_channels=cfg['fuser_in'], out_channels=cfg['fuser_out']),
        parameters(npz, 'param/fuser.'),
    )
    backbone = _build(
        dict(
            type='SECOND',
            in_channels=cfg['fuser_out'],
            out_channels=cfg['second_out'],
            layer_nums=cfg['layer_nums'],
            layer_strides=cfg['strides'],
            norm_cfg=norm,
            conv_cfg=dict(type='Conv2d', bias=False),
        ),
        parameters(npz, 'param/backbone.'),
    )
    neck = _build(
        dict(
            type='SECONDFPN',
            in_channels=cfg['second_out'],
            out_channels=cfg['fpn_out'],
            upsample_strides=cfg['strides'],
            norm_cfg=norm,
            upsample_cfg=dict(type='deconv', bias=False),
            use_conv_for_no_stride=True,
        ),
        parameters(npz, 'param/neck.'),
    )
    fused = fuser([tensor(npz, 'in/cam_bev'), tensor(npz, 'in/lidar_bev')])
    _close(fused, npz, 'out/fused')
    stages = backbone(fused)
    for i, stage in enumerate(stages):
        _close(stage, npz, f'out/stage{i}')
    _close(neck(stages)[0], npz, 'out/fpn')


def check_camera_bev_decoder(npz):
    cfg = config(npz)
    backbone = _build(
        dict(type='GeneralizedResNet', in_channels=npz['in/x'].shape[1], blocks=cfg['blocks']),
        parameters(npz, 'param/backbone.'),
    )
    neck = _build(
        dict(
            type='LSSFPN',
            in_indices=cfg['in_indices'],
            in_channels=cfg['neck_in'],
            out_channels=cfg['out'],
            scale_factor=cfg['scale_factor'],
        ),
        parameters(npz, 'param/neck.'),
    )
    stages = backbone(tensor(npz, 'in/x'))
    for i, stage in enumerate(stages):
        _close(stage, npz, f'out/s{i}')
    _close(neck(stages), npz, 'out/neck')


def check_sparse_encoder(npz):
    cfg = config(npz)
    cfg.pop('weight_layout')
    state = parameters(npz, 'param/')
    coors = tensor(npz, 'in/coors_bxyz')
    for layout in ('spconv 2', 'mmcv'):
        if layout == 'mmcv':  # MIT's files: (kx, ky, kz, in, out)
            state = {k: v.permute(1, 2, 3, 4, 0).contiguous() if v.dim() == 5 else v for k, v in state.items()}
        encoder = _build(cfg, state)
        plane = encoder(tensor(npz, 'in/voxel_features'), coors, int(coors[:, 0].max()) + 1)
        _close(plane, npz, 'out/bev', rtol=1e-3, share=1e-3)


def _truths(npz):
    truths = []
    while f'in/gt{len(truths)}_bboxes' in npz.files:
        boxes, labels = (tensor(npz, f'in/gt{len(truths)}_{name}') for name in ('bboxes', 'labels'))
        boxes = LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[-1])
        truths.append(InstanceData(bboxes_3d=boxes, labels_3d=labels))
    return truths


def _check_losses(losses, npz):
    expected = {name.removeprefix('loss/') for name in npz.files if name.startswith('loss/')}
    assert set(losses) == expected
    for name, loss in losses.items():
        _close(loss, npz, f'loss/{name}', rtol=2e-4)


def _check_prediction(found, npz, prefix, tolerance=1e-4):
    boxes = found.bboxes_3d.tensor
    assert torch.equal(found.labels_3d, tensor(npz, f'{prefix}_labels').int()), f'{prefix} labels'
    _close(found.scores_3d, npz, f'{prefix}_scores', share=tolerance)
    _close(boxes, npz, f'{prefix}_bboxes', share=tolerance)


def check_transfusion_head(npz):
    cfg = config(npz)
    head = _build(dict(type='TransFusionHead', **cfg), parameters(npz, 'param/'))
    preds = head([tensor(npz, 'in/feat')])
    for name, value in preds.items():
        if name == 'query_labels':
            assert torch.equal(value, tensor(npz, 'out/query_labels'))
        else:
            _close(value, npz, f'out/{name}')
    truths = _truths(npz)
    for name, value in head.get_targets(truths, preds).items():
        _close(value, npz, f'tgt/{name}')
    kept = {name: value.clone() for name, value in preds.items()}
    _check_losses(head.loss_by_feat(preds, truths), npz)
    assert all(torch.equal(kept[name], preds[name]) for name in preds), 'the loss changed the predictions'
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)] * len(truths)
    for kind in (None, 'circle', 'rotate'):
        head.test_cfg = dict(cfg['test_cfg'], nms_type=kind, pre_maxsize=1000, post_maxsize=83)
        for b, found in enumerate(head.predict_by_feat(preds, metas)):
            _check_prediction(found, npz, f'out/pred_{kind}/b{b}')


def check_decoder_layer_mit(npz):
    cfg = config(npz)
    attention = dict(embed_dims=cfg['d_model'], num_heads=cfg['nhead'], dropout=0.1)
    prefix = 'bbox_head.decoder.0.'
    rename = Source('golden', key_map=MIT_KEY_MAP).rename
    state = {rename(prefix + name).removeprefix(prefix): value for name, value in parameters(npz, 'param/').items()}
    layer = _build(
        dict(
            type='TransformerDecoderLayer',
            self_attn_cfg=attention,
            cross_attn_cfg=attention,
            ffn_cfg=dict(
                embed_dims=cfg['d_model'],
                feedforward_channels=cfg['ffn'],
                num_fcs=2,
                ffn_drop=0.1,
                act_cfg=dict(type='ReLU', inplace=True),
            ),
            norm_cfg=dict(type='LN'),
            pos_encoding_cfg=dict(input_channel=2, num_pos_feats=cfg['d_model']),
        ),
        state,
    )
    query = layer(*(tensor(npz, f'in/{name}') for name in ('query', 'key', 'query_pos', 'key_pos')))
    _close(query, npz, 'out/query')


def check_coder_assigner(npz):
    cfg = config(npz)
    coder = TASK_UTILS.build(dict(type='TransFusionBBoxCoder', **cfg['coder']))
    _close(coder.encode(tensor(npz, 'in/boxes')), npz, 'out/encoded')
    code = {name: tensor(npz, f'in/{name}') for name in ('heat', 'rot', 'dim', 'center', 'height', 'vel')}
    code['heatmap'] = code.pop('heat')
    for b, decoded in enumerate(coder.decode(**code, filter=True)):
        for name, value in decoded.items():
            _close(value, npz, f'out/dec{b}_{name}')
    predicted, truth = tensor(npz, 'in/assign_pred_boxes'), tensor(npz, 'in/assign_gt_boxes')
    _close(box3d_iou(predicted, truth), npz, 'out/iou3d')
    result = TASK_UTILS.build(cfg['assigner']).assign(
        predicted,
        truth,
        tensor(npz, 'in/assign_gt_labels'),
        tensor(npz, 'in/assign_cls_logits'),
        dict(point_cloud_range=cfg['point_cloud_range']),
    )
    assert torch.equal(result.gt_inds, tensor(npz, 'out/assigned_gt_inds'))
    assert torch.equal(result.labels, tensor(npz, 'out/assigned_labels'))
    _close(result.max_overlaps, npz, 'out/max_overlaps')


def check_mit_box_convention(npz):
    code = {name: tensor(npz, f'in/{name}') for name in ('rot', 'dim', 'center', 'height', 'vel')}
    coder = dict(type='TransFusionBBoxCoder', pc_range=[-54.0, -54.0], out_size_factor=8, voxel_size=[0.075, 0.075])
    raw = TASK_UTILS.build(dict(coder, code_size=10)).boxes(**code)[0]
    _close(raw, npz, 'out/boxes_mit_raw')
    # what the converter does to the rows of the last layers, done here to their outputs
    code['dim'] = code['dim'][:, [1, 0, 2]]
    code['rot'] = -code['rot'][:, [1, 0]]
    found = TASK_UTILS.build(dict(coder, code_size=10, height_is_top=True)).boxes(**code)[0]
    expected = tensor(npz, 'out/boxes_mmdet3d1x')
    turned = (found[:, 6] - expected[:, 6]).div(2 * torch.pi)
    assert (turned - turned.round()).abs().max() < 1e-5, 'yaw'
    rest = [0, 1, 2, 3, 4, 5, 7, 8]
    torch.testing.assert_close(found[:, rest], expected[:, rest], rtol=1e-4, atol=1e-4)


def check_nms(npz):
    cfg = config(npz)
    boxes, scores = tensor(npz, 'in/boxes'), tensor(npz, 'in/scores')
    rectangles = boxes[:, [0, 1, 3, 4, 6]]
    _close(rectangles, npz, 'out/bev_xywhr')
    circles = torch.cat([boxes[:, :2], scores[:, None]], dim=1).numpy()
    second = cfg['circle2']
    for name, arguments in (('circle', (cfg['circle_radius'],)), ('circle2', (second['radius'], second['post_max']))):
        assert np.array_equal(circle_nms(circles, *arguments), npz[f'out/{name}_keep']), name
    for name in ('rotate', 'rotate2'):
        limits = cfg[name]
        kept = bev_nms(rectangles, scores, limits['iou'], limits['pre'], limits['post'])
        assert torch.equal(kept, tensor(npz, f'out/{name}_keep')), name


def check_class_slice(npz):
    """The rows of classes move by name; see the loader's own tests for its other rules."""
    import tempfile
    from pathlib import Path

    from occforge.engine import load_partially, parse_load_from, write_checkpoint
    from torch import nn

    cfg = config(npz)
    source, fresh = parameters(npz, 'source/'), parameters(npz, 'init/')

    class Head(nn.Module):
        class_axes = {name: axis for name, axis in cfg['class_axes'].items()}

    def module(state):
        head = Head()
        for name, value in state.items():
            parent = head
            *path, last = name.split('.')
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            parent.register_buffer(last, value) if not value.is_floating_point() else parent.register_parameter(
                last, nn.Parameter(value.clone())
            )
        return head

    target = module({**source, **fresh})
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'source.pth'))
        meta = dict(dataset_meta=dict(classes=cfg['source_classes']))
        write_checkpoint(dict(meta=meta, state_dict=source), path)
        report = load_partially(target, parse_load_from(path), classes=cfg['target_classes'])
    assert {each.name for each in report.adapted} == set(fresh)
    state = target.state_dict()
    for name in fresh:
        assert torch.equal(state[name], tensor(npz, f'expect/{name}')), name
    heatmap = dict(source={**source}, target=state)
    feat = tensor(npz, 'in/feat')
    for which, weights in heatmap.items():
        x = nn.functional.conv2d(feat, weights['shared_conv.weight'], weights['shared_conv.bias'], padding=1)
        x = nn.functional.conv2d(x, weights['heatmap_head.0.conv.weight'], padding=1)
        names = ('running_mean', 'running_var', 'weight', 'bias')
        x = nn.functional.batch_norm(x, *(weights[f'heatmap_head.0.bn.{name}'] for name in names)).relu()
        x = nn.functional.conv2d(x, weights['heatmap_head.1.weight'], weights['heatmap_head.1.bias'], padding=1)
        _close(x, npz, f'out/{which}_dense_heatmap')


def check_seg_head(npz):
    cfg = config(npz)
    transform = {name: cfg[name] for name in ('input_scope', 'output_scope')}
    for loss in ('focal', 'xent'):
        head = _build(
            dict(
                type='BEVSegmentationHead',
                in_channels=cfg['in_channels'],
                grid_transform=transform,
                classes=cfg['classes'],
                loss=loss,
            ),
            parameters(npz, 'param/'),
        )
        feat = tensor(npz, 'in/feat').requires_grad_()
        _close(head.transform(feat), npz, 'out/grid')
        logits = head(feat)
        _close(head.predict(logits), npz, 'out/probs')
        losses = head.loss(logits, tensor(npz, 'in/target'))
        assert list(losses) == [f'{name}/{loss}' for name in cfg['classes']]
        for name in cfg['classes']:
            _close(losses[f'{name}/{loss}'], npz, f'out/loss_{name}_{loss}')
        grad = torch.autograd.grad(sum(losses.values()), feat)[0]
        _close(grad, npz, f'out/grad_{loss}', share=1e-3)


def check_detector_e2e(npz):
    cfg = config(npz)
    model = _build(cfg, parameters(npz, 'param/'))
    batch = len(npz['in/points'])
    truths = _truths(npz)
    samples = []
    for b in range(batch):
        meta = {name: npz[f'in/{name}'][b] for name in MATRICES}
        sample = Det3DDataSample(metainfo=dict(meta, box_type_3d=LiDARInstance3DBoxes, sample_idx=b))
        sample.gt_instances_3d = truths[b]
        samples.append(sample)
    inputs = dict(img=list(tensor(npz, 'in/imgs_rgb_0_255')), points=list(tensor(npz, 'in/points')))
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)
    seen = {}
    for name in ('img_backbone', 'img_neck', 'view_transform', 'pts_middle_encoder', 'fusion_layer', 'pts_neck'):
        getattr(model, name).register_forward_hook(lambda module, args, out, name=name: seen.setdefault(name, out))
    voxels = model.voxelize(data['inputs']['points'])
    assert torch.equal(voxels.coords, tensor(npz, 'out/voxel_coors_bxyz'))
    _close(voxels.features, npz, 'out/voxel_feats')
    with torch.no_grad():
        predictions = model(**data, mode='predict')
    for name, value in seen.items():
        value = value[0] if isinstance(value, (list, tuple)) else value
        _close(value, npz, f'out/{name}', rtol=1e-3, share=1e-3)
    for b, sample in enumerate(predictions):
        _check_prediction(sample.pred_instances_3d, npz, f'out/pred{b}', 1e-3)
    with torch.no_grad():
        losses = model(**data, mode='loss')
    expected = {name.removeprefix('loss/') for name in npz.files if name.startswith('loss/')}
    assert set(losses) == expected
    for name, loss in losses.items():
        _close(loss, npz, f'loss/{name}', rtol=1e-3)
