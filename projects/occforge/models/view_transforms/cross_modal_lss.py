"""FusionOcc's view transformer: image features and projected LiDAR depth are fused before the lift."""

import torch
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from ...engine.dist import reduce_mean_count
from .lss import LSSViewTransformer, depth_loss


def _conv_norm_relu(in_channels, out_channels, norm_cfg) -> list:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        build_norm_layer(norm_cfg, out_channels)[1],
        nn.ReLU(inplace=True),
    ]


class CrossModalFusion(BaseModule):
    """Crossed gates: each modality's channel and spatial weights come from the other one.

    Args:
        channels: of each modality's features.
        norm_cfg: norm layer.

    ``forward`` takes image and depth features, both (M, channels, h, w), and returns both re-weighted.
    """

    def __init__(self, channels, norm_cfg, init_cfg=None):
        super().__init__(init_cfg)
        self.channel_mlp_c = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.channel_mlp_d = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.fuse_conv = nn.Sequential(*_conv_norm_relu(2 * channels, 2 * channels, norm_cfg))
        self.spatial_c = self._spatial(channels // 2)
        self.spatial_d = self._spatial(channels // 2)

    @staticmethod
    def _spatial(width):
        return nn.Sequential(
            nn.Conv2d(1, width, 1), nn.ReLU(inplace=True), nn.Conv2d(width, 1, 1), nn.ReLU(inplace=True)
        )

    def forward(self, image, depth):
        gate_image = self.channel_mlp_c(image.mean(dim=(2, 3)))[..., None, None]
        gate_depth = self.channel_mlp_d(depth.mean(dim=(2, 3)))[..., None, None]
        fused = self.fuse_conv(torch.cat([gate_depth * image, gate_image * depth], dim=1))
        half_image, half_depth = fused.chunk(2, dim=1)
        weight_image = self.spatial_c(half_image.mean(dim=1, keepdim=True))
        weight_depth = self.spatial_d(half_depth.mean(dim=1, keepdim=True))
        return image * (1 + weight_depth), depth * (1 + weight_image)


class Mlp(BaseModule):
    """Two linear layers with a ReLU between."""

    def __init__(self, in_features, hidden_features, out_features, init_cfg=None):
        super().__init__(init_cfg)
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


class SELayer(BaseModule):
    """Scales the channels of ``x`` (M, C, h, w) by a gate made from ``vector`` (M, C, 1, 1)."""

    def __init__(self, channels, init_cfg=None):
        super().__init__(init_cfg)
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x, vector):
        return x * torch.sigmoid(self.conv_expand(F.relu(self.conv_reduce(vector))))


class _AtrousBranch(BaseModule):
    def __init__(self, in_channels, out_channels, dilation, norm_cfg):
        super().__init__()
        kernel = 1 if dilation == 1 else 3
        padding = 0 if dilation == 1 else dilation
        self.atrous_conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = build_norm_layer(norm_cfg, out_channels)[1]

    def forward(self, x):
        return F.relu(self.bn(self.atrous_conv(x)))


class ASPP(BaseModule):
    """Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", 2017): dilations 1, 6, 12, 18 and
    a global average. (M, C, h, w) -> (M, C, h, w)."""

    def __init__(self, channels, mid_channels, norm_cfg, dropout=0.5, init_cfg=None):
        super().__init__(init_cfg)
        self.aspp1 = _AtrousBranch(channels, mid_channels, 1, norm_cfg)
        self.aspp2 = _AtrousBranch(channels, mid_channels, 6, norm_cfg)
        self.aspp3 = _AtrousBranch(channels, mid_channels, 12, norm_cfg)
        self.aspp4 = _AtrousBranch(channels, mid_channels, 18, norm_cfg)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Conv2d(channels, mid_channels, 1, bias=False),
            build_norm_layer(norm_cfg, mid_channels)[1],
            nn.ReLU(inplace=True),
        )
        self.conv1 = nn.Conv2d(5 * mid_channels, channels, 1, bias=False)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        branches = [branch(x) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        branches.append(self.global_avg_pool(x).expand(-1, -1, *x.shape[2:]))
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))


class CameraScale(BaseModule):
    """Brings the camera vector to the order of one with constants, where batch statistics would be worthless.

    In batches of one or two samples a component that is constant inside the batch (the flips of the BEV augmentation,
    for one) is normalised to zero in training and by a variance of nearly zero in evaluation.
    """

    def __init__(self, input_size, init_cfg=None):
        super().__init__(init_cfg)
        height, width = input_size
        scale = torch.ones(27)
        scale[[0, 2, 6]] = 1.0 / width
        scale[[1, 3, 9]] = 1.0 / height
        self.register_buffer('scale', scale, persistent=False)

    def forward(self, vector):
        return vector * self.scale


class DepthSegNet(BaseModule):
    """Predicts depth logits, semantic logits and the features to lift, given the camera's parameters.

    Args:
        in_channels: of the fused features.
        mid_channels: of the three branches.
        feature_channels: of the lifted features; one half comes from the semantic branch.
        depth_channels: depth bins.
        num_classes: semantic classes.
        input_size: (H, W) of the input images (for ``camera_norm='scale'``).
        aspp_mid_channels: inner width of the ASPP; 0 leaves it out.
        dropout: of the ASPP.
        camera_norm: ``'bn'`` (batch statistics, as published) or ``'scale'`` (constants, for tiny batches).
        norm_cfg: norm layer.

    ``forward`` takes features (M, in_channels, h, w) and camera vectors (M, 27) and returns depth logits
    (M, depth_channels, h, w), features (M, feature_channels, h, w) and semantic logits (M, num_classes, h, w).
    """

    def __init__(
        self,
        in_channels,
        mid_channels,
        feature_channels,
        depth_channels,
        num_classes,
        input_size,
        norm_cfg,
        aspp_mid_channels=96,
        dropout=0.5,
        camera_norm='bn',
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if camera_norm not in ('bn', 'scale'):
            raise ValueError(f"DepthSegNet: camera_norm is '{camera_norm}', expected 'bn' or 'scale'")
        seg_channels = feature_channels // 2
        self.bn = nn.BatchNorm1d(27) if camera_norm == 'bn' else CameraScale(input_size)
        self.reduce_conv_seg = nn.Sequential(*_conv_norm_relu(in_channels, mid_channels, norm_cfg))
        self.reduce_conv_depth = nn.Sequential(*_conv_norm_relu(in_channels, mid_channels, norm_cfg))
        self.reduce_conv_context = nn.Sequential(*_conv_norm_relu(in_channels, mid_channels, norm_cfg))
        self.seg_mlp = Mlp(27, mid_channels, mid_channels)
        self.seg_se = SELayer(mid_channels)
        self.seg_conv = nn.Sequential(
            nn.Conv2d(mid_channels, seg_channels, 3, padding=1),
            BasicBlock(seg_channels, seg_channels, norm_cfg=norm_cfg),
        )
        self.seg_out = nn.Conv2d(seg_channels, num_classes, 1)
        self.context_mlp = Mlp(27, mid_channels, mid_channels)
        self.context_se = SELayer(mid_channels)
        self.context_conv = nn.Conv2d(mid_channels, feature_channels - seg_channels, 3, padding=1)
        self.depth_mlp = Mlp(27, mid_channels, mid_channels)
        self.depth_se = SELayer(mid_channels)
        layers = [BasicBlock(mid_channels, mid_channels, norm_cfg=norm_cfg) for _ in range(2)]
        if aspp_mid_channels:
            layers.append(ASPP(mid_channels, aspp_mid_channels, norm_cfg, dropout))
        self.depth_conv = nn.Sequential(*layers, nn.Conv2d(mid_channels, depth_channels, 1))

    def forward(self, x, camera):
        camera = self.bn(camera)

        def gated(reduce, mlp, gate):
            return gate(reduce(x), mlp(camera)[..., None, None])

        seg = self.seg_conv(gated(self.reduce_conv_seg, self.seg_mlp, self.seg_se))
        context = self.context_conv(gated(self.reduce_conv_context, self.context_mlp, self.context_se))
        depth = self.depth_conv(gated(self.reduce_conv_depth, self.depth_mlp, self.depth_se))
        return depth, torch.cat([seg, context], dim=1), self.seg_out(seg)


@MODELS.register_module()
class CrossModalLSS(LSSViewTransformer):
    """Lift of image features whose depth distribution is predicted from image and LiDAR depth together.

    Source: FusionOcc (ACM MM 2024, doi 10.1145/3664647.3681293).

    Args:
        feature_channels: channels of the lifted features.
        seg_num_classes: classes of the auxiliary 2D segmentation; the last one stands for "no label".
        mid_channels: width of both modalities' features.
        depth_channels: number of depth bins, checked against ``grid_config['depth']``.
        depthnet_cfg: ``aspp_mid_channels`` and ``dropout`` of the depth branch.
        seg_down_sample: input pixels per pixel of the segmentation loss.
        seg_class_weight: one factor a class of the segmentation loss, or None; the normaliser is then the labelled
            pixels' sum of factors.
        is_train: False switches the random dropping of depth off in training too.
        depth_drop_prob: share of feature pixels whose depth input is dropped in training mode.
        drop_in_eval: drop depth in evaluation too, as the published code does with the published config.
        use_depth_input: False feeds no LiDAR depth to the network (camera-only models); depth stays a training label.
        camera_norm: see ``DepthSegNet``.
        norm_cfg: norm layer of the 2D convolutions.
        grid_config, input_size, downsample, in_channels, out_channels, accelerate, sid, collapse_z: see
            ``LSSViewTransformer``.
    """

    def __init__(
        self,
        feature_channels,
        seg_num_classes,
        grid_config,
        input_size,
        in_channels,
        mid_channels,
        depth_channels,
        is_train=True,
        out_channels=None,
        downsample=16,
        seg_down_sample=None,
        seg_class_weight=None,
        depthnet_cfg=None,
        depth_drop_prob=0.49,
        drop_in_eval=False,
        use_depth_input=True,
        camera_norm='bn',
        norm_cfg=None,
        accelerate=False,
        sid=False,
        collapse_z=False,
        init_cfg=None,
    ):
        if out_channels is not None and out_channels != feature_channels:
            raise ValueError(
                f'CrossModalLSS: out_channels {out_channels} and feature_channels {feature_channels} must be equal'
            )
        super().__init__(
            grid_config=grid_config,
            input_size=input_size,
            downsample=downsample,
            in_channels=in_channels,
            out_channels=feature_channels,
            accelerate=accelerate,
            sid=sid,
            collapse_z=collapse_z,
            init_cfg=init_cfg,
        )
        if self.num_bins != depth_channels:
            raise ValueError(
                f'CrossModalLSS: depth_channels is {depth_channels}, but grid_config.depth '
                f'{grid_config["depth"]} makes {self.num_bins} bins'
            )
        norm_cfg = norm_cfg or dict(type='BN')
        self.seg_num_classes = seg_num_classes
        self.seg_down_sample = seg_down_sample or downsample
        if seg_class_weight is not None and len(seg_class_weight) != seg_num_classes:
            raise ValueError(
                f'CrossModalLSS: seg_class_weight has {len(seg_class_weight)} entries, expected {seg_num_classes}'
            )
        weight = None if seg_class_weight is None else torch.tensor(seg_class_weight, dtype=torch.float32)
        self.register_buffer('seg_class_weight', weight, persistent=False)
        self.depth_drop_prob = depth_drop_prob if is_train or drop_in_eval else 0.0
        self.drop_in_eval = drop_in_eval
        self.use_depth_input = use_depth_input
        self.depth_encoder = nn.Sequential(
            *_conv_norm_relu(depth_channels, mid_channels, norm_cfg),
            *_conv_norm_relu(mid_channels, mid_channels, norm_cfg),
        )
        self.img_reduce_conv = nn.Sequential(*_conv_norm_relu(in_channels, mid_channels, norm_cfg))
        self.cross_model_fusion = CrossModalFusion(mid_channels, norm_cfg)
        self.further_fuse = BasicBlock(2 * mid_channels, 2 * mid_channels, norm_cfg=norm_cfg)
        self.depth_seg_net = DepthSegNet(
            2 * mid_channels,
            mid_channels,
            feature_channels,
            depth_channels,
            seg_num_classes,
            input_size,
            norm_cfg,
            camera_norm=camera_norm,
            **(depthnet_cfg or {}),
        )

    def build_depth_net(self):
        return None

    def forward(
        self,
        x,
        sensor2keyego,
        intrins,
        post_rots,
        post_trans,
        bda,
        camera,
        depth_bins,
        sample_seed=None,
        points=None,
    ):
        """Lift one frame.

        Args:
            x: (B, N, in_channels, h, w) image features.
            sensor2keyego, intrins, post_rots, post_trans, bda: see ``LSSViewTransformer.ego_points``.
            camera: (B, N, 27) of ``camera_vector``.
            depth_bins: (B*N, h, w) of ``depth_bins``, or None (no depth anywhere).
            sample_seed: (B,) int64 seeds of the random dropping, so that it does not depend on the batch or the rank.
                None draws from torch's global generator.
            points: ``ego_points`` where the caller has them already.

        Returns:
            volume (B, C, Z, Y, X), depth probabilities (B*N, D, h, w) and semantic logits (B*N, classes, h, w).
        """
        depth, features, seg = self.encode(x, camera, depth_bins, sample_seed)
        if points is None:
            points = self.ego_points(sensor2keyego, intrins, post_rots, post_trans, bda)
        # in the features' type: under autocast the volume is then half as large, sums are float32 all the same
        lifted = [value.to(features.dtype).unflatten(0, x.shape[:2]) for value in (depth, features)]
        volume = self.pool(*lifted, points)
        return volume, depth, seg

    def encode(self, x, camera, depth_bins, sample_seed=None):
        """The part before the lift, arguments as in ``forward``.

        Returns:
            depth probabilities (B*N, D, h, w) float32, features to lift (B*N, C, h, w) and semantic logits
            (B*N, classes, h, w).
        """
        image = self.img_reduce_conv(x.flatten(0, 1))
        depth = self.depth_encoder(self._depth_input(image, depth_bins, len(x), sample_seed))
        image, depth = self.cross_model_fusion(image, depth)
        fused = self.further_fuse(torch.cat([image, depth], dim=1))
        depth, features, seg = self.depth_seg_net(fused, camera.flatten(0, 1))
        return depth.float().softmax(dim=1), features, seg

    def _depth_input(self, like, depth_bins, batch, sample_seed):
        """One-hot bins (B*N, D, h, w) in the type of ``like``, with dropped pixels all zero."""
        if depth_bins is None or not self.use_depth_input:
            return like.new_zeros(like.shape[0], self.num_bins, *like.shape[2:])
        if self.depth_drop_prob > 0 and (self.training or self.drop_in_eval):
            depth_bins = depth_bins * self._kept(depth_bins, batch, sample_seed)
        return self.one_hot(depth_bins).to(like.dtype)

    def _kept(self, depth_bins, batch, sample_seed):
        if sample_seed is None:
            draw = torch.rand(depth_bins.shape, device=depth_bins.device)
        else:
            # drawn on the CPU, so that a sample's draw is the same on every device
            shape = (depth_bins.shape[0] // batch, *depth_bins.shape[1:])
            draw = torch.cat(
                [
                    torch.rand(shape, generator=torch.Generator().manual_seed(seed))
                    for seed in torch.as_tensor(sample_seed).tolist()
                ]
            ).to(depth_bins.device)
        return draw >= self.depth_drop_prob

    def one_hot(self, depth_bins):
        """(B*N, h, w) bins -> (B*N, D, h, w) float32; pixels without depth are all zero."""
        output = torch.zeros(depth_bins.shape[0], self.num_bins + 1, *depth_bins.shape[1:], device=depth_bins.device)
        return output.scatter_(1, depth_bins[:, None], 1.0)[:, 1:]

    @staticmethod
    def depth_loss(depth_bins, depth):
        """See :func:`~occforge.models.view_transforms.lss.depth_loss`."""
        return depth_loss(depth_bins, depth)

    def seg_loss(self, segs, logits):
        """Cross entropy of the labelled feature pixels.

        Args:
            segs: (B, N, H, W) labels at the input's resolution, of which each ``seg_down_sample``-th row and column
                counts, or (B, N, h, w) at the logits' or a multiple of it, where the smallest label of a block counts
                (things stand before grounds); the last class stands for "no label".
            logits: (B*N, classes, h, w).

        Returns:
            Scalar mean over the labelled pixels of all ranks, 0 (with a graph) where there are none.
        """
        labels = segs.flatten(0, 1)
        if tuple(labels.shape[1:]) == self.input_size and tuple(logits.shape[2:]) != self.input_size:
            labels = labels[:, :: self.seg_down_sample, :: self.seg_down_sample]
        ratio = labels.shape[2] // logits.shape[3]
        if ratio > 1 and labels.shape[1:] == (ratio * logits.shape[2], ratio * logits.shape[3]):
            labels = labels.unfold(1, ratio, ratio).unfold(2, ratio, ratio).flatten(3).amin(3)
        if labels.shape[1:] != logits.shape[2:]:
            raise ValueError(
                f'segs is {tuple(segs.shape[2:])}, expected {self.input_size} (the input image) or '
                f'{tuple(logits.shape[2:])} (the logits) or a multiple of it'
            )
        valid = labels < self.seg_num_classes - 1
        labels, weight = labels[valid].long(), self.seg_class_weight
        count = reduce_mean_count(valid.sum() if weight is None else weight[labels].sum(), minimum=1.0)
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float().movedim(1, -1)[valid], labels, weight, reduction='sum')
        return loss / count
