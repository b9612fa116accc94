"""BEVFusion: cameras and LiDAR on one bird's-eye plane, for detection and map segmentation."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...errors import ConfigError, DataError
from ...models.backbones.sparse_encoder import grid_shape
from ...ops import hard_voxelize, voxelize

_DECODER = r'^(bbox_head\.decoder\.\d+\.)'
#: names of MIT's checkpoints -> names here, as ``load_from.key_map``
MIT_KEY_MAP = [
    'encoders.camera.backbone -> img_backbone',
    'encoders.camera.neck -> img_neck',
    'encoders.camera.vtransform -> view_transform',
    'encoders.lidar.backbone -> pts_middle_encoder',
    'fuser -> fusion_layer',
    'decoder.backbone -> pts_backbone',
    'decoder.neck -> pts_neck',
    'heads.object -> bbox_head',
    'heads.map -> map_head',
    'vtransform -> view_transform',  # mmdet3d's own first conversion
    dict(regex=_DECODER + r'self_attn\.(?!attn\.)', to=r'\1self_attn.attn.'),
    dict(regex=_DECODER + r'multihead_attn\.', to=r'\1cross_attn.attn.'),
    dict(regex=_DECODER + r'linear1\.', to=r'\1ffn.layers.0.0.'),
    dict(regex=_DECODER + r'linear2\.', to=r'\1ffn.layers.1.'),
    dict(regex=_DECODER + r'norm1\.', to=r'\1norms.0.'),
    dict(regex=_DECODER + r'norm2\.', to=r'\1norms.1.'),
    dict(regex=_DECODER + r'norm3\.', to=r'\1norms.2.'),
]


@MODELS.register_module()
class BEVFusion(Base3DDetector):
    """Detection and map segmentation from cameras, LiDAR, or both.

    Source: Z. Liu et al., "BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View Representation", ICRA
    2023. Modules and parameters have the names of mmdet3d's ``projects/BEVFusion``.

    Args:
        data_preprocessor: ``Det3DDataPreprocessor`` with ``voxelize_cfg``: ``point_cloud_range``, ``voxel_size``
            (metres), ``max_num_points`` a voxel (-1: all), ``max_voxels`` (training, testing), ``voxelize_reduce``
            (True: the mean of a voxel's points; False: all of them, for ``pts_voxel_encoder``).
        img_backbone, img_neck, view_transform: the camera branch; None: no cameras.
        pts_voxel_encoder: used where ``voxelize_reduce`` is False (mmdet3d's ``PillarFeatureNet``, with
            ``legacy=False``), else accepted and not built.
        pts_middle_encoder: the LiDAR branch, ``BEVFusionSparseEncoder`` or ``PillarScatter``; None: no LiDAR (points
            may still give depth images).
        fusion_layer: joins the planes [camera, LiDAR]; needed with both branches.
        pts_backbone, pts_neck: the decoder on the plane, shared by the heads.
        decoders: {'object': dict(backbone, neck), 'map': dict(backbone, neck)}: one decoder a task instead.
        bbox_head: detection: ``TransFusionHead``, or mmdet3d's ``CenterHead``.
        map_head: ``BEVSegmentationHead``; ``seg_head`` is another name of it.
        loss_scale: {'object': a, 'map': b}.
        depth_supervision: {'min_depth', 'max_depth'} in metres of the LiDAR depths that supervise a depth-aware view
            transform.

    Grid fields that head, sparse encoder and view transform leave out are taken from ``voxelize_cfg``; those that they
    give must agree with it.

    ``inputs``: ``imgs`` (B, N, 3, H, W), ``points`` list of (P, 5): x, y, z in metres, intensity, age in seconds, LiDAR
    frame after augmentation. Meta information of a sample: ``lidar2img``, ``cam2img``, ``cam2lidar``,
    ``img_aug_matrix`` (N, 4, 4), ``lidar_aug_matrix`` (4, 4); ``cam2ego`` for the depth-aware transforms. The number of
    cameras is free.

    Losses: with one head the head's own names; with both ``loss/object/...``, ``loss/map/...`` and
    ``stats/object/...``. Predictions: ``pred_instances_3d``; ``pred_masks_bev.probs`` (classes, X, Y).
    """

    #: where names of a checkpoint are MIT's, they are understood; see ``engine.partial_load``
    checkpoint_key_map = MIT_KEY_MAP
    #: names in configs
    module_aliases = {
        'encoders.lidar': ('pts_voxel_encoder', 'pts_middle_encoder'),
        'decoder': ('pts_backbone', 'pts_neck', 'decoders'),
        'decoder.backbone': ('pts_backbone',),
        'decoder.neck': ('pts_neck',),
        'heads': ('bbox_head', 'map_head'),
    }

    #: timed by tools/benchmarks/model.py beside the modules; what published times leave out is in
    stage_methods = (
        'voxelize',
        'occforge.models.sparse:find_neighbours',
        'view_transform.sparse_depth',
        'view_transform.get_geometry',
        'view_transform.cell_indices',
        'bbox_head.get_targets',
    )

    def __init__(
        self,
        data_preprocessor: dict | None = None,
        pts_voxel_encoder: dict | None = None,
        pts_middle_encoder: dict | None = None,
        fusion_layer: dict | None = None,
        img_backbone: dict | None = None,
        pts_backbone: dict | None = None,
        view_transform: dict | None = None,
        img_neck: dict | None = None,
        pts_neck: dict | None = None,
        bbox_head: dict | None = None,
        map_head: dict | None = None,
        seg_head: dict | None = None,
        decoders: dict | None = None,
        loss_scale: dict | None = None,
        depth_supervision: dict | None = None,
        init_cfg=None,
        **kwargs,
    ):
        data_preprocessor = dict(copy.deepcopy(data_preprocessor or dict(type='Det3DDataPreprocessor')))
        voxelize_cfg = data_preprocessor.pop('voxelize_cfg', None)
        super().__init__(data_preprocessor=MODELS.build(data_preprocessor), init_cfg=init_cfg, **kwargs)
        if map_head is not None and seg_head is not None:
            raise ConfigError('BEVFusion: map_head and seg_head are two names of one thing, give one')
        map_head = map_head if map_head is not None else seg_head
        if bbox_head is None and map_head is None:
            raise ConfigError('BEVFusion needs a bbox_head, a map_head, or both')
        if (view_transform is None) != (img_backbone is None):
            raise ConfigError('BEVFusion: a camera branch needs img_backbone and view_transform')
        both = view_transform is not None and pts_middle_encoder is not None
        if view_transform is None and pts_middle_encoder is None:
            raise ConfigError('BEVFusion needs a camera branch, a LiDAR branch, or both')
        if both != (fusion_layer is not None):
            raise ConfigError(
                f'BEVFusion: fusion_layer is {"missing" if both else "given"}, it is for models with a camera and a '
                'LiDAR branch'
            )
        if pts_middle_encoder is not None and voxelize_cfg is None:
            raise ConfigError('BEVFusion: a LiDAR branch needs data_preprocessor.voxelize_cfg')
        self.voxelize_cfg = None if voxelize_cfg is None else _voxelize_cfg(voxelize_cfg)
        if self.voxelize_cfg is not None:
            configs = (pts_middle_encoder, view_transform, bbox_head, map_head)
            pts_middle_encoder, view_transform, bbox_head, map_head = complete_grid(self.voxelize_cfg, *configs)
        reduces = self.voxelize_cfg is None or self.voxelize_cfg['voxelize_reduce']
        self.pts_voxel_encoder = None if reduces else _build(pts_voxel_encoder)
        self.img_backbone, self.img_neck = _build(img_backbone), _build(img_neck)
        self.view_transform = _build(view_transform)
        self.pts_middle_encoder = _build(pts_middle_encoder)
        self.fusion_layer = _build(fusion_layer)
        self.pts_backbone, self.pts_neck = _build(pts_backbone), _build(pts_neck)
        self.decoders = None
        if decoders is not None:
            heads = {name for name, head in (('object', bbox_head), ('map', map_head)) if head is not None}
            if pts_backbone is not None or pts_neck is not None or set(decoders) != heads:
                raise ConfigError(
                    f'BEVFusion.decoders has {sorted(decoders)}, expected one for each of {sorted(heads)} and no '
                    'pts_backbone or pts_neck beside them'
                )
            self.decoders = nn.ModuleDict(
                {
                    name: nn.ModuleDict({part: MODELS.build(cfg) for part, cfg in parts.items()})
                    for name, parts in decoders.items()
                }
            )
        self.bbox_head, self.map_head = _build(bbox_head), _build(map_head)
        self.loss_scale = dict(object=1.0, map=1.0)
        unknown = set(loss_scale or {}) - set(self.loss_scale)
        if unknown:
            raise ConfigError(f"BEVFusion.loss_scale has {sorted(unknown)}, expected 'object' and 'map'")
        self.loss_scale.update(loss_scale or {})
        self.depth_supervision = dict(min_depth=0.1, max_depth=float('inf'), **(depth_supervision or {}))
        self._check_planes()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Object classes in the head's order, where it knows them."""
        names = getattr(self.bbox_head, 'class_names', None)
        if names and not isinstance(names[0], str):  # CenterHead's, task by task
            names = [name for task in names for name in task]
        return None if names is None else tuple(names)

    @property
    def class_axes(self) -> dict[str, Any]:
        """Which axis of which tensor holds class rows; the map's classes have their own names."""
        axes = {}
        for name, axis in getattr(self.bbox_head, 'class_axes', {}).items():
            axes[f'bbox_head.{name}'] = axis
        for name, axis in getattr(self.map_head, 'class_axes', {}).items():
            axes[f'map_head.{name}'] = dict(axis=axis, meta='map_classes', target=self.map_head.classes)
        return axes

    def _check_planes(self) -> None:
        camera, voxels = self.view_transform, self.voxelize_cfg
        shape = getattr(self.pts_middle_encoder, 'sparse_shape', None)
        if camera is None or shape is None or not hasattr(camera, 'grid_size'):
            return
        down = getattr(camera, 'downsample_factor', None) or (2 if len(list(camera.downsample.children())) else 1)
        cells = tuple(n // down for n in camera.grid_size[:2])
        strides = sum(1 for name, _ in self.pts_middle_encoder.encoder_layers.named_children()) - 1
        expected = shape[0] // 2**strides, shape[1] // 2**strides
        if cells != expected:
            raise ConfigError(
                f'BEVFusion: the planes differ: camera {cells} cells (xbound, ybound, downsample), LiDAR {expected} '
                f'(range {list(voxels["point_cloud_range"])} by voxels of {list(voxels["voxel_size"])} m, over '
                f'{2**strides})'
            )

    def init_weights(self) -> None:
        """Only the image backbone has weights to fetch; all else is initialised when it is built."""
        if self.img_backbone is not None:
            self.img_backbone.init_weights()

    # ------------------------------------------------------------------ branches

    @torch.no_grad()
    def voxelize(self, points: Sequence[Tensor]):
        """Voxels of a batch, as ``ops.hard_voxelize`` returns them, in float32."""
        cfg = self.voxelize_cfg
        lengths = torch.tensor([len(cloud) for cloud in points], device=points[0].device)
        batch = torch.arange(len(points), device=lengths.device).repeat_interleave(lengths)
        cloud = torch.cat(list(points)).float()
        grid = cfg['point_cloud_range'][:3], cfg['voxel_size'], cfg['grid_size']
        if cfg['max_num_points'] <= 0:
            return voxelize(cloud, batch, *grid, reduce=cfg['dynamic_reduce'])
        limit = cfg['max_voxels'][0 if self.training else 1]
        reduce = 'mean' if cfg['voxelize_reduce'] else 'none'
        return hard_voxelize(cloud, batch, *grid, cfg['max_num_points'], limit if limit > 0 else None, reduce)

    def extract_pts_feat(self, points: Sequence[Tensor]) -> Tensor:
        """List of B (P, C) to the LiDAR's plane (B, C', X, Y)."""
        with torch.autocast(points[0].device.type, enabled=False):
            voxels = self.voxelize(points)
            features = voxels.features
            if self.pts_voxel_encoder is not None:  # mmdet3d's encoders expect rows (sample, z, y, x)
                features = self.pts_voxel_encoder(features, voxels.counts, voxels.coords[:, [0, 3, 2, 1]])
            return self.pts_middle_encoder(features, voxels.coords, len(points))

    def extract_img_feat(self, imgs: Tensor, points, matrices: Mapping[str, Tensor], gt_depths=None):
        """Images (B, N, 3, H, W) to the cameras' plane, and with ``gt_depths`` the loss of the depth."""
        features = self.img_backbone(imgs.flatten(0, 1))
        if self.img_neck is not None:
            features = self.img_neck(features)
        if isinstance(features, (list, tuple)):
            features = features[0]
        features = features.unflatten(0, imgs.shape[:2])
        extra = {}
        if self.view_transform.supervises_depth:
            extra = dict(camera2ego=matrices['cam2ego'], gt_depths=gt_depths)
        return self.view_transform(
            features,
            points,
            matrices['lidar2img'],
            matrices['cam2img'],
            matrices['cam2lidar'],
            matrices['img_aug_matrix'],
            matrices['lidar_aug_matrix'],
            **extra,
        )

    def matrices(self, metas: Sequence[Mapping], device) -> dict[str, Tensor]:
        """The samples' matrices as float32 tensors (B, N, 4, 4), ``lidar_aug_matrix`` (B, 4, 4)."""
        names = ['lidar2img', 'cam2img', 'cam2lidar', 'img_aug_matrix', 'lidar_aug_matrix']
        if self.view_transform.supervises_depth:
            names.append('cam2ego')
        found = {}
        for name in names:
            each = []
            for meta in metas:
                value = meta.get(name)
                if value is None and name == 'lidar_aug_matrix':
                    value = torch.eye(4)
                elif value is None and name == 'img_aug_matrix':
                    value = torch.eye(4).repeat(len(meta['cam2img']), 1, 1)
                elif value is None and name == 'cam2lidar' and meta.get('lidar2cam') is not None:
                    value = torch.linalg.inv(_stack(meta['lidar2cam']).double())
                elif value is None:
                    raise DataError(f'sample {meta.get("sample_idx")}: meta information {name!r} is missing')
                each.append(_stack(value).float())
            found[name] = torch.stack(each).to(device)
        return found

    def extract_feat(self, batch_inputs_dict: Mapping, batch_input_metas: Sequence[Mapping], supervise=False):
        """The fused plane (B, C, X, Y) and, with ``supervise``, a dict of losses of the branches."""
        imgs, points = batch_inputs_dict.get('imgs'), batch_inputs_dict.get('points')
        planes, losses = [], {}
        if self.view_transform is not None:
            if imgs is None:
                raise DataError("BEVFusion: its camera branch needs 'imgs'")
            if points is None and (self.view_transform.uses_points or supervise):
                raise DataError(f"BEVFusion: {type(self.view_transform).__name__} needs 'points'")
            matrices = self.matrices(batch_input_metas, imgs.device)
            gt_depths = None
            if supervise and self.view_transform.supervises_depth:
                gt_depths = self.gt_depths(points, matrices)
            plane = self.extract_img_feat(imgs, points, matrices, gt_depths)
            if gt_depths is not None:
                plane, losses['loss/depth'] = plane
            planes.append(plane)
        if self.pts_middle_encoder is not None:
            if points is None:
                raise DataError("BEVFusion: its LiDAR branch needs 'points'")
            planes.append(self.extract_pts_feat(points))
        plane = planes[0] if self.fusion_layer is None else self.fusion_layer(planes)
        return (plane, losses) if supervise else plane

    def gt_depths(self, points, matrices) -> Tensor:
        """(B, N, H, W) depths of the key frame's points (age 0), 0 = none."""
        key = [cloud[cloud[:, 4] == 0] if cloud.shape[1] > 4 else cloud for cloud in points]
        depth = self.view_transform.sparse_depth(
            key, matrices['lidar2img'], matrices['img_aug_matrix'], matrices['lidar_aug_matrix']
        ).squeeze(2)
        limits = self.depth_supervision
        return torch.where((depth >= limits['min_depth']) & (depth <= limits['max_depth']), depth, 0.0)

    def decode(self, plane: Tensor, task: str):
        """The decoder's planes for a task, 'object' or 'map'; a list, as heads expect."""
        if self.decoders is not None:
            parts = self.decoders[task]
            backbone, neck = parts['backbone'], parts['neck'] if 'neck' in parts else None
        else:
            backbone, neck = self.pts_backbone, self.pts_neck
        x = plane if backbone is None else backbone(plane)
        x = x if neck is None else neck(x)
        return list(x) if isinstance(x, (list, tuple)) else [x]

    def planes(self, plane: Tensor) -> dict[str, list[Tensor]]:
        """The decoded planes of the heads that there are; a shared decoder runs once."""
        tasks = [name for name, head in (('object', self.bbox_head), ('map', self.map_head)) if head is not None]
        if self.decoders is None:
            shared = self.decode(plane, tasks[0])
            return {task: shared for task in tasks}
        return {task: self.decode(plane, task) for task in tasks}

    # ------------------------------------------------------------------ losses and predictions

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs) -> dict[str, Tensor]:
        metas = [sample.metainfo for sample in batch_data_samples]
        plane, losses = self.extract_feat(batch_inputs_dict, metas, supervise=True)
        planes = self.planes(plane)
        named = self.bbox_head is not None and self.map_head is not None
        if self.bbox_head is not None:
            for name, value in self._object_loss(planes['object'], batch_data_samples).items():
                if 'loss' in name:
                    value = value * self.loss_scale['object']
                    losses[f'loss/object/{name}' if named else name] = value
                else:
                    losses[f'stats/object/{name}' if named else name] = value
        if self.map_head is not None:
            logits = self.map_head(planes['map'])
            for name, value in self.map_head.loss(logits, *self._map_targets(batch_data_samples, logits)).items():
                losses[f'loss/map/{name}'] = value * self.loss_scale['map']
        return losses

    def _object_loss(self, feats, samples):
        if hasattr(self.bbox_head, 'task_heads'):
            truths = [sample.gt_instances_3d for sample in samples]
            return self.bbox_head.loss_by_feat(self._centre_maps(feats), truths)
        return self.bbox_head.loss(feats, samples)

    def _centre_maps(self, feats):
        """CenterHead's outputs with axes (y, x), as its losses and decoding have them; its layers see (x, y)."""
        return tuple(
            [{k: v.mT.contiguous() for k, v in task.items()} for task in level] for level in self.bbox_head(feats)
        )

    def _map_targets(self, samples, logits):
        target = torch.zeros_like(logits)
        labelled = torch.zeros(len(samples), dtype=torch.bool)
        for index, sample in enumerate(samples):
            masks = sample.get('gt_masks_bev', None)
            if masks is None:
                continue
            masks = masks.masks
            if masks.shape != logits.shape[1:]:
                raise DataError(
                    f'sample {sample.metainfo.get("sample_idx")}: gt_masks_bev is {tuple(masks.shape)}, the map head '
                    f'gives (classes, X, Y) = {tuple(logits.shape[1:])}'
                )
            target[index] = masks.to(logits)
            labelled[index] = True
        return target, labelled

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_instances_3d`` and ``pred_masks_bev`` to each data sample."""
        metas = [sample.metainfo for sample in batch_data_samples]
        planes = self.planes(self.extract_feat(batch_inputs_dict, metas))
        instances = None
        if self.bbox_head is not None:
            feats = planes['object']
            if hasattr(self.bbox_head, 'task_heads'):
                instances = self.bbox_head.predict_by_feat(self._centre_maps(feats), metas)
            else:
                instances = self.bbox_head.predict(feats, metas)
        if instances is not None:
            self.add_pred_to_datasample(batch_data_samples, instances)
        if self.map_head is not None:
            for sample, probs in zip(batch_data_samples, self.map_head.predict(self.map_head(planes['map']))):
                sample.pred_masks_bev = BaseDataElement(probs=probs)
        return batch_data_samples

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """Raw outputs of the heads: {'object': ..., 'map': logits}."""
        metas = [sample.metainfo for sample in batch_data_samples or []]
        planes = self.planes(self.extract_feat(batch_inputs_dict, metas))
        outputs = {}
        if self.bbox_head is not None:
            centre = hasattr(self.bbox_head, 'task_heads')
            outputs['object'] = (self._centre_maps if centre else self.bbox_head)(planes['object'])
        if self.map_head is not None:
            outputs['map'] = self.map_head(planes['map'])
        return outputs


# ---------------------------------------------------------------------------------------------------------- building
def _build(cfg: dict | None) -> nn.Module | None:
    return None if cfg is None else MODELS.build(cfg)


def _stack(value) -> Tensor:
    """A tensor of matrices given as tensor, array or list; 3x3 ones padded to 4x4."""
    if isinstance(value, (list, tuple)):
        value = torch.stack([torch.as_tensor(each) for each in value])
    value = torch.as_tensor(value)
    if value.shape[-2:] == (3, 3):
        padded = torch.eye(4, dtype=value.dtype, device=value.device).repeat(*value.shape[:-2], 1, 1)
        padded[..., :3, :3] = value
        value = padded
    return value


def _voxelize_cfg(cfg: Mapping) -> dict:
    cfg = dict(cfg)
    unknown = set(cfg) - {
        'point_cloud_range', 'voxel_size', 'max_num_points', 'max_voxels', 'voxelize_reduce', 'dynamic_reduce'
    }  # fmt: skip
    if unknown or not {'point_cloud_range', 'voxel_size'} <= set(cfg):
        raise ConfigError(
            f'BEVFusion: voxelize_cfg has {sorted(cfg)}, expected point_cloud_range, voxel_size, max_num_points, '
            'max_voxels, voxelize_reduce'
        )
    cfg.setdefault('max_num_points', 10)
    cfg.setdefault('max_voxels', (120000, 160000))
    cfg.setdefault('voxelize_reduce', True)
    cfg.setdefault('dynamic_reduce', 'mean')
    if not isinstance(cfg['max_voxels'], Sequence):
        cfg['max_voxels'] = (cfg['max_voxels'],) * 2
    try:
        cfg['grid_size'] = grid_shape(cfg['point_cloud_range'], cfg['voxel_size'])
    except ValueError as error:
        raise ConfigError(f'BEVFusion: voxelize_cfg: {error}') from error
    return cfg


def _expect_dict(cfg, where: str) -> None:
    if cfg is not None and not isinstance(cfg, Mapping):
        raise ConfigError(f'BEVFusion: {where} is {cfg!r}, expected a dict')


def complete_grid(voxelize_cfg: Mapping, encoder, camera, bbox_head, map_head) -> tuple:
    """Copies of the configs in which grid fields that were left out are filled from ``voxelize_cfg``.

    Raises:
        ConfigError: a field that is given says something else.
    """
    bounds, size = list(voxelize_cfg['point_cloud_range']), list(voxelize_cfg['voxel_size'])
    x, y, z = voxelize_cfg['grid_size']
    encoder, camera, bbox_head, map_head = (copy.deepcopy(cfg) for cfg in (encoder, camera, bbox_head, map_head))

    def settle(cfg, name, value, where):
        if cfg is None:
            return
        if cfg.get(name) is None:
            cfg[name] = value
            return
        given = list(cfg[name]) if isinstance(cfg[name], Sequence) else cfg[name]
        expected = value[: len(given)] if isinstance(value, list) else value
        same = len(given) == len(expected) and all(abs(a - b) < 1e-6 for a, b in zip(given, expected))
        if not same:
            raise ConfigError(
                f'BEVFusion: {where}.{name} is {given}, voxelize_cfg (range {bounds}, voxels of {size} m) says {value}'
            )

    parts = dict(pts_middle_encoder=encoder, view_transform=camera, bbox_head=bbox_head, map_head=map_head)
    nested = dict(bbox_head=('train_cfg', 'test_cfg', 'bbox_coder'), map_head=('grid_transform',))
    for where, cfg in parts.items():
        _expect_dict(cfg, where)
        for name in nested.get(where, ()) if cfg is not None else ():
            _expect_dict(cfg.get(name), f'{where}.{name}')
    sparse = encoder is not None and encoder.get('type') == 'BEVFusionSparseEncoder'
    if sparse:
        # one more level along z, as in SECOND
        settle(encoder, 'sparse_shape', [x, y, z + 1], 'pts_middle_encoder')
    elif encoder is not None and encoder.get('type') == 'PillarScatter':
        settle(encoder, 'output_shape', [x, y], 'pts_middle_encoder')
    if bbox_head is not None and bbox_head.get('type') == 'TransFusionHead':
        for part in ('train_cfg', 'test_cfg', 'bbox_coder'):
            cfg = bbox_head.get(part)
            if cfg is None:
                continue
            where = f'bbox_head.{part}'
            if part == 'bbox_coder':
                settle(cfg, 'pc_range', bounds, where)
            else:
                settle(cfg, 'grid_size', [x, y, z + 1], where)
            if part == 'train_cfg':
                settle(cfg, 'point_cloud_range', bounds, where)
            if part == 'test_cfg' and cfg.get('pc_range') is not None:
                settle(cfg, 'pc_range', bounds, where)
            settle(cfg, 'voxel_size', size, where)
            if cfg.get('out_size_factor') is None:
                cfg['out_size_factor'] = 8
    if camera is not None and sparse:
        factor = 8 / camera.get('downsample', 1)
        for axis, name in enumerate(('xbound', 'ybound')):
            expected = [bounds[axis], bounds[axis + 3], round(size[axis] * factor, 6)]
            settle(camera, name, expected, 'view_transform')
    if map_head is not None and map_head.get('grid_transform') is not None:
        transform = map_head['grid_transform']
        if transform.get('input_scope') is None:
            transform['input_scope'] = [[bounds[a], bounds[a + 3], round(size[a] * 8, 6)] for a in (0, 1)]
    return encoder, camera, bbox_head, map_head
