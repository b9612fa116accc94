"""Camera-only occupancy with temporal stereo: the volume that all of UniOcc's detectors share, and the baseline."""

import copy

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from torch import nn

from ...errors import ConfigError
from ...models.averaging import FlipAveraging, check_flips
from ...models.backbones import stereo_feature
from ...models.geometry import sensor_to_key_ego, sensor_to_older_sensor
from ...models.view_transforms import StereoPair, camera_vector


class StereoVolumeDetector(FlipAveraging, Base3DDetector):
    """Images of the key frame and older ones -> one encoded volume in the key ego frame.

    Source: Li et al., "BEVStereo", AAAI 2023; Huang and Huang, "BEVDet4D", 2022; Pan et al., "RenderOcc", ICRA 2024.

    Args:
        img_backbone, img_neck: image branch. For stereo depth the backbone's first output is the feature of stride 4.
        img_view_transformer: ``LSSViewTransformerBEVStereo``.
        img_bev_encoder_backbone, img_bev_encoder_neck: encoder of the frames' volumes (or maps), concatenated.
        pre_process: encoder of each frame's volume.
        occ_upsample: ``SkipUpsample3D`` that brings the encoded volume to a finer grid, so that a small model can
            encode at a multiple of the voxel size.
        out_dim: channels of the answer's features.
        final_kernel: size of the last convolution.
        num_adj: older frames whose volumes are used. Stereo depth looks at one more, for the depth of the oldest.
        key_ego: whose ego pose is the key ego frame: 'first_camera' (published) or 'lidar', that of the LiDAR's moment,
            in which labels and rays are (some tens of milliseconds away from the first).
        tta: test-time augmentation, names of 'img_flip', 'flip_dx', 'flip_dy': all combinations are averaged.
        use_lss_depth_loss: supervise the depth distribution with ``sparse_depth``.
        align_after_view_transformation: must be False: frames are aligned inside the lift. (Also in the spelling of
            the published configs.)
        data_preprocessor, init_cfg: as in mmdet3d.

    ``inputs``: ``imgs`` (B, T, N, 3, H, W), T with the key frame first; ``sensor2ego``, ``ego2global`` (B, T, N, 4, 4);
    ``intrins``, ``post_rots`` (B, T, N, 3, 3); ``post_trans`` (B, T, N, 3); ``bda`` (B, 3, 3); in training
    ``sparse_depth`` (B, N, h, w).
    """

    volume_dims = 3  # 2 where planes of z are channels

    def __init__(
        self,
        img_backbone,
        img_view_transformer,
        img_bev_encoder_backbone,
        img_bev_encoder_neck,
        img_neck=None,
        pre_process=None,
        occ_upsample=None,
        out_dim=32,
        final_kernel=3,
        num_adj=1,
        key_ego='first_camera',
        tta=(),
        use_lss_depth_loss=True,
        align_after_view_transformation=False,
        align_after_view_transfromation=False,
        data_preprocessor=None,
        init_cfg=None,
    ):
        if isinstance(data_preprocessor, dict):
            # here, from mmdet3d's registry, so that building the model needs no default scope
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        name = type(self).__name__
        if align_after_view_transformation or align_after_view_transfromation:
            raise ConfigError(f'{name}.align_after_view_transformation is True, expected False')
        if key_ego not in ('first_camera', 'lidar'):
            raise ConfigError(f"{name}.key_ego is '{key_ego}', expected 'first_camera' or 'lidar'")
        self.tta = check_flips(tta, f'{name}.tta')
        self.key_ego, self.num_adj, self.use_lss_depth_loss = key_ego, num_adj, use_lss_depth_loss
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = None if img_neck is None else MODELS.build(img_neck)
        self.img_view_transformer = MODELS.build(img_view_transformer)
        self.pre_process_net = None if pre_process is None else MODELS.build(pre_process)
        self.img_bev_encoder_backbone = MODELS.build(img_bev_encoder_backbone)
        self.img_bev_encoder_neck = MODELS.build(img_bev_encoder_neck)
        width = img_bev_encoder_neck['out_channels']
        self.occ_upsample = None
        if occ_upsample is not None:
            occ_upsample = dict(copy.deepcopy(occ_upsample), in_channels=width, skip_channels=0)
            self.occ_upsample = MODELS.build(occ_upsample)
            width = occ_upsample['out_channels']
        self.out_dim = out_dim
        self.final_conv = ConvModule(
            width,
            out_dim,
            final_kernel,
            padding=final_kernel // 2,
            bias=True,
            conv_cfg=dict(type=f'Conv{self.volume_dims}d'),
        )

    @property
    def num_frames(self) -> int:
        """Camera frames that a sample must have."""
        return self.num_adj + 1 + int(self.img_view_transformer.stereo)

    # ------------------------------------------------------------------ features

    def extract_feat(self, batch_inputs_dict, batch_data_samples=None, measured_depth=None):
        """Encoded features of the voxels and the depth distribution of the key frame.

        Args:
            batch_inputs_dict, batch_data_samples: see the class.
            measured_depth: (B, T', N, h, w) metres, 0 = none: depths of the newest T' frames that the lift takes in
                place of the predicted ones.

        Returns:
            (B, out_dim, Z, Y, X), or (B, out_dim, Y, X) where planes of z are channels, and (B*N, D, h, w).
        """
        volume, depth = self.extract_volume(batch_inputs_dict, batch_data_samples, measured_depth)
        volume = self.img_bev_encoder_neck(self.img_bev_encoder_backbone(volume))
        if self.occ_upsample is not None:
            volume = self.occ_upsample(volume)
        return self.final_conv(volume), depth

    def extract_volume(self, inputs, data_samples=None, measured_depth=None):
        """The frames' volumes, oldest first, concatenated on the channels, and the key frame's depth distribution."""
        imgs, view = inputs['imgs'], self.img_view_transformer
        if imgs.shape[1] < self.num_frames:
            raise ConfigError(
                f'{type(self).__name__}.num_adj={self.num_adj} asks for {self.num_frames} camera frames'
                f'{" (one of them for stereo depth)" if view.stereo else ""}, the pipeline gives {imgs.shape[1]}: set '
                'num_adjacent of PrepareImageInputs and of the dataset'
            )
        key_pose = self._lidar_ego_pose(data_samples, imgs.device) if self.key_ego == 'lidar' else None
        sensor2keyego = sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global'], key_pose)
        motion = sensor_to_older_sensor(inputs['sensor2ego'], inputs['ego2global'])
        bda, volumes, depth, older = inputs['bda'], [], None, None
        for frame in reversed(range(self.num_frames)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and frame == 0):
                if frame > self.num_adj:
                    older = stereo_feature(self.img_backbone, imgs[:, frame].flatten(0, 1))
                    continue
                features, stereo = self.image_features(imgs[:, frame])
                intrins, rots, trans = (inputs[key][:, frame] for key in ('intrins', 'post_rots', 'post_trans'))
                pair = None
                if view.stereo:
                    pair = StereoPair(stereo.detach(), older, motion[:, frame])
                    older = pair.current
                bins = None
                if measured_depth is not None and frame < measured_depth.shape[1]:
                    bins = view.depth_bins(measured_depth[:, frame])
                # the published weights know each frame's cameras by their pose in the key frame
                camera = camera_vector(sensor2keyego[:, 0], intrins, rots, trans, bda)
                volume, depth = view(
                    features, sensor2keyego[:, frame], intrins, rots, trans, bda, camera, pair, measured_bins=bins
                )
                if self.pre_process_net is not None:
                    volume = self.pre_process_net(volume)[0]
            volumes.append(volume)
        return torch.cat(volumes, dim=1), depth

    def image_features(self, imgs):
        """(B, N, 3, H, W) -> (B, N, C, h, w) and the stereo feature (B*N, C', H / 4, W / 4) or None."""
        outputs = self.img_backbone(imgs.flatten(0, 1))
        stereo, outputs = (outputs[0], outputs[1:]) if self.img_view_transformer.stereo else (None, outputs)
        x = outputs[-1] if self.img_neck is None else self.img_neck(outputs)
        return x.unflatten(0, imgs.shape[:2]), stereo

    @staticmethod
    def _lidar_ego_pose(data_samples, device):
        """(B, 4, 4) float64 ego poses at the LiDAR's moment, from the meta information."""
        poses = [sample.metainfo.get('ego2global') for sample in data_samples or ()]
        if not poses or any(pose is None for pose in poses):
            raise ConfigError("key_ego='lidar' needs data samples with the meta field 'ego2global'")
        return torch.as_tensor(np.array(poses, dtype=np.float64), device=device)

    # ------------------------------------------------------------------ losses

    def depth_losses(self, inputs, depth) -> dict:
        """``loss_lss_depth`` of the key frame's distribution, where it is switched on."""
        if not self.use_lss_depth_loss:
            return {}
        if 'sparse_depth' not in inputs:
            raise ConfigError(
                f"{type(self).__name__}.use_lss_depth_loss needs 'sparse_depth': add PointToMultiViewDepth to the "
                'pipeline'
            )
        return dict(loss_lss_depth=self.img_view_transformer.get_depth_loss(inputs['sparse_depth'], depth))

    def _targets(self, data_samples, device, mask_name=None):
        """Labels (B, X, Y, Z) uint8, 255 where a sample has none, and the mask (B, X, Y, Z) bool or None."""
        if any('gt_occ' not in sample for sample in data_samples):
            raise ConfigError(
                f'{type(self).__name__}: samples without occupancy labels in a loss of 3D labels: add '
                'LoadOccGTFromFile to the pipeline, or switch the loss off'
            )
        semantics = torch.stack([sample.gt_occ.semantics for sample in data_samples]).to(device)
        if mask_name is None:
            return semantics, None
        return semantics, torch.stack([sample.gt_occ.get(mask_name) for sample in data_samples]).to(device)


@MODELS.register_module()
class BEVStereo4DOCC(StereoVolumeDetector):
    """The baseline without rendering: every voxel is classified from 3D labels.

    Source: the occupancy baseline of BEVDet4D (stereo), as RenderOcc's public config ``bevstereo-occ.py`` has it.

    Args:
        loss_occ: ``OccupancyLoss``; the published ``CrossEntropyLoss(use_sigmoid=False)`` is taken as one.
        num_classes: classes, "free" last.
        use_mask: supervise only the voxels of ``mask``.
        mask: 'mask_camera' or 'mask_lidar'.
        use_predicter: classify with a two-layer MLP; False lets ``final_conv`` give the logits.
        class_wise: accepted for the published configs, unused there.
        (others): of ``StereoVolumeDetector``.
    """

    def __init__(
        self,
        loss_occ=None,
        num_classes=18,
        use_mask=False,
        mask='mask_camera',
        use_predicter=True,
        class_wise=False,
        out_dim=32,
        **kwargs,
    ):
        super().__init__(out_dim=out_dim if use_predicter else num_classes, **kwargs)
        self.num_classes, self.use_mask, self.mask = num_classes, use_mask, mask
        self.predicter = None
        if use_predicter:
            self.predicter = nn.Sequential(
                nn.Linear(out_dim, 2 * out_dim), nn.Softplus(), nn.Linear(2 * out_dim, num_classes)
            )
        config = dict(loss_occ or dict(type='OccupancyLoss'))
        if config['type'] in ('CrossEntropyLoss', 'mmdet.CrossEntropyLoss'):
            if config.get('use_sigmoid', False):
                raise ConfigError('loss_occ.use_sigmoid must be False: classes exclude each other')
            kept = {name: config[name] for name in ('loss_weight', 'class_weight') if name in config}
            config = dict(type='OccupancyLoss', **kept)
        self.loss_occ = MODELS.build(dict(config, num_classes=num_classes))

    def classify(self, features):
        """Logits of features (..., C) -> (..., num_classes)."""
        return features if self.predicter is None else self.predicter(features)

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """``loss_occ`` and ``loss_lss_depth``."""
        volume, depth = self.extract_feat(batch_inputs_dict, batch_data_samples)
        features = volume.permute(0, 4, 3, 2, 1)
        semantics, mask = self._targets(batch_data_samples, volume.device, self.mask if self.use_mask else None)
        targets = self.loss_occ.targets(semantics, mask, features.shape[1:4], batch_inputs_dict.get('sample_seed'))
        logits = self.classify(features.flatten(0, 3).index_select(0, targets.index))
        losses = self.loss_occ(logits, targets, masked=self.use_mask)
        losses.update(self.depth_losses(batch_inputs_dict, depth))
        return losses

    def voxel_scores(self, inputs, data_samples=None):
        """Probabilities (B, X, Y, Z, num_classes)."""
        return (self._forward(inputs, data_samples).float().softmax(-1),)

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """Logits (B, X, Y, Z, num_classes)."""
        volume, _ = self.extract_feat(batch_inputs_dict, batch_data_samples)
        return self.classify(volume.permute(0, 4, 3, 2, 1))
