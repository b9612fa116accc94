"""Joint depth and semantic pretraining of FB-OCC's image branch."""

import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from torch import nn
from torch.nn import functional as F

from ...engine.dist import reduce_mean_count
from ...errors import ConfigError
from .fb_occ import FBOCC


@MODELS.register_module()
class DepthSemanticPretrainer(Base3DDetector):
    """Trains ``img_backbone``, ``img_neck`` and ``depth_net`` on LiDAR depth and on image semantics, or depth alone.

    So that large backbones do not overfit the depth. The checkpoint's keys are those of ``FBOCC``, which takes it as
    ``load_from``; only the classifier ``seg_head`` stays behind. Source: Li et al., "FB-OCC", 2023 (the idea; head and
    weights are ours, the published ones were not released).

    Args:
        img_backbone, img_neck, depth_net: as of ``FBOCC``.
        num_classes: 2D classes; the last one means "no label". None: depth alone, which nobody has to label.
        seg_loss_weight: factor of the cross entropy.
        class_weight: one factor a class, or None.
        key_ego: as of ``FBOCC``.
        data_preprocessor, init_cfg: as in mmdet3d.

    ``inputs`` as of ``FBOCC``, and, with classes, ``segs`` (B, N, h, w) uint8 at the feature map's resolution.
    """

    def __init__(
        self,
        img_backbone,
        img_neck,
        depth_net,
        num_classes=18,
        seg_loss_weight=1.0,
        class_weight=None,
        key_ego='CAM_FRONT',
        data_preprocessor=None,
        init_cfg=None,
    ):
        if isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.depth_net = MODELS.build(depth_net)
        self.seg_head = None
        if num_classes is not None:
            self.seg_head = nn.Conv2d(depth_net['context_channels'], num_classes - 1, 1)
        self.seg_loss_weight, self.key_ego = seg_loss_weight, key_ego
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer('class_weight', weight, persistent=False)

    cameras, image_features = FBOCC.cameras, FBOCC.image_features

    def extract_feat(self, batch_inputs_dict, batch_data_samples=None):
        """Depth distribution (B, N, D, h, w); semantic logits (B, N, classes - 1, h, w) of the context features, or
        None."""
        cameras = self.cameras(batch_inputs_dict, batch_data_samples)
        pose = cameras.sensor2keyego
        vector = self.depth_net.get_mlp_input(pose[..., :3, :3], pose[..., :3, 3], *cameras[1:])
        context, depth = self.depth_net(self.image_features(batch_inputs_dict['imgs'][:, 0]), vector)
        if self.seg_head is None:
            return depth, None
        return depth, self.seg_head(context.flatten(0, 1)).unflatten(0, context.shape[:2])

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """``loss_depth`` and, with classes, ``loss_seg``."""
        missing = {'sparse_depth', 'segs'} - set(batch_inputs_dict)
        if self.seg_head is None:
            missing.discard('segs')
        if missing:
            raise ConfigError(
                f'DepthSemanticPretrainer needs {sorted(missing)}: PointToMultiViewDepth(with_segs=True) makes them'
            )
        depth, logits = self.extract_feat(batch_inputs_dict, batch_data_samples)
        losses = dict(loss_depth=self.depth_net.get_depth_loss(batch_inputs_dict['sparse_depth'], depth))
        if logits is not None:
            losses['loss_seg'] = self.seg_loss_weight * self.segmentation_loss(batch_inputs_dict['segs'], logits)
        return losses

    def segmentation_loss(self, segs, logits):
        """Cross entropy of logits (B, N, classes - 1, h, w) over the pixels of ``segs`` (B, N, h, w) with a class."""
        if segs.shape[2:] != logits.shape[3:]:
            raise ConfigError(
                f'segs is {tuple(segs.shape[2:])}, expected the feature map, {tuple(logits.shape[3:])}: set downsample '
                'of PointToMultiViewDepth'
            )
        labels = segs.long()
        valid = labels < logits.shape[2]
        labels, weight = labels[valid], self.class_weight
        count = reduce_mean_count(valid.sum() if weight is None else weight[labels].sum())
        with torch.autocast(logits.device.type, enabled=False):
            return F.cross_entropy(logits.float().movedim(2, -1)[valid], labels, weight, reduction='sum') / count

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_depth`` (N, h, w), metres of the likeliest bin's middle, and, with classes, ``pred_segs``
        (N, h, w) uint8."""
        depth, logits = self.extract_feat(batch_inputs_dict, batch_data_samples)
        lower, _, step = self.depth_net.depth_config
        metres = lower + step * (depth.argmax(dim=2) + 0.5)
        for i, sample in enumerate(batch_data_samples):
            sample.set_field(metres[i], 'pred_depth')
            if logits is not None:
                sample.set_field(logits[i].argmax(dim=1).to(torch.uint8), 'pred_segs')
        return batch_data_samples

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        return self.extract_feat(batch_inputs_dict, batch_data_samples)
