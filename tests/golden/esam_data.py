"""ESAM's data side and its detectors end to end against the reference implementation's outputs."""

import numpy as np
import torch
from cases import assert_close, config, parameters, tensor
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, PointData
from mmengine.structures import InstanceData
from occforge.datasets.rgbd import backproject, denoise_instances
from occforge.datasets.transforms import (
    AddSuperPointAnnotations,
    AddSuperPointAnnotations_Online,
    ElasticTransfrom,
    Pack3DDetInputs_,
)
from occforge.datasets.transforms.scannet import instance_boxes
from occforge.evaluation.instance_metric import average_precision, scene_matches
from occforge.systems.esam import ClipConv1


def check_add_superpoint_annotations(npz):
    transform = AddSuperPointAnnotations(**config(npz, 'cfg_json'))
    results = transform(
        dict(
            pts_instance_mask=npz['in_instance'],
            pts_semantic_mask=npz['in_semantic'],
            sp_pts_mask=npz['in_sp'],
            eval_ann_info={},
        )
    )
    assert np.array_equal(results['pts_instance_mask'], npz['out_instance'])
    assert np.array_equal(results['gt_labels_3d'], npz['out_labels'])
    assert np.array_equal(results['gt_sp_masks'], npz['out_sp_masks'])
    assert np.array_equal(results['eval_ann_info']['pts_instance_mask'], npz['out_eval_instance'])


def check_add_superpoint_annotations_online(npz):
    cfg = config(npz, 'cfg_json')
    names = ('num_classes', 'stuff_classes', 'merge_non_stuff_cls', 'with_rec')
    results = AddSuperPointAnnotations_Online(**{name: cfg[name] for name in names})(
        dict(
            pts_instance_mask=npz['in_instance'],
            pts_semantic_mask=npz['in_semantic'],
            sp_pts_mask=npz['in_sp'],
            rec_instance_mask=npz['in_rec_instance'],
            rec_semantic_mask=npz['in_rec_semantic'],
            num_frames=cfg['num_frames'],
        )
    )
    assert np.array_equal(results['pts_instance_mask'], npz['out_instance'])
    assert np.array_equal(results['rec_instance_mask'], npz['out_rec_instance'])
    for t in range(cfg['num_frames']):
        assert np.array_equal(results['gt_labels_3d'][t], npz[f'out_labels_t{t}'])
        assert np.array_equal(results['gt_sp_masks'][t], npz[f'out_sp_masks_t{t}'])
    boxes = instance_boxes(npz['in_rec_xyz'], results['rec_original_instance'], results['instance_ids'])
    assert_close(boxes, npz['out_bboxes'], 'out_bboxes')


def check_elastic(npz):
    cfg = config(npz, 'cfg_json')
    np.random.seed(cfg['numpy_seed'])  # noqa: NPY002  (mmdet3d's transforms draw from it)
    transform = ElasticTransfrom(cfg['gran'], cfg['mag'], cfg['voxel_size'], cfg['p'])
    found = transform(dict(points=npz['in_xyz']))['elastic_coords']
    assert_close(found, npz['out_elastic_coords'], 'out_elastic_coords', atol=1e-3)


def check_clip_conv1(npz):
    conv = ClipConv1(width=npz['param.weight'].shape[0], normalize=False)
    conv.load_state_dict({f'conv1.{name}': value for name, value in parameters(npz, 'param.').items()})
    pix, mean = conv(tensor(npz, 'in_img')[None])
    assert_close(pix[0], npz['out_pix'], 'out_pix', atol=1e-4)
    assert_close(mean[0], npz['out_global'], 'out_global', atol=1e-4)


def _detector(npz, kind):
    cfg = config(npz, 'cfg_json')
    model = dict(cfg['model'], type=kind)
    model['backbone'] = dict(
        model['backbone'], type='Res16UNet34C', planes=cfg['planes'], init_dim=cfg['init_dim'], layers=cfg['layers']
    )
    width = model['decoder']['d_model']
    if kind.endswith('Online'):
        channels = cfg['memory_in_channels']
        levels = tuple(range(len(channels)))
        model.update(
            memory=dict(type='MultilevelMemory', in_channels=channels, vmp_layer=levels),
            merge_head=dict(
                type='MergeHead',
                in_channels=width,
                out_channels=npz['param.merge_head.net.3.weight'].shape[0],
                hidden_channels=cfg['merge_hidden'],
                norm=cfg['merge_norm'],
            ),
            merge_criterion=dict(type='ScanNetMergeCriterion_Fast'),
            use_bbox=True,
            map_to_rec_pcd=False,
        )
    model['data_preprocessor'] = dict(type='Det3DDataPreprocessor_')
    net = MODELS.build(model)
    net.load_state_dict(parameters(npz, 'param.'), strict=True)
    return net


def _samples(npz, online):
    cfg = config(npz, 'cfg_json')['model']['criterion']
    classes = cfg['num_semantic_classes']
    samples, points = [], []
    while f'in_points_{len(points)}' in npz.files:
        i = len(points)
        points.append(tensor(npz, f'in_points_{i}'))
        raw = {
            name: npz[f'in_{key}_{i}'].reshape(-1)
            for name, key in dict(
                pts_instance_mask='instance_raw', pts_semantic_mask='semantic', sp_pts_mask='sp'
            ).items()
        }
        if online:
            frames = len(points[-1])
            results = AddSuperPointAnnotations_Online(num_classes=classes)(dict(raw, num_frames=frames))
            labels = [torch.from_numpy(x) for x in results['gt_labels_3d']]
            masks = [torch.from_numpy(x) for x in results['gt_sp_masks']]
            shape = (frames, -1)
        else:
            results = AddSuperPointAnnotations(num_classes=classes)(raw)
            labels, masks = torch.from_numpy(results['gt_labels_3d']), torch.from_numpy(results['gt_sp_masks'])
            shape = (-1,)
        sample = Det3DDataSample()
        sample.gt_instances_3d = InstanceData(labels_3d=labels, sp_masks=masks)
        if online:
            sample.gt_instances_3d.bboxes_3d = [tensor(npz, f'in_bboxes_{i}') for _ in range(frames)]
        names = ('pts_instance_mask', 'sp_pts_mask')
        sample.gt_pts_seg = PointData(**{name: torch.from_numpy(results[name]).reshape(shape) for name in names})
        samples.append(sample)
    return dict(points=points), samples


def _check_end_to_end(npz, kind):
    net = _detector(npz, kind)
    inputs, samples = _samples(npz, kind.endswith('Online'))
    for mode in ('eval', 'train'):
        net.train(mode == 'train')
        for name, value in net.loss(inputs, samples).items():
            assert_close(value, npz[f'out_{mode}_{name}'], f'{mode} {name}', rtol=1e-3, atol=1e-3)
        net.load_state_dict(parameters(npz, 'param.'), strict=True)  # the running statistics of training
    net.eval()
    with torch.no_grad():
        found = net.predict({name: values[:1] for name, values in inputs.items()}, samples[:1])[0].pred_pts_seg
    # a point whose probability is the threshold up to rounding may fall on either side
    assert (found.pts_instance_mask[0] != npz['out_pred_masks']).mean() < 5e-4
    assert np.array_equal(found.instance_labels, npz['out_pred_labels'])
    assert_close(found.instance_scores, npz['out_pred_scores'], 'scores', atol=1e-4)
    assert np.array_equal(found.pts_semantic_mask[0], npz['out_pred_sem'])
    if 'out_pred_bbox' in npz.files:
        assert_close(found.pred_bbox, npz['out_pred_bbox'], 'boxes', atol=1e-4)


def check_e2e_sv(npz):
    _check_end_to_end(npz, 'ScanNet200MixFormer3D')


def check_e2e_mv(npz):
    _check_end_to_end(npz, 'ScanNet200MixFormer3D_Online')


def check_instance_metric(npz):
    cfg = config(npz, 'cfg_json')
    ids, names = cfg['valid_class_ids'], cfg['class_names']
    scenes = sum(name.startswith('gt_semantic_') for name in npz.files)
    matches = dict(cls=[], ca=[])
    for i in range(scenes):
        semantic, raw = npz[f'gt_semantic_{i}'], npz[f'gt_instance_{i}']
        valid = np.isin(semantic, ids)
        numbers, first, instance = np.unique(np.where(valid, raw, -1), return_index=True, return_inverse=True)
        offset = int(numbers[0] == -1)
        classes = np.array([ids.index(semantic[row]) for row in first[offset:]])
        masks, labels, scores = (npz[f'pred_{name}_{i}'] for name in ('masks', 'labels', 'scores'))
        matches['cls'].append(scene_matches(i, instance - offset, classes, masks, labels, scores, names))
        matches['ca'].append(scene_matches(i, instance - offset, classes * 0, masks, labels * 0, scores, ['object']))
    for kind, labels in (('cls', names), ('ca', ['object'])):
        found = average_precision(matches[kind], labels)
        for name in ('all_ap', 'all_ap_50%', 'all_ap_25%'):
            assert_close(found[name], npz[f'out_{kind}_{name}'], f'{kind} {name}')
    found = average_precision(matches['cls'], names)['classes']
    for name, values in found.items():
        for key, value in values.items():
            expected = npz[f'out_cls_{name}_{key}']
            assert np.isnan(value) == np.isnan(expected)
            assert_close(np.nan_to_num(value), np.nan_to_num(expected), f'{name} {key}')


def check_backproject(npz):
    cfg = config(npz, 'cfg_json')
    matrix = np.array(cfg['K'])
    intrinsics = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    pose = npz['in_pose'].astype(np.float64)
    xyz = backproject(npz['in_depth'], pose, intrinsics, npz['in_u'], npz['in_v'], cfg['depth_scale'])
    assert_close(xyz, npz['out_xyz'], 'out_xyz', atol=1e-4)
    packer = Pack3DDetInputs_(keys=['depth2img'], intrinsics=intrinsics)
    packed = packer(dict(points=torch.zeros(1, 6), pose=pose))
    assert_close(packed['inputs']['depth2img'], npz['out_depth2img'], 'out_depth2img', atol=1e-3)
    found = denoise_instances(npz['out_xyz'], npz['in_instance'], npz['in_bboxes'], cfg['delta'])
    assert np.array_equal(found, npz['out_instance'])
