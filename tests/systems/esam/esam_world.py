"""Small ESAM models and frames."""

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, PointData
from mmengine.structures import InstanceData
from occforge.datasets.rgbd import sample_frame
from occforge.datasets.transforms.scannet import (
    INTRINSICS,
    contiguous_instances,
    instance_labels,
    project,
    superpoint_masks,
)

CLASSES = 6
BACKBONE = dict(type='Res16UNet34C', planes=[4, 4, 6, 8, 8, 6, 6, 8], init_dim=4, layers=[1] * 8)
CLIP = dict(type='ClipConv1', width=16)


def model_config(kind='ScanNet200MixFormer3D', bi_fusion=False, **changes):
    """A model of a few thousand parameters."""
    cfg = dict(
        type=kind,
        voxel_size=0.05,
        num_classes=1,
        query_thr=1.0,
        backbone=BACKBONE,
        pool=dict(type='GeoAwarePooling', channel_proj=8),
        decoder=dict(
            type='ScanNetMixQueryDecoder', in_channels=8, d_model=16, num_heads=2, hidden_dim=24,
            num_instance_classes=1, num_semantic_classes=CLASSES,
        ),
        criterion=dict(
            type='ScanNetMixedCriterion',
            num_semantic_classes=CLASSES,
            sem_criterion=dict(type='ScanNetSemanticCriterion', ignore_index=CLASSES, loss_weight=0.5),
            inst_criterion=dict(
                type='MixedInstanceCriterion',
                matcher=dict(
                    type='SparseMatcher',
                    costs=[
                        dict(type='QueryClassificationCost', weight=0.5),
                        dict(type='MaskBCECost', weight=1.0),
                        dict(type='MaskDiceCost', weight=1.0),
                    ],
                ),
            ),
        ),
        test_cfg=dict(topk_insts=10, npoint_thr=3, inst_score_thr=0.0),
        data_preprocessor=dict(type='Det3DDataPreprocessor_'),
    )  # fmt: skip
    if kind.endswith('Online'):
        cfg.update(
            memory=dict(type='MultilevelMemory', in_channels=[4, 4, 6, 8]),
            merge_head=dict(type='MergeHead', in_channels=16, out_channels=16, norm='layer'),
            merge_criterion=dict(type='ScanNetMergeCriterion_Fast'),
        )
    if bi_fusion:
        cfg.update(
            backbone=None,
            bi_encoder=dict(
                type='BiFusionEncoder',
                backbone3d=BACKBONE,
                backbone2d=CLIP,
                conv_reduce=dict(type='ConvModule', in_channels=4, out_channels=8, kernel_size=1),
                out_channels=8,
                voxel_size=0.05,
            ),
        )
    cfg.update(changes)
    return cfg


def view(number=0, height=480, width=640):
    """RGB (H, W, 3), depth (H, W) in mm, pose and masks of a wall with three coloured things in front of it."""
    rng = np.random.default_rng(number)
    v, u = np.indices((height, width))
    depth = np.full((height, width), 3000.0)
    ids = np.zeros((height, width), np.int64)
    rgb = np.full((height, width, 3), 120.0)
    for i in range(3):
        cu, cv = rng.uniform(100, 540), rng.uniform(100, 380)
        inside = (np.abs(u - cu) < 70) & (np.abs(v - cv) < 60)
        depth[inside], ids[inside], rgb[inside] = 1800 + 200 * i, i + 1, rng.uniform(0, 255, 3)
    rgb = (rgb + rng.normal(0, 5, rgb.shape)).clip(0, 255).astype(np.uint8)
    pose = np.array([[1.0, 0, 0, 0.1 * number], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    return rgb, depth, pose, ids + 1


def frame(number=0, points=600):
    """Inputs and data sample of one frame, with everything that Bi-Fusion takes."""
    rgb, depth, pose, ids = view(number)
    data = sample_frame(rgb, depth, pose, INTRINSICS['scannet'], ids, points, rng=np.random.default_rng(number))
    u, v = data['pixels'].T
    semantic = ids[v, u] - 1
    instance, found = contiguous_instances(semantic, semantic, CLASSES, [0, 1])
    inputs = dict(
        points=torch.from_numpy(np.concatenate([data['points'][:, :3], data['points'][:, 3:] / 128 - 1], 1)).float(),
        clip_uv=torch.from_numpy(project(data['points'][:, :3], pose, INTRINSICS['scannet'])),
        img=torch.from_numpy(rgb.transpose(2, 0, 1).copy()),
    )
    sample = Det3DDataSample()
    sample.gt_pts_seg = PointData(
        pts_instance_mask=torch.from_numpy(instance), sp_pts_mask=torch.from_numpy(data['superpoints'])
    )
    sample.gt_instances_3d = InstanceData(
        labels_3d=torch.from_numpy(instance_labels(instance, semantic, len(found), CLASSES, 2)),
        sp_masks=torch.from_numpy(superpoint_masks(instance, semantic, data['superpoints'], len(found), CLASSES)),
    )
    return inputs, sample


def batch(numbers=(0, 1)):
    """A batch of single frames."""
    inputs, samples = zip(*(frame(number) for number in numbers))
    return {name: [each[name] for each in inputs] for name in inputs[0]}, list(samples)


def scene(numbers=(0, 1, 2)):
    """One scene of frames, as a batch."""
    inputs, samples = batch(numbers)
    sample = Det3DDataSample()
    sample.gt_pts_seg = PointData(
        pts_instance_mask=torch.stack([s.gt_pts_seg.pts_instance_mask for s in samples]),
        sp_pts_mask=torch.stack([s.gt_pts_seg.sp_pts_mask for s in samples]),
    )
    sample.gt_instances_3d = InstanceData(
        labels_3d=[s.gt_instances_3d.labels_3d for s in samples],
        sp_masks=[s.gt_instances_3d.sp_masks for s in samples],
    )
    return {name: [torch.stack(values)] for name, values in inputs.items()}, [sample]
