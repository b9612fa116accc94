"""FB-OCC: camera-only occupancy prediction with forward-backward projection and temporal fusion."""

import copy
from typing import NamedTuple

import torch
from mmcv.cnn import build_norm_layer
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError
from ...models.averaging import check_flips, flip_inputs, flip_variants
from .history import FrameInfo, HistoryMemory, SequenceState, augmentation_matrix, warp, warp_grid


class Cameras(NamedTuple):
    """Calibration of a batch: sensor2keyego (B, N, 4, 4), intrins and post_rots (B, N, 3, 3), post_trans (B, N, 3),
    bda (B, 3, 3)."""

    sensor2keyego: torch.Tensor
    intrins: torch.Tensor
    post_rots: torch.Tensor
    post_trans: torch.Tensor
    bda: torch.Tensor


def _build_encoder(config):
    """The published configs call the 3D encoder by a name that BEVDet's encoder has here."""
    config = copy.deepcopy(config)
    if config['type'] == 'CustomResNet3D' and 'n_input_channels' in config:
        config['type'] = 'VoxelResNet3D'
    return MODELS.build(config)


@MODELS.register_module()
class FBOCC(Base3DDetector):
    """Image features are lifted into voxels (forward), refined from the ground plane (backward), fused with those of
    previous frames and classified voxel by voxel.

    Source: Li et al., "FB-OCC: 3D Occupancy Prediction based on Forward-Backward View Transformation", 2023.

    Args:
        img_backbone, img_neck: image branch; None: ``imgs`` are features already.
        depth_net: ``CM_DepthNet``.
        forward_projection: ``LSSViewTransformerFunction3D``.
        backward_projection: ``BackwardProjection``; None: the lifted volume alone.
        img_bev_encoder_backbone, img_bev_encoder_neck: 3D encoder.
        occupancy_head: ``OccHead``.
        use_depth_supervision: loss on the depth distribution.
        readd: add the refined plane to the lifted volume (the joint voxel-BEV representation); False: the plane alone,
            the same at every height.
        fix_void: accepted for the published configs; the head's 19 logits say the same.
        use_mask: supervise only the voxels of ``mask``.
        mask: 'mask_camera' (the voxels that a camera observes) or 'mask_lidar'.
        do_history: remember previous frames in training. HistoryHook switches it on where the schedule says; in
            evaluation the model always remembers.
        history_cat_num: frames before the present one that are fused; 0: a model of single frames.
        history_cat_conv_out_channels: of the fused volume, default ``single_bev_num_channels``.
        single_bev_num_channels: of a frame's volume.
        interpolation_mode: of the warp, 'bilinear' or 'nearest'.
        history_interval: seconds between frames.
        history_norm_cfg: norm of the fusion; the published one is over all processes.
        history_init: 'random', as published, or 'mean': the fusing convolutions start as the mean of all frames, and
            their norms with a bias of 1, with which the ReLUs cut little. A short training need not learn that first.
        history_dtype: 'float32', 'float16' or 'bfloat16', in which frames are remembered.
        save_history: keep what is remembered beside checkpoints, so that a training resumed in the middle of its
            sequences goes on with the same losses; at the published size a process's file has 1.6 GB. False: a resumed
            training remembers nothing at first, as in the published code.
        voxel_center: see ``warp_grid``; worth it for trainings that start here.
        max_sequences: see ``HistoryMemory``.
        key_ego: the camera at whose moment the ego frame of the voxels is taken.
        amp_3d: let the 3D encoder and the head follow autocast; False: float32, as published.
        tta: test-time augmentation, names of 'img_flip', 'flip_dx', 'flip_dy': all combinations are averaged.
        render_head: ``NerfHead`` (with ``alpha_init=0.5``) that compares what rays see of the classified voxels with
            2D labels, an auxiliary of training; the pipeline needs GenerateRays. None: no rendering.
        frpn, pts_bbox_head, occupancy_save_path: accepted as None for the published configs (predictions are written by
            ``tools/test.py --out``).
        data_preprocessor, init_cfg: as in mmdet3d.

    ``inputs``: ``imgs`` (B, 1, N, 3, H, W), ``sensor2ego`` and ``ego2global`` (B, 1, N, 4, 4), ``intrins``,
    ``post_rots`` (B, 1, N, 3, 3), ``post_trans`` (B, 1, N, 3), ``bda`` (B, 3, 3), ``sparse_depth`` (B, N, h, w) in
    training. ``data_samples[i].gt_occ``: ``semantics`` (X, Y, Z) uint8 and the mask; its meta information says
    where the frame stands in its sequence. Volumes are (B, C, Y, X, Z) here: the published kernels have that order.
    """

    #: timed by tools/benchmarks/model.py beside the modules
    stage_methods = ('fuse_history',)

    def __init__(
        self,
        forward_projection,
        img_bev_encoder_backbone,
        img_bev_encoder_neck,
        depth_net,
        occupancy_head,
        backward_projection=None,
        img_backbone=None,
        img_neck=None,
        use_depth_supervision=False,
        readd=False,
        fix_void=False,
        use_mask=True,
        mask='mask_camera',
        do_history=True,
        history_cat_num=16,
        history_cat_conv_out_channels=None,
        single_bev_num_channels=80,
        interpolation_mode='bilinear',
        history_interval=0.5,
        history_norm_cfg=None,
        history_init='random',
        history_dtype='float32',
        save_history=True,
        voxel_center=False,
        max_sequences=16,
        key_ego='CAM_FRONT',
        amp_3d=False,
        tta=(),
        render_head=None,
        frpn=None,
        pts_bbox_head=None,
        occupancy_save_path=None,
        data_preprocessor=None,
        init_cfg=None,
    ):
        if isinstance(data_preprocessor, dict):
            # here, from mmdet3d's registry, so that building the model needs no default scope
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        unused = dict(frpn=frpn, pts_bbox_head=pts_bbox_head, occupancy_save_path=occupancy_save_path)
        for name, value in unused.items():
            if value is not None:
                raise ConfigError(f'FBOCC.{name} is not supported, expected None')
        if mask not in ('mask_camera', 'mask_lidar'):
            raise ConfigError(f"FBOCC.mask is {mask!r}, expected 'mask_camera' or 'mask_lidar'")
        if history_init not in ('random', 'mean'):
            raise ConfigError(f"FBOCC.history_init is {history_init!r}, expected 'random' or 'mean'")
        self.img_backbone = None if img_backbone is None else MODELS.build(img_backbone)
        self.img_neck = None if img_neck is None else MODELS.build(img_neck)
        self.depth_net = MODELS.build(depth_net)
        self.forward_projection = MODELS.build(forward_projection)
        self.backward_projection = None if backward_projection is None else MODELS.build(backward_projection)
        self.img_bev_encoder_backbone = _build_encoder(img_bev_encoder_backbone)
        self.img_bev_encoder_neck = MODELS.build(img_bev_encoder_neck)
        self.occupancy_head = MODELS.build(occupancy_head)
        self.render_head = None if render_head is None else MODELS.build(render_head)
        self.use_depth_supervision = use_depth_supervision
        self.readd, self.use_mask, self.mask, self.key_ego, self.amp_3d = readd, use_mask, mask, key_ego, amp_3d
        self.tta = check_flips(tta, 'FBOCC.tta')

        self.do_history = do_history
        self.history_cat_num = history_cat_num
        self.history_interval = history_interval
        self.interpolation_mode, self.voxel_center = interpolation_mode, voxel_center
        self.history_dtype = getattr(torch, history_dtype)
        self.max_sequences = max_sequences
        self.save_history = save_history
        #: what is remembered in training and, for each test-time variant, in evaluation
        self.memories: dict[str, HistoryMemory] = {}
        if history_cat_num:
            width = single_bev_num_channels
            norm_cfg = history_norm_cfg or dict(type='SyncBN')

            def block(in_channels, out_channels):
                return nn.Sequential(
                    nn.Conv3d(in_channels, out_channels, 1),
                    build_norm_layer(norm_cfg, out_channels)[1],
                    nn.ReLU(inplace=True),
                )

            self.history_keyframe_time_conv = block(width + 1, width)
            self.history_keyframe_cat_conv = block(
                width * (history_cat_num + 1), history_cat_conv_out_channels or width
            )
            if history_init == 'mean':
                self._fuse_as_mean(width)

    @torch.no_grad()
    def _fuse_as_mean(self, width: int) -> None:
        parts = (self.history_keyframe_time_conv, 1), (self.history_keyframe_cat_conv, self.history_cat_num + 1)
        for (convolution, norm, _), frames in parts:
            nn.init.zeros_(convolution.weight)
            nn.init.zeros_(convolution.bias)
            for each in convolution.weight[:, : frames * width].split(width, dim=1):
                nn.init.dirac_(each)
                each /= frames
            nn.init.ones_(norm.bias)

    # ------------------------------------------------------------------ features

    def image_features(self, imgs):
        """(B, N, 3, H, W) -> (B, N, C, h, w)."""
        if self.img_backbone is None:
            return imgs
        x = self.img_backbone(imgs.flatten(0, 1))
        x = x[-1] if self.img_neck is None else self.img_neck(x)
        return x.unflatten(0, imgs.shape[:2])

    def cameras(self, inputs, data_samples=None) -> Cameras:
        """Calibration of the key frame, with poses in the ego frame of the moment of the camera ``key_ego``."""
        names = data_samples[0].metainfo.get('cam_names') if data_samples else None
        key = names.index(self.key_ego) if names and self.key_ego in names else 0
        if names and self.key_ego not in names:
            raise ConfigError(f'FBOCC.key_ego is {self.key_ego!r}, the samples have the cameras {names}')
        sensor2ego, ego2global = (inputs[name][:, 0].double() for name in ('sensor2ego', 'ego2global'))
        pose = torch.linalg.inv(ego2global[:, key : key + 1]) @ ego2global @ sensor2ego
        intrins, post_rots, post_trans = (inputs[name][:, 0] for name in ('intrins', 'post_rots', 'post_trans'))
        return Cameras(pose, intrins, post_rots, post_trans, inputs['bda'])

    def project(self, features, cameras: Cameras):
        """Forward and backward projection of image features (B, N, C, h, w).

        Returns:
            volume (B, C, Y, X, Z) and depth distribution (B, N, D, h, w).
        """
        vector = self.depth_net.get_mlp_input(
            cameras.sensor2keyego[..., :3, :3], cameras.sensor2keyego[..., :3, 3], *cameras[1:]
        )
        context, depth = self.depth_net(features, vector)
        volume = self.forward_projection(context, depth, *cameras)
        if self.backward_projection is not None:
            refined = self.backward_projection(context, depth, volume.mean(dim=-1), cameras)[..., None]
            volume = volume + refined if self.readd else refined.expand_as(volume)
        return volume, depth

    # ------------------------------------------------------------------ history

    def memory(self, variant: str = 'eval') -> HistoryMemory:
        """The memory of 'train', 'eval' or a test-time variant."""
        if variant not in self.memories:
            self.memories[variant] = HistoryMemory(self.max_sequences)
        return self.memories[variant]

    def reset_history(self, variant: str | None = None) -> None:
        """Forget all sequences, of one variant or of all."""
        for name in [variant] if variant else list(self.memories):
            self.memories.pop(name, None)

    def temporal_state(self) -> dict | None:
        """What is remembered in training, for ``occforge.engine.temporal``."""
        return self.memory('train').state_dict() if self.history_cat_num and self.save_history else None

    def load_temporal_state(self, state: dict) -> None:
        self.memory('train').load_state_dict(state)

    def fuse_history(self, volume, bda, frames: list[FrameInfo], memory: HistoryMemory, remember: bool = True):
        """Join the present volume with those remembered, warped into the present frame.

        Args:
            volume: (B, C, Y, X, Z).
            bda: (B, 3, 3) augmentation of the present ego frame.
            frames: where each sample stands in its sequence.
            memory: read, and written where ``remember``. Without ``remember`` each sample stands alone: the present
                volume takes the place of the previous ones, warped by the vehicle's motion as they would be.

        Returns:
            (B, C', Y, X, Z) float32. What is remembered has no gradient.
        """
        if not self.history_cat_num:
            return volume
        if len(frames) != len(volume):
            raise DataError(f'{len(frames)} frame descriptions for a batch of {len(volume)}')
        keys = [frame.sequence for frame in frames]
        if remember and len(set(keys)) < len(keys):
            raise DataError(f'a batch holds two frames of one sequence: {keys}. Use a sequence batch sampler')
        with torch.autocast(volume.device.type, enabled=False):
            volume = volume.float()
            states = [memory.get(frame) if remember else None for frame in frames]
            past = [
                self._previous(volume[i], bda[i], frame, state) for i, (frame, state) in enumerate(zip(frames, states))
            ]
            if remember:
                for i, (frame, (warped, ages)) in enumerate(zip(frames, past)):
                    kept = torch.cat([volume[i : i + 1], warped[:-1]]).detach().to(self.history_dtype)
                    kept_ages = torch.cat([ages.new_zeros(1), ages[:-1]])
                    state = SequenceState(kept, kept_ages, bda[i].detach().double(), frame.token)
                    memory.put(frame, state, len(frames))
            return self._fuse(volume, torch.stack([item[0] for item in past]), torch.stack([item[1] for item in past]))

    def _previous(self, present, bda, frame: FrameInfo, state):
        """(K, C, Y, X, Z) previous volumes in the present frame and their ages (K,) in frames.

        The first frame of a sequence stands in for its past with its gradient, as in the published code.
        """
        number = self.history_cat_num
        if frame.start:
            return present.expand(number, *present.shape), present.new_zeros(number)
        present = present.detach()
        if state is None:
            state = SequenceState(present[None], present.new_zeros(number), bda.double(), None)
        motion = frame.curr_to_prev.to(present.device, torch.float64)
        transform = augmentation_matrix(state.bda.to(present.device)) @ motion
        transform = transform @ torch.linalg.inv(augmentation_matrix(bda.double()))
        view = self.forward_projection
        grid = warp_grid(present.shape[1:], view.grid_lower, view.grid_interval, transform, self.voxel_center)
        warped = warp(state.frames.to(present.device), grid, self.interpolation_mode)
        return warped.expand(number, *present.shape), state.ages.to(present.device) + 1

    def _fuse(self, present, past, ages):
        """Convolutions over (present, past): each frame by itself with its age, then all together.

        The convolutions have 1x1x1 kernels, so they are written as matrix products that need no joint copy of the
        frames with a channel of ages.
        """
        size = present.shape[2:]
        convolution, *rest = self.history_keyframe_time_conv
        weight = convolution.weight.flatten(1)
        frames = [weight[:, :-1] @ x.flatten(3) for x in (present[:, None], past)]
        seconds = self.history_interval * F.pad(ages, (1, 0))
        joined = torch.cat(frames, dim=1)
        joined = joined + (convolution.bias + seconds[..., None] * weight[:, -1])[..., None]  # (B, K+1, C, V)
        joined = joined.flatten(0, 1).unflatten(2, size)
        for layer in rest:
            joined = layer(joined)
        convolution, *rest = self.history_keyframe_cat_conv
        joined = joined.flatten(2).unflatten(0, (len(present), -1)).flatten(1, 2)
        fused = convolution.weight.flatten(1) @ joined + convolution.bias[:, None]
        fused = fused.unflatten(2, size)
        for layer in rest:
            fused = layer(fused)
        return fused

    # ------------------------------------------------------------------ the whole

    def encode(self, volume):
        """Fused volume (B, C, Y, X, Z) -> logits (B, classes, Y', X', Z')."""
        with torch.autocast(volume.device.type, enabled=self.amp_3d and torch.is_autocast_enabled(volume.device.type)):
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
            levels = self.img_bev_encoder_neck(self.img_bev_encoder_backbone(volume))
            return self.occupancy_head(levels)

    def extract_feat(self, batch_inputs_dict, batch_data_samples=None, memory=None, remember=True):
        """Logits (B, classes, Y, X, Z) of the present frame and the depth distribution (B, N, D, h, w).

        Args:
            batch_inputs_dict, batch_data_samples: see the class.
            memory: a ``HistoryMemory``, default the one of the mode (training or evaluation).
            remember: see ``fuse_history``.
        """
        cameras = self.cameras(batch_inputs_dict, batch_data_samples)
        features = self.image_features(batch_inputs_dict['imgs'][:, 0])
        volume, depth = self.project(features, cameras)
        if self.history_cat_num:
            if not batch_data_samples:
                raise DataError('FBOCC with history_cat_num > 0 needs data samples: they say which sequence it is')
            if memory is None:
                memory = self.memory('train' if self.training else 'eval')
            frames = [FrameInfo.of(sample) for sample in batch_data_samples]
            volume = self.fuse_history(volume, cameras.bda, frames, memory, remember)
        return self.encode(volume), depth

    def targets(self, data_samples, device):
        """Network labels (B, Y, X, Z) uint8 of ``gt_occ``: Occ3D's class, one higher where the head has "void"; 255
        outside the mask and where labels are not known."""
        semantics = torch.stack([sample.gt_occ.semantics for sample in data_samples]).to(device)
        known = semantics != 255
        if self.use_mask:
            known &= torch.stack([sample.gt_occ.get(self.mask) for sample in data_samples]).to(device)
        shifted = semantics + int(self.occupancy_head.has_void)
        return torch.where(known, shifted, 255).to(torch.uint8).transpose(1, 2)

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """``loss_voxel_*_c_0`` and ``loss_depth``."""
        logits, depth = self.extract_feat(batch_inputs_dict, batch_data_samples, self.memory('train'), self.do_history)
        losses = self.occupancy_head.loss(logits, self.targets(batch_data_samples, logits.device))
        if self.render_head is not None:
            if 'rays' not in batch_inputs_dict:
                raise ConfigError("FBOCC.render_head needs 'rays': add GenerateRays to the pipeline")
            voxels = logits.permute(0, 3, 2, 4, 1)  # (B, X, Y, Z, classes)
            voxels = voxels[..., 1:] if self.occupancy_head.has_void else voxels
            seed = batch_inputs_dict.get('sample_seed')
            seed = None if seed is None else seed.flatten()[:1]
            losses.update(
                self.render_head.forward_logits(voxels, batch_inputs_dict['rays'], batch_inputs_dict['bda'], seed)
            )
        if self.use_depth_supervision:
            if 'sparse_depth' not in batch_inputs_dict:
                raise ConfigError(
                    "FBOCC.use_depth_supervision needs 'sparse_depth': add PointToMultiViewDepth to the pipeline"
                )
            losses['loss_depth'] = self.depth_net.get_depth_loss(batch_inputs_dict['sparse_depth'], depth)
        return losses

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_occ.semantics`` (X, Y, Z) uint8 to each data sample."""
        scores = self.predict_scores(batch_inputs_dict, batch_data_samples)
        for semantics, sample in zip(self.semantics_of(*scores), batch_data_samples):
            sample.pred_occ = BaseDataElement(semantics=semantics)
        return batch_data_samples

    def predict_scores(self, inputs, data_samples):
        """``predict_probability`` as what an ``OccupancyEnsemble`` averages."""
        return (self.predict_probability(inputs, data_samples),)

    def semantics_of(self, probability):
        """Classes (B, X, Y, Z) uint8 of probabilities (B, 18, X, Y, Z)."""
        return self.occupancy_head.semantics(probability)

    @property
    def variants(self) -> list[tuple[str, ...]]:
        """The test-time variants: all combinations of the flips in ``tta``."""
        return flip_variants(self.tta)

    def predict_probability(self, inputs, data_samples, memories=None):
        """Probabilities (B, 18, X, Y, Z) of Occ3D's classes, averaged over the test-time variants.

        Args:
            inputs, data_samples: see the class.
            memories: a ``HistoryMemory`` for each of ``variants``; default the model's own.
        """
        total = None
        for number, variant in enumerate(self.variants):
            memory = self.memory('+'.join(('eval', *variant))) if memories is None else memories[number]
            logits, _ = self.extract_feat(flip_inputs(inputs, variant), data_samples, memory)
            probability = self.occupancy_head.probabilities(logits)
            axes = [axis for axis, name in ((2, 'flip_dx'), (3, 'flip_dy')) if name in variant]
            probability = probability.flip(axes) if axes else probability
            total = probability if total is None else total + probability
        return total / len(self.variants)

    def open_stream(self):
        """An ``OccupancyStream``: one drive, frame after frame, with a memory of its own."""
        from .stream import OccupancyStream

        return OccupancyStream(self)

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """Logits (B, classes, Y, X, Z)."""
        return self.extract_feat(batch_inputs_dict, batch_data_samples)[0]
