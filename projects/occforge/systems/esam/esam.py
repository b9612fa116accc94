"""ESAM: instances of single frames, and of scenes frame after frame."""

from dataclasses import dataclass

import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import PointData
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, DataError
from ...models.minkowski import GRID_ORIGIN, MinkBatchNorm, MinkConv, Voxelized, voxelize_points
from ...models.sparse import SparseSequential
from .criterion import InstanceTargets
from .merging import Instances, OnlineMerge, box_corners
from .postprocess import FrameInstances, check_test_cfg, frame_instances, point_semantics
from .query_decoder import Predictions

# What a pipeline may give beside the points, frame by frame in multi-view data.
FRAME_FIELDS = ('elastic_coords', 'clip_uv', 'clip_pix', 'clip_global', 'clip_mask', 'img', 'depth2img')


@dataclass
class FrameFeatures:
    """Features of a batch of frames.

    Attributes:
        points: list of (P, 3 + C), coordinates in metres in front.
        superpoints: list of (S, C).
        centers: list of (S, 3) metres.
        weights: list of (P, 1) of the points in their superpoints.
        sp: list of (P,) int64.
    """

    points: list[Tensor]
    superpoints: list[Tensor]
    centers: list[Tensor]
    weights: list[Tensor]
    sp: list[Tensor]


@MODELS.register_module()
class ScanNet200MixFormer3D(Base3DDetector):
    """Instances of single RGB-D frames from superpoints.

    Source: Xu et al., "EmbodiedSAM: Online Segment Any 3D Thing in Real Time", ICLR 2025.

    Args:
        voxel_size: metres.
        num_classes: instance classes; 1: class-agnostic.
        query_thr: in training each frame takes a random share of its superpoints as queries, at least this; 1: all.
        backbone: ``Res16UNet34C``.
        bi_encoder: ``BiFusionEncoder`` in place of ``backbone`` and ``neck`` (exactly one of the two).
        neck: on the voxels of the backbone, for instance ``TinySANeck``; None: none.
        pool: ``GeoAwarePooling``.
        decoder: ``ScanNetMixQueryDecoder``.
        criterion: ``ScanNetMixedCriterion``.
        img_backbone: accepted as None (the "FF" models have one).
        train_cfg, test_cfg: the latter: ``postprocess.frame_instances``.
        data_preprocessor, init_cfg: as in mmdet3d.

    ``inputs``: ``points`` list of (P, 6), metres and normalised colours; ``elastic_coords`` list of (P, 3) in voxels
    (optional). ``data_samples``: ``gt_pts_seg.sp_pts_mask`` (P,), and for training ``gt_pts_seg.pts_instance_mask``
    (P,), ``gt_instances_3d.labels_3d`` and ``sp_masks`` (I + semantic classes + 1 rows, of
    ``AddSuperPointAnnotations``).
    """

    def __init__(
        self,
        voxel_size: float,
        num_classes: int,
        query_thr: float,
        pool: dict,
        decoder: dict,
        criterion: dict | None = None,
        backbone: dict | None = None,
        neck: dict | None = None,
        bi_encoder: dict | None = None,
        img_backbone: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg=None,
    ):
        if isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        name = type(self).__name__
        if (backbone is None) == (bi_encoder is None):
            raise ConfigError(f'{name}: exactly one of backbone and bi_encoder is expected')
        if bi_encoder is not None and neck is not None:
            raise ConfigError(f'{name}: with bi_encoder the neck belongs into it: bi_encoder.neck3d, neck=None')
        if img_backbone is not None and not isinstance(self, _FeatureFusion):
            raise ConfigError(f'{name}.img_backbone is not supported, expected None')
        self.voxel_size, self.num_classes, self.query_thr = voxel_size, num_classes, query_thr
        self.backbone = None if backbone is None else MODELS.build(backbone)
        self.bi_encoder = None if bi_encoder is None else MODELS.build(bi_encoder)
        self.neck = None if neck is None else MODELS.build(neck)
        self.pool = MODELS.build(pool)
        self.decoder = MODELS.build(decoder)
        self.criterion = None if criterion is None else MODELS.build(criterion)
        self.memory = None
        self.train_cfg, self.test_cfg = train_cfg, dict(test_cfg or {})
        self.post = check_test_cfg(test_cfg)

    @property
    def num_semantic_classes(self) -> int:
        return self.decoder.num_semantic_classes

    # ------------------------------------------------------------------ features

    def voxelize(self, points: list[Tensor], elastic: list[Tensor] | None) -> tuple[Voxelized, list[Tensor]]:
        """Voxels of the points and the points' coordinates in metres, as the network has them."""
        xyz = [p[:, :3] if elastic is None else elastic[i].float() * self.voxel_size for i, p in enumerate(points)]
        if any(len(p) == 0 for p in points):
            raise DataError('a sample has no points')
        sample = torch.cat([torch.full((len(p),), i, device=p.device) for i, p in enumerate(points)])
        cells = torch.cat(xyz) / self.voxel_size
        return voxelize_points(cells, torch.cat([p[:, 3:] for p in points]), sample, len(points)), xyz

    def extract_feat(self, points: list[Tensor], sp: list[Tensor], extra: dict | None = None) -> FrameFeatures:
        """Features of a batch of frames.

        Args:
            points: list of (P, 6).
            sp: list of (P,) int64 superpoints, each of 0..max with a point.
            extra: the fields of ``FRAME_FIELDS`` that there are, each a list over the samples.
        """
        extra = extra or {}
        voxels, xyz = self.voxelize(points, extra.get('elastic_coords'))
        features = self._point_features(voxels, xyz, extra)
        sizes = [int(ids.max()) + 1 for ids in sp]
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0).tolist()
        joined = torch.cat([ids + offset for ids, offset in zip(sp, offsets)])
        pooled, weights = self.pool(torch.cat(features), joined, xyz, with_xyz=True, groups=sum(sizes))
        pooled = pooled.split(sizes)
        return FrameFeatures(
            points=[torch.cat([place.float(), each], 1) for place, each in zip(xyz, features)],
            superpoints=[each[:, :-3] for each in pooled],
            centers=[each[:, -3:] for each in pooled],
            weights=list(weights.split([len(p) for p in points])),
            sp=list(sp),
        )

    def _point_features(self, voxels: Voxelized, xyz: list[Tensor], extra: dict) -> list[Tensor]:
        if self.bi_encoder is not None:
            pix = extra.get('clip_pix')
            if pix is not None and 'clip_mask' in extra:
                pix = [each if bool(known) else None for each, known in zip(pix, extra['clip_mask'])]
            return self.bi_encoder(
                voxels, xyz, extra.get('clip_uv'), pix, extra.get('clip_global'), extra.get('img'), self.memory
            )
        x = self._backbone(voxels, extra)
        if self.neck is not None:
            x = self.neck(x)
        return list(x.features[voxels.inverse].float().split([len(place) for place in xyz]))

    def _backbone(self, voxels: Voxelized, extra: dict):
        return self.backbone(voxels.tensor, memory=self.memory)

    def decode(self, features: FrameFeatures, queries: list[Tensor] | None = None) -> Predictions:
        """Predictions for the superpoints ``queries`` (list of (Q,) rows; None: all, in order)."""
        chosen = features.superpoints
        if queries is not None:
            chosen = [x[rows] for x, rows in zip(chosen, queries)]
        return self.decoder(features.superpoints, features.points, chosen, features.sp, features.weights)

    # ------------------------------------------------------------------ training

    def select_queries(self, features: FrameFeatures) -> list[Tensor] | None:
        """Random superpoints of each sample, at least the share ``query_thr``; None: all."""
        if self.query_thr >= 1:
            return None
        chosen = []
        for x in features.superpoints:
            share = (1 - self.query_thr) * torch.rand(1).item() + self.query_thr
            count = min(len(x), int(-(-share * len(x) // 1)))
            chosen.append(torch.randperm(len(x))[:count].to(x.device))
        return chosen

    def targets(self, features: FrameFeatures, queries, labels, sp_masks, instance_masks, boxes=None):
        """``InstanceTargets`` of each sample; lists over the samples, ``boxes`` (I.., 7) centre, size and yaw 0."""
        tails, found = self.num_semantic_classes + 1, []
        for i, masks in enumerate(sp_masks):
            masks = masks.bool()
            if masks.shape[1] != len(features.superpoints[i]):
                raise DataError(
                    f'sp_masks has {masks.shape[1]} superpoints, the points have {len(features.superpoints[i])}'
                )
            count = len(masks) - tails
            if count < 0:
                raise DataError(f'sp_masks has {len(masks)} rows, expected at least {tails} (semantic classes and one)')
            chosen = masks if queries is None else masks[:, queries[i]]
            numbers = torch.arange(count, device=masks.device)
            label = labels[i][:count].long()
            corners = None
            if boxes is not None:
                box = boxes[i][:count].float()
                corners = torch.cat([box[:, :3] - box[:, 3:6] / 2, box[:, :3] + box[:, 3:6] / 2], 1)
            centers = features.centers[i] if queries is None else features.centers[i][queries[i]]
            found.append(
                InstanceTargets(
                    torch.zeros_like(label) if self.num_classes == 1 else label,
                    masks[:count],
                    instance_masks[i][None] == numbers[:, None],
                    chosen[:count],
                    chosen[count:].float().argmax(0),
                    corners,
                    centers,
                )
            )
        return found

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """``inst_loss``, ``seg_loss``."""
        points, extra = self._frames(batch_inputs_dict)
        features = self.extract_feat(points, [s.gt_pts_seg.sp_pts_mask.long() for s in batch_data_samples], extra)
        queries = self.select_queries(features)
        targets = self.targets(
            features,
            queries,
            [s.gt_instances_3d.labels_3d for s in batch_data_samples],
            [s.gt_instances_3d.sp_masks for s in batch_data_samples],
            [s.gt_pts_seg.pts_instance_mask for s in batch_data_samples],
        )
        return self.criterion(self.decode(features, queries), targets)

    @staticmethod
    def _frames(inputs: dict) -> tuple[list[Tensor], dict]:
        return list(inputs['points']), {
            name: list(inputs[name]) for name in FRAME_FIELDS if inputs.get(name) is not None
        }

    # ------------------------------------------------------------------ inference

    def frame_predictions(self, points, sp, extra=None):
        """One frame: its features, predictions, instances and semantic class of each point.

        Args:
            points: (P, 6).
            sp: (P,) int64.
            extra: the fields of ``FRAME_FIELDS`` that there are.
        """
        extra = {name: [value] for name, value in (extra or {}).items() if value is not None}
        features = self.extract_feat([points], [sp], extra)
        out = self.decode(features)
        scores = None if out.scores is None else out.scores[0]
        found = frame_instances(out.cls_preds[0], out.masks[0], scores, **self.post)
        return features, out, found, point_semantics(out.sem_preds[0], sp, self.num_semantic_classes)

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_pts_seg``: ``pts_instance_mask`` [bool (n, P)], ``instance_labels``, ``instance_scores`` (n,),
        ``pts_semantic_mask`` [(P,)], numpy."""
        points, extra = self._frames(batch_inputs_dict)
        for i, sample in enumerate(batch_data_samples):
            one = {name: values[i] for name, values in extra.items()}
            _, _, found, semantic = self.frame_predictions(points[i], sample.gt_pts_seg.sp_pts_mask.long(), one)
            _store(sample, found.masks, found.labels, found.scores, semantic)
        return batch_data_samples

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """The predictions for all superpoints."""
        points, extra = self._frames(batch_inputs_dict)
        sp = [s.gt_pts_seg.sp_pts_mask.long() for s in batch_data_samples]
        return self.decode(self.extract_feat(points, sp, extra))


def _store(sample, masks, labels, scores, semantic, **more) -> None:
    def plain(value):
        return value.cpu().numpy()

    sample.pred_pts_seg = PointData(
        pts_semantic_mask=[plain(semantic)],
        pts_instance_mask=[plain(masks)],
        instance_labels=plain(labels),
        instance_scores=plain(scores),
        **{name: plain(value) for name, value in more.items() if value is not None},
    )


@MODELS.register_module()
class ScanNet200MixFormer3D_Online(ScanNet200MixFormer3D):
    """Instances of a scene from its frames, one after the other.

    Source: as ``ScanNet200MixFormer3D``.

    Args:
        memory: ``MultilevelMemory``, or None.
        merge_head: ``MergeHead``.
        merge_criterion: ``ScanNetMergeCriterion_Fast``.
        use_bbox: boxes are predicted, supervised, and used in merging; False: merging by distance.
        map_to_rec_pcd: in ``predict``, bring the result to the reconstruction's points (``eval_ann_info['rec_xyz']``,
            smoothed in its segments).
        merge_type: accepted as 'learnable_online'.
        **kwargs: of ``ScanNet200MixFormer3D``.

    ``inputs``: ``points`` (T, P, 6) and ``elastic_coords`` (T, P, 3) of each sample. Masks of the data samples are
    (T, P), ``labels_3d`` and ``sp_masks`` lists over the frames with instances numbered alike in all, ``bboxes_3d``
    likewise (I, 7).
    """

    def __init__(
        self,
        *args,
        memory: dict | None = None,
        merge_head: dict | None = None,
        merge_criterion: dict | None = None,
        use_bbox: bool = False,
        map_to_rec_pcd: bool = True,
        merge_type: str = 'learnable_online',
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.memory = None if memory is None else MODELS.build(memory)
        if merge_head is None:
            raise ConfigError(f'{type(self).__name__} needs merge_head')
        self.merge_head = MODELS.build(merge_head)
        self.merge_criterion = None if merge_criterion is None else MODELS.build(merge_criterion)
        if use_bbox and self.decoder.out_reg is None:
            raise ConfigError(f'{type(self).__name__}: use_bbox=True needs decoder.bbox_flag=True')
        self.use_bbox, self.map_to_rec_pcd, self.merge_type = use_bbox, map_to_rec_pcd, merge_type

    def reset(self) -> None:
        """Forget the scene."""
        if self.memory is not None:
            self.memory.reset()

    def new_merge(self) -> OnlineMerge:
        """A merger for one scene."""
        return OnlineMerge(self.test_cfg.get('inscat_topk_insts', 100), self.use_bbox, self.merge_type)

    def open_frame_stream(self, **options):
        """An ``OnlineSegmentor`` of this model; ``options``: its arguments, default those of ``test_cfg.stream``."""
        from .stream import OnlineSegmentor

        return OnlineSegmentor(self, **{**self.test_cfg.get('stream', {}), **options})

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """``inst_loss`` and ``seg_loss`` summed over the frames, ``merge_loss_tmp``."""
        points, extra = self._frames(batch_inputs_dict)
        frames = {len(p) for p in points}
        if len(frames) != 1:
            raise DataError(f'the samples of a batch have different numbers of frames: {sorted(frames)}')
        self.reset()
        losses, features, owners = {}, [[] for _ in points], [[] for _ in points]
        for t in range(frames.pop()):
            gts = [s.gt_instances_3d for s in batch_data_samples]
            frame = self.extract_feat(
                [p[t] for p in points],
                [s.gt_pts_seg.sp_pts_mask[t].long() for s in batch_data_samples],
                {name: [value[t] for value in values] for name, values in extra.items()},
            )
            queries = self.select_queries(frame)
            targets = self.targets(
                frame,
                queries,
                [gt.labels_3d[t] for gt in gts],
                [gt.sp_masks[t] for gt in gts],
                [s.gt_pts_seg.pts_instance_mask[t] for s in batch_data_samples],
                [gt.bboxes_3d[t] for gt in gts] if self.use_bbox else None,
            )
            out = self.decode(frame, queries)
            for name, value in self.criterion(out, targets).items():
                losses[name] = losses.get(name, 0) + value
            for i, target in enumerate(targets):
                features[i].append(self.merge_head(out.queries[i]))
                owners[i].append(target.query_masks)
        self.reset()
        if self.merge_criterion is not None:
            losses.update(self.merge_criterion(features, owners))
        return losses

    def merge_frame(
        self, merge: OnlineMerge, features: FrameFeatures, out: Predictions, found: FrameInstances
    ) -> Tensor:
        """Give a frame's instances to the scene; their numbers in it, (n,) int64."""
        rows = found.query
        centers = features.centers[0][rows]
        boxes = None
        if self.use_bbox:
            boxes = box_corners(centers, out.bboxes[0][rows])
        vectors = self.merge_head(out.queries[0])[rows]
        values = (found.labels, found.scores, out.queries[0][rows], vectors, out.cls_preds[0][rows], centers, boxes)
        return merge.push(found.masks, Instances(*values))

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """As ``ScanNet200MixFormer3D``, over the points of all frames or of the reconstruction, which are ``points``
        (P, 3) metres; ``pred_bbox`` (n, 6) corners with ``use_bbox``."""
        points, extra = self._frames(batch_inputs_dict)
        for i, sample in enumerate(batch_data_samples):
            self.reset()
            merge, semantics = self.new_merge(), []
            for t in range(len(points[i])):
                one = {name: values[i][t] for name, values in extra.items()}
                sp = sample.gt_pts_seg.sp_pts_mask[t].long()
                features, out, found, semantic = self.frame_predictions(points[i][t], sp, one)
                self.merge_frame(merge, features, out, found)
                semantics.append(semantic)
            number, best = merge.best()
            masks, semantic = merge.masks(number), torch.cat(semantics)
            rec = sample.eval_ann_info.get('rec_xyz') if 'eval_ann_info' in sample else None
            xyz = points[i][:, :, :3].reshape(-1, 3)
            if self.map_to_rec_pcd and rec is not None:
                rec = torch.as_tensor(rec)
                segments = sample.eval_ann_info.get('segment_ids')
                masks, semantic = map_to_reconstruction(masks, semantic, xyz, rec, segments)
                xyz = rec[:, :3]
            _store(sample, masks, best.labels, best.scores, semantic, pred_bbox=best.boxes, points=xyz)
        self.reset()
        return batch_data_samples


def map_to_reconstruction(masks: Tensor, semantic: Tensor, xyz: Tensor, rec_xyz: Tensor, segments=None):
    """Masks and classes of the nearest frame point for each point of the reconstruction, majority in each segment.

    Args:
        masks: (n, P) bool. semantic: (P,) int64.
        xyz: (P, 3), rec_xyz: (V, 3) metres.
        segments: (V,) ids of the mesh's segments, or None.

    Returns:
        (n, V) bool and (V,) int64.
    """
    from scipy.spatial import cKDTree

    nearest = cKDTree(xyz.cpu().numpy()).query(rec_xyz[:, :3].cpu().numpy())[1]
    nearest = torch.as_tensor(nearest, device=masks.device)
    masks, semantic = masks[:, nearest], semantic[nearest]
    if segments is None:
        return masks, semantic
    segment = torch.as_tensor(segments, device=masks.device).long().unique(return_inverse=True)[1]
    size = torch.bincount(segment)
    share = torch.zeros(len(masks), len(size), device=masks.device).index_add(1, segment, masks.float()) / size
    votes = F.one_hot(semantic).float()
    votes = torch.zeros(len(size), votes.shape[1], device=masks.device).index_add(0, segment, votes)
    return (share > 0.5)[:, segment], votes.argmax(1)[segment]


class _FeatureFusion:
    """Image features of a frozen detector, added to the stem of the U-Net.

    Args:
        img_backbone: config of a module that turns images (B, 3, H, W) 0..255 into (B, 960, h, w); None: the model
            stands alone (weights load, forward needs it).
        ff_channels: of these features.
        image_size: (W, H) of ``depth2img``'s pixels.
        **kwargs: of the detector.

    ``inputs`` also has ``img`` and ``depth2img`` (4, 4), world to pixels; no elastic augmentation.
    """

    def __init__(self, *args, img_backbone=None, ff_channels: int = 960, image_size=(640, 480), **kwargs):
        super().__init__(*args, img_backbone=None, **kwargs)
        stem = self.backbone.conv0p1s1.out_channels
        self.conv = SparseSequential(MinkConv(ff_channels, stem, 1), MinkBatchNorm(stem), torch.nn.ReLU(inplace=True))
        object.__setattr__(self, 'img_backbone', None if img_backbone is None else MODELS.build(img_backbone))
        self.image_size = tuple(image_size)

    def _backbone(self, voxels: Voxelized, extra: dict):
        if self.img_backbone is None or 'img' not in extra or 'depth2img' not in extra:
            raise ConfigError(f"{type(self).__name__}: needs img_backbone, and 'img' and 'depth2img' in its inputs")
        self.img_backbone.to(voxels.tensor.features.device).eval()  # of no state dict: it moves on its own
        with torch.no_grad():
            maps = [self.img_backbone(image[None].float())[0] for image in extra['img']]

        def stem_features(stem):
            coords = stem.coords.long()
            xyz = (coords[:, 1:] - GRID_ORIGIN).float() * self.voxel_size
            sampled = stem.features.new_zeros(len(coords), maps[0].shape[0])
            for i, (feature_map, matrix) in enumerate(zip(maps, extra['depth2img'])):
                rows = (coords[:, 0] == i).nonzero().flatten()
                homogeneous = F.pad(xyz[rows], (0, 1), value=1.0) @ matrix.float().t()
                depth = homogeneous[:, 2:3]
                size = homogeneous.new_tensor(self.image_size)
                grid = homogeneous[:, :2] / depth.clamp(min=1e-3) / size * 2 - 1
                grid = torch.where(depth > 0, grid, -10.0)
                sampled[rows] = F.grid_sample(feature_map[None], grid[None, None], align_corners=True)[0, :, 0].t()
            return self.conv(stem.replace_feature(sampled)).features

        return self.backbone(voxels.tensor, memory=self.memory, stem_features=stem_features)


@MODELS.register_module()
class ScanNet200MixFormer3D_FF(_FeatureFusion, ScanNet200MixFormer3D):
    __doc__ = ScanNet200MixFormer3D.__doc__


@MODELS.register_module()
class ScanNet200MixFormer3D_FF_Online(_FeatureFusion, ScanNet200MixFormer3D_Online):
    __doc__ = ScanNet200MixFormer3D_Online.__doc__


@MODELS.register_module()
class ScanNet200MixFormer3D_Stream(ScanNet200MixFormer3D_Online):
    """``ScanNet200MixFormer3D_Online`` under the name of the published streaming config; see ``OnlineSegmentor``."""


@MODELS.register_module()
class BiFusionSeg(ScanNet200MixFormer3D):
    """``ScanNet200MixFormer3D`` whose point features come from ``bi_encoder``.

    ``inputs`` also has, for each sample, ``clip_uv`` (P, 2), and ``clip_pix`` (192, h, w) with ``clip_global`` (768,)
    or ``img`` (3, H, W).
    """

    def __init__(self, *args, bi_encoder: dict | None = None, **kwargs):
        if bi_encoder is None:
            raise ConfigError(f'{type(self).__name__} needs bi_encoder')
        super().__init__(*args, bi_encoder=bi_encoder, **kwargs)


@MODELS.register_module()
class BiFusionSegOnline(ScanNet200MixFormer3D_Online):
    """``ScanNet200MixFormer3D_Online`` whose point features come from ``bi_encoder``; inputs of ``BiFusionSeg`` have
    the frames as first axis."""

    def __init__(self, *args, bi_encoder: dict | None = None, **kwargs):
        if bi_encoder is None:
            raise ConfigError(f'{type(self).__name__} needs bi_encoder')
        super().__init__(*args, bi_encoder=bi_encoder, **kwargs)
