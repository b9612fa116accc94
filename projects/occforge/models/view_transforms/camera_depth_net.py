"""Camera-aware monocular depth: what FB-OCC lifts (context) and where to (a distribution over depth bins)."""

import torch
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import nn

from ..checkpointing import checkpoint
from .cross_modal_lss import ASPP, CameraScale, Mlp, SELayer
from .lss import camera_vector, depth_bins, depth_loss


class _DepthBins(BaseModule):
    """The depth label of a feature pixel and the loss on it, shared by the depth networks.

    Args:
        depth_channels: depth bins D.
        grid_config: ``depth`` (lower, upper, step) in metres; None where no depth is supervised.
        downsample: input pixels per feature pixel.
        loss_depth_weight: factor of the loss.
    """

    def __init__(self, depth_channels, grid_config=None, downsample=16, loss_depth_weight=3.0, init_cfg=None):
        super().__init__(init_cfg)
        self.depth_channels = depth_channels
        self.downsample = downsample
        self.loss_depth_weight = loss_depth_weight
        self.depth_config = None if grid_config is None else tuple(float(value) for value in grid_config['depth'])

    @staticmethod
    def get_mlp_input(rots, trans, intrins, post_rots, post_trans, bda):
        """The camera's 27 numbers (see ``camera_vector``) from ``rots`` (B, N, 3, 3), ``trans`` (B, N, 3)."""
        pose = torch.cat([rots, trans[..., None]], dim=-1)
        return camera_vector(pose, intrins, post_rots, post_trans, bda)

    def depth_bins(self, sparse_depth, feature_size):
        """(B*N, h, w) int64: 0 where there is no depth, else bin + 1; see ``lss.depth_bins``."""
        return depth_bins(sparse_depth, feature_size, self.downsample, self.depth_config, self.depth_channels)

    def get_depth_loss(self, sparse_depth, depth):
        """Weighted loss of the distribution ``depth`` (B, N, D, h, w) against measured depths (B, N, H, W) or
        (B, N, h, w) in metres, 0 = none."""
        bins = self.depth_bins(sparse_depth, tuple(depth.shape[-2:]))
        return self.loss_depth_weight * depth_loss(bins, depth.flatten(0, 1))


@MODELS.register_module()
class CM_DepthNet(_DepthBins):
    """Context features and a depth distribution, both gated by the camera's parameters.

    Source: Li et al., "FB-OCC: 3D Occupancy Prediction based on Forward-Backward View Transformation", 2023; the gates
    after Li et al., "BEVDepth", AAAI 2023.

    Args:
        in_channels: of the image features.
        context_channels: of the features to lift.
        depth_channels: depth bins D.
        mid_channels: width inside.
        use_dcn: must be False: the published model has no deformable convolution.
        use_aspp: pyramid of atrous convolutions in the depth branch.
        aspp_mid_channels: its inner width, default ``mid_channels``.
        camera_norm: 'bn' (batch statistics, as published), or 'scale' (constants, for tiny batches; needs
            ``input_size``).
        input_size: (H, W) of the input images.
        with_cp: recompute the depth branch in the backward pass to save memory.
        norm_cfg: norm layer of the 2D convolutions.
        grid_config, downsample, loss_depth_weight: see ``_DepthBins``.

    ``forward`` takes features (B, N, in_channels, h, w) and camera vectors (B, N, 27) and returns context
    (B, N, context_channels, h, w) and probabilities (B, N, D, h, w), float32.
    """

    def __init__(
        self,
        in_channels,
        context_channels,
        depth_channels,
        mid_channels=512,
        use_dcn=False,
        use_aspp=True,
        aspp_mid_channels=None,
        camera_norm='bn',
        input_size=None,
        with_cp=False,
        norm_cfg=None,
        downsample=16,
        grid_config=None,
        loss_depth_weight=3.0,
        init_cfg=None,
    ):
        super().__init__(depth_channels, grid_config, downsample, loss_depth_weight, init_cfg)
        if use_dcn:
            raise ValueError('CM_DepthNet: use_dcn=True is not supported, the published weights have no such layer')
        if camera_norm not in ('bn', 'scale') or (camera_norm == 'scale' and input_size is None):
            raise ValueError(f"CM_DepthNet: camera_norm is {camera_norm!r}, expected 'bn', or 'scale' and input_size")
        norm_cfg = norm_cfg or dict(type='BN')
        self.with_cp = with_cp
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1),
            build_norm_layer(norm_cfg, mid_channels)[1],
            nn.ReLU(inplace=True),
        )
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        self.bn = nn.BatchNorm1d(27) if camera_norm == 'bn' else CameraScale(input_size)
        self.depth_mlp = Mlp(27, mid_channels, mid_channels)
        self.depth_se = SELayer(mid_channels)
        self.context_mlp = Mlp(27, mid_channels, mid_channels)
        self.context_se = SELayer(mid_channels)
        layers = [BasicBlock(mid_channels, mid_channels, norm_cfg=norm_cfg) for _ in range(3)]
        if use_aspp:
            layers.append(ASPP(mid_channels, aspp_mid_channels or mid_channels, norm_cfg))
        self.depth_conv = nn.Sequential(*layers, nn.Conv2d(mid_channels, depth_channels, 1))

    def forward(self, x, mlp_input):
        cameras = x.shape[:2]
        context, depth = self.gate(x.flatten(0, 1), mlp_input.flatten(0, 1))
        depth = self.classify_depth(depth).float().softmax(dim=1)
        return context.unflatten(0, cameras), depth.unflatten(0, cameras)

    def gate(self, x, mlp_input):
        """Context (M, context_channels, h, w) and what the depth branch starts with (M, mid_channels, h, w), of
        features (M, in_channels, h, w) and camera vectors (M, 27)."""
        camera = self.bn(mlp_input)  # float32 under autocast too: focal lengths of 1000 pixels
        x = self.reduce_conv(x)
        context = self.context_conv(self.context_se(x, self.context_mlp(camera)[..., None, None]))
        return context, self.depth_se(x, self.depth_mlp(camera)[..., None, None])

    def classify_depth(self, x):
        """Depth logits (M, D, h, w) of the gated features."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self.depth_conv, self.depth_conv, x)
        return self.depth_conv(x)


@MODELS.register_module()
class CM_ContextNet(BaseModule):
    """The context half of ``CM_DepthNet``: features (B, N, in_channels, h, w) -> (B, N, context_channels, h, w)."""

    def __init__(self, in_channels, context_channels, mid_channels=512, norm_cfg=None, init_cfg=None):
        super().__init__(init_cfg)
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1),
            build_norm_layer(norm_cfg or dict(type='BN'), mid_channels)[1],
            nn.ReLU(inplace=True),
        )
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        self.bn = nn.BatchNorm1d(27)
        self.context_mlp = Mlp(27, mid_channels, mid_channels)
        self.context_se = SELayer(mid_channels)

    def forward(self, x, mlp_input):
        camera = self.bn(mlp_input.flatten(0, 1))  # float32 under autocast too: focal lengths of 1000 pixels
        features = self.reduce_conv(x.flatten(0, 1))
        context = self.context_conv(self.context_se(features, self.context_mlp(camera)[..., None, None]))
        return context.unflatten(0, x.shape[:2])


@MODELS.register_module()
class NaiveDepthNet(_DepthBins):
    """One 1x1 convolution to depth logits and context, blind to the camera. Arguments and result as ``CM_DepthNet``."""

    def __init__(
        self,
        in_channels,
        context_channels,
        depth_channels,
        downsample=16,
        grid_config=None,
        loss_depth_weight=3.0,
        init_cfg=None,
    ):
        super().__init__(depth_channels, grid_config, downsample, loss_depth_weight, init_cfg)
        self.depth_net = nn.Conv2d(in_channels, depth_channels + context_channels, 1)

    def forward(self, x, mlp_input=None):
        output = self.depth_net(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        depth, context = output[:, :, : self.depth_channels], output[:, :, self.depth_channels :]
        return context, depth.float().softmax(dim=2)
