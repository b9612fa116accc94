"""BEVFusion's parts beyond what the golden data cover."""

import copy
import math

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS, TASK_UTILS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from occforge.engine import load_partially, parse_load_from, write_checkpoint
from occforge.errors import ConfigError, DataError
from occforge.models.rotated_boxes import bev_nms, box3d_iou, rotated_intersection, rotated_iou
from occforge.systems.bevfusion.targets import draw_heatmap

CLASSES = ['car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle', 'pedestrian',
           'traffic_cone']  # fmt: skip
MAPS = ['drivable_area', 'walkway']
RANGE = [-9.6, -9.6, -5.0, 9.6, 9.6, 3.0]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet3d')


def attention(width):
    return dict(embed_dims=width, num_heads=2, dropout=0.1)


def tiny(camera=True, lidar=True, objects=True, maps=True, classes=CLASSES, **changes):
    """A detector that runs in a fraction of a second; grids of 16 x 16 cells."""
    width = 16
    cfg = dict(
        type='BEVFusion',
        data_preprocessor=dict(type='Det3DDataPreprocessor', pad_size_divisor=32),
        pts_backbone=dict(
            type='SECOND', in_channels=width, out_channels=[8, 16], layer_nums=[1, 1], layer_strides=[1, 2]
        ),
        pts_neck=dict(type='SECONDFPN', in_channels=[8, 16], out_channels=[8, 8], upsample_strides=[1, 2],
                      use_conv_for_no_stride=True),
    )  # fmt: skip
    voxels = dict(max_num_points=5, point_cloud_range=RANGE, voxel_size=[0.15, 0.15, 0.2], max_voxels=[4000, 5000])
    cfg['data_preprocessor']['voxelize_cfg'] = voxels
    if lidar:
        cfg['pts_middle_encoder'] = dict(
            type='BEVFusionSparseEncoder', in_channels=5, base_channels=8, output_channels=8, block_type='basicblock',
            encoder_channels=[[8, 8, 8], [8, 8, 8], [8, 8, 8], [8, 8]],
            encoder_paddings=[[0, 0, 1], [0, 0, 1], [0, 0, [1, 1, 0]], [0, 0]],
        )  # fmt: skip
    if camera:
        cfg['img_backbone'] = dict(type='mmdet.ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2),
                                   dilations=(1, 1), out_indices=(1,))  # fmt: skip
        cfg['view_transform'] = dict(
            type='LSSTransform' if not lidar else 'DepthLSSTransform', in_channels=16, out_channels=8 if lidar else 16,
            image_size=[64, 96], feature_size=[8, 12], zbound=[-10.0, 10.0, 20.0], dbound=[1.0, 13.0, 1.0],
            xbound=[-9.6, 9.6, 0.6], ybound=[-9.6, 9.6, 0.6], downsample=2,
        )  # fmt: skip
    if camera and lidar:
        cfg['fusion_layer'] = dict(type='ConvFuser', in_channels=[8, 16], out_channels=width)
    if objects:
        cfg['bbox_head'] = dict(
            type='TransFusionHead', num_proposals=12, in_channels=16, hidden_channel=16, num_classes=len(classes),
            class_names=classes, nms_kernel_size=3, num_decoder_layers=1,
            decoder_layer=dict(
                self_attn_cfg=attention(16), cross_attn_cfg=attention(16),
                ffn_cfg=dict(embed_dims=16, feedforward_channels=32, num_fcs=2, ffn_drop=0.1),
                pos_encoding_cfg=dict(input_channel=2, num_pos_feats=16),
            ),
            train_cfg=dict(
                dataset='nuScenes', gaussian_overlap=0.1, min_radius=2, pos_weight=-1,
                code_weights=[1.0] * 8 + [0.2] * 2,
                assigner=dict(
                    type='HungarianAssigner3D', cls_cost=dict(type='mmdet.FocalLossCost', weight=0.15),
                    reg_cost=dict(type='BBoxBEVL1Cost', weight=0.25), iou_cost=dict(type='IoU3DCost', weight=0.25),
                ),
            ),
            test_cfg=dict(dataset='nuScenes', nms_type=None),
            common_heads=dict(center=[2, 2], height=[1, 2], dim=[3, 2], rot=[2, 2], vel=[2, 2]),
            bbox_coder=dict(type='TransFusionBBoxCoder', post_center_range=[-12, -12, -10, 12, 12, 10], code_size=10),
        )  # fmt: skip
    if maps:
        cfg['map_head'] = dict(
            type='BEVSegmentationHead', in_channels=16, classes=MAPS,
            grid_transform=dict(output_scope=[[-8, 8, 0.5], [-8, 8, 0.5]]),
        )  # fmt: skip
    cfg.update(changes)
    return cfg


def batch(cameras=3, samples=2, classes=10, with_maps=True, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (cameras, 3, 64, 96), generator=rng, dtype=torch.uint8) for _ in range(samples)]
    clouds, each = [], []
    camera2lidar = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    for index in range(cameras):
        yaw = 2 * math.pi * index / cameras
        forward = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0])
        right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0])
        camera2lidar[index, :3, :3] = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward], dim=1)
    k = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    k[:, 0, 0] = k[:, 1, 1] = 60.0
    k[:, 0, 2], k[:, 1, 2] = 48.0, 32.0
    for index in range(samples):
        cloud = torch.rand(1500, 5, generator=rng) * torch.tensor([18.0, 18.0, 4.0, 255.0, 0.0])
        clouds.append(cloud - torch.tensor([9.0, 9.0, 3.0, 0.0, 0.0]))
        meta = dict(
            lidar2img=(k @ torch.linalg.inv(camera2lidar)).numpy(), cam2img=k.numpy(), cam2lidar=camera2lidar.numpy(),
            cam2ego=camera2lidar.numpy(), box_type_3d=LiDARInstance3DBoxes, sample_idx=index,
        )  # fmt: skip
        sample = Det3DDataSample(metainfo=meta)
        number = 4
        boxes = torch.cat(
            [
                torch.rand(number, 2, generator=rng) * 16 - 8,
                torch.full((number, 1), -1.5),
                torch.tensor([[4.0, 1.9, 1.6]]).repeat(number, 1),
                torch.rand(number, 1, generator=rng) * 6,
                torch.zeros(number, 2),
            ],
            dim=1,
        )
        labels = torch.randint(0, classes, (number,), generator=rng)
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
        if with_maps:
            masks = (torch.rand(len(MAPS), 32, 32, generator=rng) > 0.5).to(torch.uint8)
            sample.gt_masks_bev = BaseDataElement(masks=masks)
        each.append(sample)
    return dict(inputs=dict(img=images, points=clouds), data_samples=each)


def run(model, mode, data=None):
    data = model.data_preprocessor(copy.deepcopy(data or batch()), mode == 'loss')
    return model(**data, mode=mode)


@pytest.mark.parametrize(
    ('camera', 'lidar', 'objects', 'maps'),
    [(True, True, True, True), (True, False, True, False), (False, True, True, True), (True, False, False, True)],
)
def test_every_combination_of_branches_and_heads_trains_and_predicts(camera, lidar, objects, maps):
    torch.manual_seed(0)
    model = MODELS.build(tiny(camera, lidar, objects, maps))
    losses = run(model, 'loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    model.eval()
    for sample in run(model, 'predict'):
        if objects:
            assert len(sample.pred_instances_3d) <= 12 and sample.pred_instances_3d.bboxes_3d.tensor.shape[1] == 9
        if maps:
            probs = sample.pred_masks_bev.probs
            assert probs.shape == (2, 32, 32) and 0 <= probs.min() and probs.max() <= 1


def test_losses_have_the_names_of_both_layouts():
    alone = set(run(MODELS.build(tiny(maps=False)), 'loss'))
    assert alone == {'loss_heatmap', 'layer_-1_loss_cls', 'layer_-1_loss_bbox', 'matched_ious'}
    both = set(run(MODELS.build(tiny()), 'loss'))
    assert {'loss/object/loss_heatmap', 'loss/map/drivable_area/focal', 'loss/map/walkway/focal'} <= both
    assert 'stats/object/matched_ious' in both  # no loss in its name: it is not summed


def test_loss_scale_multiplies_a_tasks_losses():
    torch.manual_seed(0)
    model = MODELS.build(tiny(loss_scale=dict(map=3.0)))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.eval()
    scaled = run(model, 'loss')
    model.loss_scale['map'] = 1.0
    plain = run(model, 'loss')
    name = 'loss/map/walkway/focal'
    torch.testing.assert_close(scaled[name], 3 * plain[name])
    torch.testing.assert_close(scaled['loss/object/loss_heatmap'], plain['loss/object/loss_heatmap'])


def test_a_decoder_for_each_task():
    cfg = tiny()
    decoder = dict(backbone=cfg.pop('pts_backbone'), neck=cfg.pop('pts_neck'))
    model = MODELS.build(dict(cfg, decoders=dict(object=decoder, map=copy.deepcopy(decoder))))
    names = {name.split('.')[1] for name, _ in model.named_parameters() if name.startswith('decoders.')}
    assert names == {'object', 'map'}
    model.parse_losses(run(model, 'loss'))[0].backward()
    with pytest.raises(ConfigError, match='decoders'):
        MODELS.build(dict(cfg, decoders=dict(object=decoder)))


def test_the_benchmark_times_voxelisation_and_the_preparation_of_indices():
    from benchmarks.model import Probe

    model = MODELS.build(tiny())
    with Probe(model, torch.device('cpu')) as probe:
        run(model, 'loss')
    assert set(model.stage_methods) <= set(probe.forward_seconds)
    assert all(seconds > 0 for seconds in probe.forward_seconds.values())
    with Probe(MODELS.build(tiny(camera=False)), torch.device('cpu')) as probe:
        pass
    assert 'voxelize' in probe.methods and not any(name.startswith('view_transform') for name in probe.methods)


@pytest.mark.parametrize('cameras', [1, 4, 6])
def test_the_number_of_cameras_is_free(cameras):
    torch.manual_seed(0)
    model = MODELS.build(tiny())
    model.eval()
    assert len(run(model, 'predict', batch(cameras=cameras))) == 2


def without_anything(data, index):
    """The sample has no points, no boxes and no map."""
    data['inputs']['points'][index] = torch.zeros(0, 5)
    sample = data['data_samples'][index]
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9), labels_3d=torch.zeros(0, dtype=torch.int64)
    )
    del sample.gt_masks_bev
    return data


def test_samples_without_points_boxes_or_maps():
    data = without_anything(batch(), 1)
    model = MODELS.build(tiny())
    losses = run(model, 'loss', data)
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    total.backward()
    for sample in data['data_samples']:
        if 'gt_masks_bev' in sample:
            del sample.gt_masks_bev
    assert run(model, 'loss', data)['loss/map/walkway/focal'] == 0


def test_inputs_are_not_changed_and_a_config_builds_twice():
    cfg = tiny()
    kept = copy.deepcopy(cfg)
    model = MODELS.build(cfg)
    MODELS.build(cfg)
    assert cfg == kept
    data = model.data_preprocessor(batch(), True)
    before = [cloud.clone() for cloud in data['inputs']['points']]
    model(**data, mode='loss')
    assert all(torch.equal(a, b) for a, b in zip(before, data['inputs']['points']))


def test_depth_aware_view_transforms_add_a_depth_loss():
    view = dict(
        in_channels=16, out_channels=8, image_size=[64, 96], feature_size=[4, 6], zbound=[-10.0, 10.0, 20.0],
        dbound=[1.0, 13.0, 1.0], downsample=2,
    )  # fmt: skip
    for kind in ('AwareBEVDepth', 'AwareDBEVDepth'):
        cfg = tiny(maps=False)
        cfg['img_backbone'].update(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
        cfg['view_transform'] = dict(view, type=kind, in_channels=32)
        model = MODELS.build(cfg)
        losses = run(model, 'loss')
        assert losses['loss/depth'] > 0
        model.parse_losses(losses)[0].backward()


def pillars():
    cfg = tiny(camera=False, maps=False)
    voxels = dict(voxel_size=[0.6, 0.6, 8.0], max_num_points=6, max_voxels=[2000, 2000], voxelize_reduce=False)
    cfg['data_preprocessor']['voxelize_cfg'].update(voxels)
    cfg['pts_voxel_encoder'] = dict(
        type='PillarFeatureNet', in_channels=5, feat_channels=[8, 8], legacy=False, voxel_size=[0.6, 0.6, 8.0],
        point_cloud_range=RANGE,
    )  # fmt: skip
    cfg['pts_middle_encoder'] = dict(type='PillarScatter', in_channels=8)
    cfg['pts_backbone'].update(in_channels=8, layer_strides=[2, 2])
    for part in ('train_cfg', 'test_cfg', 'bbox_coder'):
        cfg['bbox_head'][part]['out_size_factor'] = 2
    return cfg


def test_pillars_train_and_predict():
    model = MODELS.build(pillars())
    model.parse_losses(run(model, 'loss'))[0].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without and model.bbox_head.plane_size == (16, 16)
    model.eval()
    assert len(run(model, 'predict')) == 2


def test_a_pillar_lies_where_its_points_are():
    torch.manual_seed(0)
    model = MODELS.build(pillars()).eval()
    cloud = torch.tensor([[3.1, -7.0, 0.5, 9.0, 0.0], [3.2, -7.1, -0.5, 5.0, 0.0], [-9.5, 9.5, 1.0, 1.0, 0.0]])
    kept = cloud.clone()
    empty = torch.zeros(0, 5)
    plane = model.extract_pts_feat([empty, cloud])
    assert plane.shape == (2, 8, 32, 32) and not plane[0].any() and torch.equal(cloud, kept)
    x, y = (21, 4), (0, 31)  # 3.1 m is cell 21 of x, -7 m cell 4 of y
    assert {tuple(place) for place in plane[1].abs().sum(0).nonzero().tolist()} <= {x, y}
    # the features by hand: offsets from the mean of the points and from the middle of the pillar, an empty slot's are 0
    points, middle = cloud[:2], torch.tensor([-9.6 + 21.5 * 0.6, -9.6 + 4.5 * 0.6, -1.0])
    rows = torch.cat([points, points[:, :3] - points[:, :3].mean(0), points[:, :3] - middle], dim=1)
    rows = torch.cat([rows, rows.new_zeros(4, rows.shape[1])])
    first, second = model.pts_voxel_encoder.pfn_layers
    hidden = first.norm(first.linear(rows)).relu()
    hidden = torch.cat([hidden, hidden.amax(0, keepdim=True).expand_as(hidden)], dim=1)
    torch.testing.assert_close(plane[1, :, x[0], x[1]], second.norm(second.linear(hidden)).relu().amax(0))


def test_voxels_without_limits_are_those_of_limits_that_nothing_reaches():
    cfg = tiny(camera=False, maps=False)
    cfg['data_preprocessor']['voxelize_cfg'].update(max_num_points=2000, max_voxels=-1)
    hard = MODELS.build(cfg).eval()
    cfg['data_preprocessor']['voxelize_cfg'].update(max_num_points=-1)
    dynamic = MODELS.build(cfg).eval()
    dynamic.load_state_dict(hard.state_dict())
    points = batch()['inputs']['points']
    torch.testing.assert_close(dynamic.extract_pts_feat(points), hard.extract_pts_feat(points), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(fusion_layer=None), 'fusion_layer is missing'),
        (dict(bbox_head=None, map_head=None), 'needs a bbox_head'),
        (dict(img_backbone=None), 'needs img_backbone and view_transform'),
        (dict(loss_scale=dict(objects=1.0)), 'loss_scale'),
    ],
)
def test_wrong_combinations_are_said(change, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build(tiny(**change))


def test_grids_that_disagree_are_said():
    cfg = tiny()
    cfg['pts_middle_encoder']['sparse_shape'] = [128, 128, 31]
    with pytest.raises(ConfigError, match=r'pts_middle_encoder.sparse_shape is \[128, 128, 31\]'):
        MODELS.build(cfg)
    cfg = tiny()
    cfg['view_transform']['xbound'] = [-9.6, 9.6, 0.3]
    with pytest.raises(ConfigError, match=r'view_transform\.xbound'):
        MODELS.build(cfg)
    cfg = tiny()
    cfg['data_preprocessor']['voxelize_cfg']['voxel_size'] = [0.17, 0.15, 0.2]
    with pytest.raises(ConfigError, match='whole'):
        MODELS.build(cfg)


def test_finer_voxels_change_no_shape_of_a_weight():
    coarse, cfg = tiny(), tiny()
    cfg['data_preprocessor']['voxelize_cfg']['voxel_size'] = [0.075, 0.075, 0.2]
    for name in ('xbound', 'ybound'):
        cfg['view_transform'].pop(name)
    fine = MODELS.build(cfg)
    assert fine.bbox_head.plane_size == (32, 32) and fine.view_transform.grid_size == (64, 64, 1)
    own = {'dx', 'bx', 'nx', 'frustum'}
    a, b = ({k: v.shape for k, v in m.state_dict().items()} for m in (MODELS.build(coarse), fine))
    assert a == b  # only the values of dx and nx differ, and those the config decides
    state = MODELS.build(coarse).state_dict()
    kept = {name: getattr(fine.view_transform, name).clone() for name in own}
    fine.load_state_dict(state)
    assert all(torch.equal(kept[name], getattr(fine.view_transform, name)) for name in own)


def test_missing_meta_information_is_named():
    data = batch()
    data['data_samples'][1].set_metainfo(dict(lidar2img=None))
    with pytest.raises(DataError, match=r"sample 1: meta information 'lidar2img'"):
        run(MODELS.build(tiny()), 'loss', data)


# ---------------------------------------------------------------------------------------------------------- weights
def mit_names(state):
    """A state dict in MIT's names and kernel layout."""
    renames = {
        'img_backbone.': 'encoders.camera.backbone.', 'img_neck.': 'encoders.camera.neck.',
        'view_transform.': 'encoders.camera.vtransform.', 'pts_middle_encoder.': 'encoders.lidar.backbone.',
        'fusion_layer.': 'fuser.', 'pts_backbone.': 'decoder.backbone.', 'pts_neck.': 'decoder.neck.',
        'bbox_head.': 'heads.object.', 'map_head.': 'heads.map.',
    }  # fmt: skip
    inside = {
        '.self_attn.attn.': '.self_attn.', '.cross_attn.attn.': '.multihead_attn.', '.ffn.layers.0.0.': '.linear1.',
        '.ffn.layers.1.': '.linear2.', '.norms.0.': '.norm1.', '.norms.1.': '.norm2.', '.norms.2.': '.norm3.',
    }  # fmt: skip
    found = {}
    for name, value in state.items():
        old, new = next((old, new) for old, new in renames.items() if name.startswith(old))
        name = new + name[len(old) :]
        if name.startswith('heads.object.decoder.'):
            for a, b in inside.items():
                name = name.replace(a, b)
        if value.dim() == 5:
            value = value.permute(1, 2, 3, 4, 0).contiguous()
        found[name] = value
    return found


def test_mit_checkpoints_load_without_a_key_map(tmp_path):
    torch.manual_seed(1)
    source = MODELS.build(tiny())
    path = tmp_path / 'mit.pth'
    write_checkpoint(dict(meta={}, state_dict=mit_names(source.state_dict())), path)
    target = MODELS.build(tiny())
    report = load_partially(target, parse_load_from(str(path)))
    assert report.share == 1 and not report.missing and not report.unexpected and not report.mismatched
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name


def test_classes_move_by_name_for_objects_and_maps(tmp_path):
    torch.manual_seed(1)
    source = MODELS.build(tiny())
    meta = dict(dataset_meta=dict(classes=CLASSES, map_classes=MAPS))
    path = tmp_path / 'source.pth'
    write_checkpoint(dict(meta=meta, state_dict=mit_names(source.state_dict())), path)
    fewer = ['pedestrian', 'car', 'bus', 'tricycle']
    cfg = tiny(classes=fewer)
    cfg['map_head']['classes'] = ['walkway', 'drivable_area', 'grass']
    target = MODELS.build(cfg)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = load_partially(target, parse_load_from(str(path)))  # the model knows its classes
    assert not report.mismatched and not report.missing
    old, new = source.state_dict(), target.state_dict()
    places = [CLASSES.index(name) for name in fewer[:3]]
    for name, axis in (
        ('bbox_head.heatmap_head.1.weight', 0), ('bbox_head.heatmap_head.1.bias', 0),
        ('bbox_head.class_encoding.weight', 1), ('bbox_head.prediction_heads.0.heatmap.1.weight', 0),
        ('bbox_head.prediction_heads.0.heatmap.1.bias', 0),
    ):  # fmt: skip
        taken = new[name].index_select(axis, torch.arange(3))
        assert torch.equal(taken, old[name].index_select(axis, torch.tensor(places))), name
        rest = torch.tensor([3])
        assert torch.equal(new[name].index_select(axis, rest), before[name].index_select(axis, rest)), name
    maps = 'map_head.classifier.6.weight'
    assert torch.equal(new[maps][0], old[maps][1]) and torch.equal(new[maps][1], old[maps][0])
    assert torch.equal(new[maps][2], before[maps][2])


@pytest.mark.parametrize('lidar', [True, False])
def test_other_depth_bins_take_the_rows_of_their_depths(tmp_path, lidar):
    torch.manual_seed(1)
    cfg = tiny(lidar=lidar, maps=False)
    source = MODELS.build(cfg)
    path = tmp_path / 'source.pth'
    write_checkpoint(dict(meta={}, state_dict=mit_names(source.state_dict())), path)
    cfg['view_transform']['dbound'] = [2.0, 15.0, 0.5]  # of 1 m to 12 m, a bin each metre
    target = MODELS.build(cfg)
    report = load_partially(target, parse_load_from(str(path)))
    assert report.share == 1 and not report.mismatched
    last = 'view_transform.depthnet' + ('.6' if lidar else '')
    assert {f'{last}.weight', f'{last}.bias'} <= {each.name for each in report.adapted}
    for leaf in ('weight', 'bias'):
        old, new = (model.state_dict()[f'{last}.{leaf}'] for model in (source, target))
        torch.testing.assert_close(new[:21:2], old[1:12])  # 2 m, 3 m, ...
        torch.testing.assert_close(new[1:20:2], (old[1:11] + old[2:12]) / 2)
        assert (new[21:26] == old[11]).all() and torch.equal(new[26:], old[12:])
    assert target.view_transform.frustum[0, 0, 0, 2] == 2.0


def test_classes_of_center_head_move_by_name_within_their_task(tmp_path):
    def build(*tasks):
        model = MODELS.build(tiny(lidar=False, maps=False, bbox_head=center_head(*tasks)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        return model

    torch.manual_seed(1)
    names = [name for task in (['car'], ['truck', 'bus'], ['pedestrian', 'barrier']) for name in task]
    source = build(['car'], ['truck', 'bus'], ['pedestrian', 'barrier'])
    path = tmp_path / 'source.pth'
    meta = dict(dataset_meta=dict(classes=names))
    write_checkpoint(dict(meta=meta, state_dict=source.state_dict()), path)
    target = build(['car'], ['bus', 'van'], ['barrier', 'pedestrian'])
    assert target.class_names == ('car', 'bus', 'van', 'barrier', 'pedestrian')
    before = copy.deepcopy(target.state_dict())
    report = load_partially(target, parse_load_from(dict(path=str(path), class_aliases=dict(van='car'))))
    assert not report.mismatched and not report.missing
    old, new = source.state_dict(), target.state_dict()
    for leaf in ('weight', 'bias'):
        task = [f'bbox_head.task_heads.{number}.heatmap.1.{leaf}' for number in range(3)]
        assert torch.equal(new[task[0]], old[task[0]])
        assert torch.equal(new[task[1]][0], old[task[1]][1])
        # the alias is a class of another task, whose layers in front of the rows are others
        assert torch.equal(new[task[1]][1], before[task[1]][1])
        assert torch.equal(new[task[2]], old[task[2]].flip(0))
    adapted = {each.name: each.how for each in report.adapted}
    assert '1 new (van)' in adapted['bbox_head.task_heads.1.heatmap.1.weight']
    # fewer classes in a task, and a file that does not name its own
    fewer = build(['car'], ['bus'], ['pedestrian', 'barrier'])
    assert not load_partially(fewer, parse_load_from(str(path))).mismatched
    assert torch.equal(fewer.state_dict()[task[1]], old[task[1]][1:])
    write_checkpoint(dict(meta={}, state_dict=source.state_dict()), path)
    report = load_partially(build(['car'], ['bus'], ['pedestrian', 'barrier']), parse_load_from(str(path)))
    assert {name for name, *_ in report.mismatched} == {
        'bbox_head.task_heads.1.heatmap.1.weight', 'bbox_head.task_heads.1.heatmap.1.bias'
    }  # fmt: skip


def test_small_classes_go_by_name():
    names = ['traffic_cone', 'car', 'pedestrian']
    head = MODELS.build(tiny(classes=names)).bbox_head
    assert head.small_classes == (0, 2)
    assert MODELS.build(tiny()).bbox_head.small_classes == (8, 9)
    cfg = tiny(classes=names)
    cfg['bbox_head']['class_names'] = None
    with pytest.raises(ConfigError, match='give class_names'):
        MODELS.build(cfg)


def test_the_border_has_no_peaks_and_small_classes_keep_neighbours():
    head = MODELS.build(tiny()).bbox_head
    score = torch.rand(1, 10, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = head.suppress(score) > 0
    border = torch.ones(16, 16, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not kept[0, :8][:, border].any() and kept[0, 8:].all()
    assert 0 < kept[0, 0].sum() < 60


# ---------------------------------------------------------------------------------------------------------- geometry
def test_rotated_overlaps_against_polygons():
    from shapely import affinity, geometry

    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(
        np.concatenate([rng.uniform(-3, 3, (60, 2)), rng.uniform(0.2, 5, (60, 2)), rng.uniform(-7, 7, (60, 1))], 1)
    )
    boxes[1] = boxes[0]  # identical
    boxes[2] = boxes[0] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    boxes[3] = torch.tensor([0.0, 0.0, 2.0, 2.0, 0.0])
    boxes[4] = torch.tensor([2.0, 0.0, 2.0, 2.0, 0.0])  # touching
    boxes[5] = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.3])  # inside

    def polygon(box):
        x, y, dx, dy, yaw = box.tolist()
        flat = geometry.box(-dx / 2, -dy / 2, dx / 2, dy / 2)
        return affinity.translate(affinity.rotate(flat, yaw, origin=(0, 0), use_radians=True), x, y)

    polygons = [polygon(box) for box in boxes]
    expected = torch.tensor([[a.intersection(b).area for b in polygons] for a in polygons], dtype=torch.float64)
    torch.testing.assert_close(rotated_intersection(boxes, boxes), expected, rtol=1e-6, atol=1e-6)
    shifted = boxes + torch.tensor([5e4, -3e4, 0, 0, 0])  # far from the origin
    torch.testing.assert_close(rotated_intersection(shifted, shifted), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(rotated_iou(boxes, boxes).diagonal(), torch.ones(60, dtype=torch.float64))


def test_box_overlap_counts_height():
    a = torch.tensor([[0.0, 0, 0, 2, 2, 2, 0]])
    b = torch.tensor([[0.0, 0, 1, 2, 2, 2, math.pi / 2], [0, 0, 3, 2, 2, 2, 0]])
    torch.testing.assert_close(box3d_iou(a, b), torch.tensor([[4 / 12, 0.0]]))
    assert box3d_iou(a, b[:0]).shape == (1, 0)


def test_nms_keeps_the_best_and_respects_limits():
    boxes = torch.tensor([[0.0, 0, 2, 2, 0], [0.1, 0, 2, 2, 0], [5, 0, 2, 2, 0], [9, 0, 2, 2, 0]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.8])
    assert bev_nms(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert bev_nms(boxes, scores, 0.5, pre_max_size=3).tolist() == [1, 3]
    assert bev_nms(boxes, scores, 0.5, post_max_size=1).tolist() == [1]
    assert bev_nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_heatmaps_of_grids_that_are_not_square():
    boxes = torch.tensor([[3.0, 1.0, 0, 4, 2, 1, 0], [100.0, 1.0, 0, 4, 2, 1, 0]])
    heatmap = draw_heatmap(boxes, torch.tensor([1, 0]), 2, (20, 6), (-10.0, -3.0), (1.0, 1.0), 0.1, 2)
    assert heatmap.shape == (2, 20, 6) and heatmap[1].argmax() == 13 * 6 + 4 and heatmap[1, 13, 4] == 1
    assert not heatmap[0].any()  # outside


def test_velocity_may_be_left_out():
    cfg = tiny(maps=False)
    head = cfg['bbox_head']
    head['common_heads'].pop('vel')
    with pytest.raises(ConfigError, match='code_size'):
        MODELS.build(cfg)
    head['bbox_coder']['code_size'] = 8
    head['train_cfg']['code_weights'] = [1.0] * 8
    model = MODELS.build(cfg)
    run(model, 'loss')
    model.eval()
    assert run(model, 'predict')[0].pred_instances_3d.bboxes_3d.tensor.shape[1] == 7


def test_several_decoder_layers_are_all_supervised():
    cfg = tiny(maps=False)
    cfg['bbox_head']['num_decoder_layers'] = 3
    losses = run(MODELS.build(cfg), 'loss')
    assert {f'layer_{i}_loss_cls' for i in (0, 1, -1)} <= set(losses)
    cfg['bbox_head']['auxiliary'] = False
    losses = run(MODELS.build(cfg), 'loss')
    assert 'layer_-1_loss_cls' in losses and 'layer_0_loss_cls' not in losses


def test_coder_of_tops_inverts_itself():
    boxes = torch.tensor([[1.0, -2.0, -1.0, 4.0, 2.0, 1.5, 0.7, 1.0, -1.0]])
    for top in (False, True):
        coder = TASK_UTILS.build(
            dict(type='TransFusionBBoxCoder', pc_range=RANGE, out_size_factor=8, voxel_size=[0.15, 0.15, 0.2],
                 code_size=10, height_is_top=top)
        )  # fmt: skip
        code = coder.encode(boxes).T[None]
        parts = dict(center=code[:, :2], height=code[:, 2:3], dim=code[:, 3:6], rot=code[:, 6:8], vel=code[:, 8:])
        torch.testing.assert_close(coder.boxes(**parts)[0], boxes)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_some_steps_on_one_batch_lower_every_loss(dtype):
    """Float32, and mixed precision: no step gives a NaN."""
    torch.manual_seed(0)
    model = MODELS.build(tiny())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    data = batch()
    history = []
    for _ in range(12):
        with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            losses = run(model, 'loss', data)
        total, logged = model.parse_losses(losses)
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in grads)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
        history.append({name: float(value) for name, value in logged.items()})
    first, last = history[0], history[-1]
    assert last['loss'] < 0.7 * first['loss']
    for name in ('loss/object/loss_heatmap', 'loss/map/drivable_area/focal', 'loss/map/walkway/focal'):
        assert last[name] < first[name], name


@pytest.mark.slow
def test_200_amp_steps_without_a_nan():
    """Other samples every time, some of them empty; float16 on a GPU, else bfloat16.

    This one alone: ``make test-slow ARGS='-k amp_steps tests/systems/test_bev_fusion.py'``. With a config's own data:
    ``tools/benchmarks/model.py CONFIG --mode train --precision fp16 --steps 200``.
    """
    torch.manual_seed(0)
    model = MODELS.build(tiny()).to(get_device()).train()
    cfg = dict(type='OccAmpOptimWrapper', optimizer=dict(type='AdamW', lr=2e-3), clip_grad=dict(max_norm=35.0))
    optim = build_optim_wrapper(model, cfg)
    losses = []
    for step in range(200):
        data = batch(samples=2, seed=step % 20)
        losses.append(model.train_step(without_anything(data, step % 2) if step % 7 == 0 else data, optim))
        bad = [name for name, value in losses[-1].items() if not torch.isfinite(value).all()]
        assert not bad, f'step {step}: {", ".join(bad)}'
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    first, last = (sum(float(each['loss']) for each in part) for part in (losses[:20], losses[-20:]))
    assert last < 0.8 * first


def center_head(*tasks, width=16):
    return dict(
        type='BEVCenterHead', in_channels=width, share_conv_channel=16,
        tasks=[dict(num_class=len(names), class_names=list(names)) for names in tasks],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(type='CenterPointBBoxCoder', pc_range=RANGE, post_center_range=[-12, -12, -10, 12, 12, 10],
                        max_num=20, score_threshold=0.1, out_size_factor=8, voxel_size=[0.15, 0.15], code_size=9),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        train_cfg=dict(point_cloud_range=RANGE, grid_size=[128, 128, 1], voxel_size=[0.15, 0.15, 8], out_size_factor=8,
                       dense_reg=1, gaussian_overlap=0.1, max_objs=20, min_radius=2, code_weights=[1.0] * 10),
        test_cfg=dict(post_center_limit_range=[-12, -12, -10, 12, 12, 10], max_per_img=20, score_threshold=0.1,
                      out_size_factor=8, voxel_size=[0.15, 0.15], nms_type='rotate', pre_max_size=100, post_max_size=20,
                      nms_thr=0.2),
    )  # fmt: skip


def test_camera_detection_with_center_head():
    """Targets and predictions of the plane's two axes belong together: the head that is told the truth finds it."""
    model = MODELS.build(tiny(lidar=False, maps=False, bbox_head=center_head(['car'])))
    boxes = torch.tensor([[5.3, -2.2, -1.0, 4.0, 2.0, 1.5, 0.4, 1.0, 0.0]])
    truth = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.zeros(1, dtype=torch.int64))
    heatmaps, _, _, _ = model.bbox_head.get_targets([truth])
    row, column = divmod(int(heatmaps[0][0, 0].argmax()), 16)  # (y, x)
    assert (column, row) == (int((5.3 + 9.6) / 1.2), int((-2.2 + 9.6) / 1.2))
    # what the layers would have to say at (x, y) of the plane
    x, y = column, row
    said = {name: torch.zeros(1, channels, 16, 16) for name, channels in
            (('reg', 2), ('height', 1), ('dim', 3), ('rot', 2), ('vel', 2))}  # fmt: skip
    said['heatmap'] = torch.full((1, 1, 16, 16), -9.0)
    said['heatmap'][0, 0, x, y] = 9.0
    said['reg'][0, :, x, y] = torch.tensor([(5.3 + 9.6) / 1.2 - x, (-2.2 + 9.6) / 1.2 - y])
    said['height'][0, 0, x, y] = -1.0 + 0.75
    said['dim'][0, :, x, y] = boxes[0, 3:6].log()
    said['rot'][0, :, x, y] = torch.tensor([math.sin(0.4), math.cos(0.4)])
    said['vel'][0, 0, x, y] = 1.0
    model.bbox_head.forward = lambda feats: ([said],)
    maps = model._centre_maps([None])
    (found,) = model.bbox_head.predict_by_feat(maps, [dict(box_type_3d=LiDARInstance3DBoxes)])
    assert len(found) == 1
    torch.testing.assert_close(found.bboxes_3d.tensor, boxes, rtol=1e-3, atol=1e-3)
