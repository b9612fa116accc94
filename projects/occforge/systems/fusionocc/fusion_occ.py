"""FusionOcc: camera and LiDAR occupancy prediction."""

import copy
import functools
import math

import numpy as np
import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError
from ...models.averaging import FlipAveraging, check_flips
from ...models.losses import (
    ChunkedOccupancyLoss,
    check_extension,
    class_table,
    draw_fine_targets,
    extend_mask,
    fine_features,
)
from ...models.sparse import SparseConv3d, SparseSequential
from ...models.view_transforms import camera_vector, paint_positions

# Upstream's config names of the 3D encoder beside the names of the attributes (the checkpoint's keys).
_ALIASES = dict(
    img_bev_encoder_backbone='occ_encoder_backbone',
    img_bev_encoder_neck='occ_encoder_neck',
)


def _build(config, **inferred):
    """Build a module; ``inferred`` fills the fields that the config leaves out and must agree with those it sets."""
    config = copy.deepcopy(config)
    for name, value in inferred.items():
        found = config.get(name)
        if found is not None and found != value:
            raise ConfigError(f'{config["type"]}.{name} is {found}, but the modules before it give {value} channels')
        config[name] = value
    return MODELS.build(config)


@MODELS.register_module()
class FusionOCC(FlipAveraging, Base3DDetector):
    """Voxel features from cameras (lifted with LiDAR-aided depth) and LiDAR (sparse convolutions), concatenated,
    encoded in 3D and classified voxel by voxel.

    Source: "FusionOcc: Multi-Modal Fusion for 3D Occupancy Prediction", ACM MM 2024 (doi 10.1145/3664647.3681293).

    The modality is configuration: ``use_lidar=False`` is the camera-only model, ``use_camera=False`` the LiDAR-only
    one; input channels of the 3D encoder that the config leaves out follow.

    Args:
        img_backbone, img_neck, img_view_transformer, pre_process: camera branch; ``pre_process`` encodes each frame's
            volume. Ignored with ``use_camera=False``.
        occ_encoder_backbone, occ_encoder_neck: 3D encoder (also accepted as ``img_bev_encoder_backbone`` and
            ``img_bev_encoder_neck``). ``numC_input`` may be left out.
        loss_occ: ``OccupancyLoss``; the published ``CrossEntropyLoss(use_sigmoid=False)`` is taken as one.
        out_dim: channels of the encoded volume.
        use_mask: supervise only the voxels that a camera observes (training; the metric has its own field).
        num_classes: classes, "free" last.
        use_predicter: classify with a two-layer MLP; False lets ``final_conv`` give the logits.
        point_cloud_range, voxel_size, lidar_in_channel, lidar_out_channel: of the LiDAR encoder that is built where
            ``lidar_encoder`` is not given.
        fuse_loss_weight: weight of the depth and the segmentation loss.
        depth_loss_weight, seg_loss_weight: own weights of the two, default ``fuse_loss_weight``.
        img_seg_head: supervise the image features themselves, too: True by a linear classifier of their pixels, a
            config (``PixelSegHead``, without ``num_classes``) by that one, which gets the backbone's first map beside
            them. The published path to the segmentation loss is ten layers longer, which costs a short training half
            of its 2D accuracy.
        point_painting: the LiDAR voxels get the classes that ``img_seg_head`` sees in the pixels that they project to
            (``paint_positions``), so that semantics reach the points without passing the depth bins. Camera frames
            behind those of ``num_adj`` paint, too, without gradients, however many the pipeline gives: most of what a
            vehicle's earlier clouds hold is hidden from its cameras by now, but was not then.
        num_adj: previous camera frames that are lifted.
        use_lidar, use_camera: modality.
        lidar_encoder: config of another LiDAR encoder.
        volume_downsample: brings the volumes of both sensors, concatenated, to a coarser grid before they are
            encoded: ``dict(out_channels, stride)``, a convolution with kernel = stride, norm and ReLU; a sparse one of
            the LiDAR's voxels with ``coarse_camera``.
        occ_upsample: ``SkipUpsample3D`` that brings the encoded volume back, joined with the concatenated volumes.
            ``in_channels`` and ``skip_channels`` may be left out.
        coarse_camera: the camera's volume is lifted to the encoder's grid and joins behind ``volume_downsample``, which
            then serves the LiDAR alone.
        final_kernel: size of the last convolution. With 1 and ``occ_upsample`` all that follows the encoder acts voxel
            by voxel, and the training computes it at the supervised voxels only.
        norm_cfg: norm layer of ``volume_downsample``, by default batch norm.
        free_prior: probability of "free" that an untrained model starts with (its bias is set so), or None for torch's
            initialisation. Saves a short training the steps that only learn that most voxels are free.
        mask_extension: voxels supervised besides those of the mask: ``dict(where='occupied' or 'free', radius=m or
            None)``, see ``extend_mask``.
        query_ratio: answer on a grid this many times finer (an integer, or three: x, y, z) than the encoded volume: its
            features are interpolated at the centres of the fine voxels and classified there. Training looks at voxels
            drawn from labels of that grid (LoadFineOccGT with ``form='voxels'``); needs ``ChunkedOccupancyLoss``, whose
            ``free_keep`` then has no use. None: the volume's own grid.
        query_budget: voxels drawn a sample and step.
        query_skip_free: in prediction, cells that are free and touch only free cells (26 neighbours), judged at their
            centres, are taken to be free throughout. Most of a scene is; False looks at every fine voxel.
        temperature: logits of ``mode='tensor'`` are divided by it, for calibrated probabilities.
        render_head: ``NerfHead`` (with ``alpha_init=0.5``) that compares what rays see of the classified voxels with
            2D labels, an auxiliary of training; the pipeline needs GenerateRays. None: no rendering.
        tta: test-time augmentation, names of 'img_flip', 'flip_dx', 'flip_dy': all combinations are averaged. Not with
            ``query_ratio``.
        key_ego: whose ego pose is the key ego frame: ``'first_camera'``, that of the first camera's moment (published;
            labels and points are in the frame of the LiDAR's moment, some tens of milliseconds away, which is ignored),
            or ``'lidar'``, that of the LiDAR's moment (``ego2global`` of the data sample).
        align_after_view_transformation: accepted for the published configs, where it has no effect: frames are
            aligned inside the lift.
        class_wise: accepted for the published configs, unused there.
        data_preprocessor, init_cfg: as in mmdet3d.

    ``inputs`` (camera part): ``imgs`` (B, T, N, 3, H, W) with the key frame first, T = 1 + num_adj or, with
    ``point_painting``, more; ``sensor2ego`` and ``ego2global`` (B, T, N, 4, 4); ``intrins``, ``post_rots``
    (B, T, N, 3, 3); ``post_trans`` (B, T, N, 3); ``bda`` (B, 3, 3); ``sparse_depth`` and, in training, ``segs``
    (B, N, H, W) or reduced to a feature map; ``sample_seed`` (B,), seeds of the model's random draws. LiDAR part:
    ``points``, a list of B tensors (P, F).
    ``data_samples[i].gt_occ``: ``semantics`` (X, Y, Z) uint8, ``mask_camera`` (X, Y, Z) bool.
    """

    def __init__(
        self,
        img_backbone=None,
        img_neck=None,
        img_view_transformer=None,
        pre_process=None,
        occ_encoder_backbone=None,
        occ_encoder_neck=None,
        img_bev_encoder_backbone=None,
        img_bev_encoder_neck=None,
        loss_occ=None,
        out_dim=32,
        use_mask=False,
        num_classes=18,
        use_predicter=True,
        class_wise=False,
        point_cloud_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
        voxel_size=(0.05, 0.05, 0.05),
        lidar_in_channel=5,
        lidar_out_channel=32,
        fuse_loss_weight=0.1,
        depth_loss_weight=None,
        seg_loss_weight=None,
        img_seg_head=False,
        point_painting=False,
        num_adj=1,
        align_after_view_transformation=False,
        use_lidar=True,
        use_camera=True,
        lidar_encoder=None,
        volume_downsample=None,
        coarse_camera=False,
        occ_upsample=None,
        final_kernel=3,
        norm_cfg=None,
        free_prior=None,
        mask_extension=None,
        query_ratio=None,
        query_budget=1 << 18,
        query_skip_free=False,
        temperature=1.0,
        render_head=None,
        tta=(),
        key_ego='first_camera',
        data_preprocessor=None,
        init_cfg=None,
    ):
        if isinstance(data_preprocessor, dict):
            # here, from mmdet3d's registry, so that building the model needs no default scope
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not (use_lidar or use_camera):
            raise ConfigError('FusionOCC: use_lidar and use_camera are both False, nothing is left to see with')
        if key_ego not in ('first_camera', 'lidar'):
            raise ConfigError(f"FusionOCC.key_ego is '{key_ego}', expected 'first_camera' or 'lidar'")
        self.key_ego = key_ego
        self.render_head = None if render_head is None else MODELS.build(render_head)
        given = dict(
            img_bev_encoder_backbone=(occ_encoder_backbone, img_bev_encoder_backbone),
            img_bev_encoder_neck=(occ_encoder_neck, img_bev_encoder_neck),
        )
        encoder = {}
        for name, values in given.items():
            if sum(value is not None for value in values) != 1:
                raise ConfigError(f'FusionOCC needs exactly one of {_ALIASES[name]} and {name}')
            encoder[name] = next(value for value in values if value is not None)

        self.use_mask, self.num_classes, self.num_frames = use_mask, num_classes, num_adj + 1
        self.depth_loss_weight = fuse_loss_weight if depth_loss_weight is None else depth_loss_weight
        self.seg_loss_weight = fuse_loss_weight if seg_loss_weight is None else seg_loss_weight
        self.use_lidar, self.use_camera = use_lidar, use_camera
        self.tta = check_flips(tta, 'FusionOCC.tta', with_images=use_camera)
        if tta and query_ratio is not None:
            raise ConfigError('FusionOCC.tta averages the voxels of the volume, query_ratio asks for finer ones')
        self.point_cloud_range = tuple(point_cloud_range)
        self.mask_extension, self.temperature = mask_extension, temperature
        if temperature <= 0:
            raise ConfigError(f'FusionOCC.temperature is {temperature}, expected a number above 0')
        if mask_extension is not None:
            check_extension(mask_extension, 'FusionOCC.mask_extension')
        self.point_painting = point_painting
        self.image_only = False  # a phase of the training, set by ImagePretrainHook
        if point_painting and not (use_lidar and use_camera and img_seg_head):
            raise ConfigError('FusionOCC.point_painting needs use_lidar, use_camera and an img_seg_head')

        channels = camera_channels = 0
        self.img_seg_head = None
        self.img_backbone = self.img_neck = self.img_view_transformer = self.pre_process_net = None
        if use_camera:
            if img_backbone is None or img_view_transformer is None:
                raise ConfigError('FusionOCC: img_backbone and img_view_transformer are needed unless use_camera=False')
            self.img_backbone = MODELS.build(img_backbone)
            self.img_neck = None if img_neck is None else MODELS.build(img_neck)
            self.img_view_transformer = MODELS.build(img_view_transformer)
            if img_seg_head is True:
                self.img_seg_head = nn.Conv2d(img_view_transformer['in_channels'], num_classes, 1)
            elif img_seg_head:
                self.img_seg_head = _build(img_seg_head, num_classes=num_classes)
            volume_channels = self.img_view_transformer.out_channels
            if pre_process is not None:
                self.pre_process_net = _build(pre_process, numC_input=volume_channels)
                volume_channels = pre_process.get('num_channels', [2 * volume_channels])[-1]
            camera_channels = volume_channels * self.num_frames

        self.lidar_encoder = self.volume_downsample = self.occ_upsample = None
        if use_lidar:
            if lidar_encoder is None:
                lidar_encoder = dict(
                    type='CustomSparseEncoder',
                    in_channels=lidar_in_channel,
                    point_cloud_range=point_cloud_range,
                    voxel_size=voxel_size,
                    sparse_shape=[
                        round((point_cloud_range[i + 3] - point_cloud_range[i]) / voxel_size[i]) for i in range(3)
                    ],
                    output_channels=lidar_out_channel,
                )
            inferred = dict(output_channels=lidar_out_channel)
            if point_painting:
                inferred['paint_channels'] = num_classes  # all but "free", and whether something hides it
            self.lidar_encoder = _build(lidar_encoder, **inferred)
            channels += lidar_out_channel

        self.coarse_camera = coarse_camera
        if coarse_camera and (volume_downsample is None or occ_upsample is None):
            raise ConfigError('FusionOCC.coarse_camera needs volume_downsample and occ_upsample')
        if not coarse_camera:
            channels += camera_channels
        width = channels
        if coarse_camera and channels:
            width, stride = volume_downsample['out_channels'], volume_downsample['stride']
            self.volume_downsample = SparseSequential(
                SparseConv3d(channels, width, stride, stride=stride, bias=False),
                build_norm_layer(norm_cfg or dict(type='BN1d'), width)[1],
                nn.ReLU(inplace=True),
            )
        elif volume_downsample is not None and channels:
            width, stride = volume_downsample['out_channels'], volume_downsample['stride']
            self.volume_downsample = ConvModule(
                channels,
                width,
                stride,
                stride=stride,
                bias=False,
                conv_cfg=dict(type='VolumeConv3d'),
                norm_cfg=norm_cfg or dict(type='BN3d'),
            )
        if coarse_camera:
            width += camera_channels
        self.img_bev_encoder_backbone = _build(encoder['img_bev_encoder_backbone'], numC_input=width)
        self.img_bev_encoder_neck = MODELS.build(encoder['img_bev_encoder_neck'])
        width = encoder['img_bev_encoder_neck']['out_channels']
        if occ_upsample is not None:
            self.occ_upsample = _build(occ_upsample, in_channels=width, skip_channels=channels)
            width = occ_upsample['out_channels']

        self.final_conv = ConvModule(
            width,
            out_dim if use_predicter else num_classes,
            final_kernel,
            padding=final_kernel // 2,
            bias=True,
            conv_cfg=dict(type='VolumeConv3d'),
        )
        self.predicter = None
        if use_predicter:
            self.predicter = nn.Sequential(
                nn.Linear(out_dim, 2 * out_dim), nn.Softplus(), nn.Linear(2 * out_dim, num_classes)
            )
        if free_prior is not None and not 0 < free_prior < 1:
            raise ConfigError(f'FusionOCC.free_prior is {free_prior}, expected a probability in (0, 1)')
        self.free_prior = free_prior
        self.loss_occ = self._build_loss(loss_occ, num_classes)
        if query_ratio is not None:
            query_ratio = (query_ratio,) * 3 if isinstance(query_ratio, int) else tuple(query_ratio)
            if len(query_ratio) != 3 or min(query_ratio) < 1:
                raise ConfigError(
                    f'FusionOCC.query_ratio is {query_ratio}, expected one or three integers of 1 or more'
                )
            if not isinstance(self.loss_occ, ChunkedOccupancyLoss):
                raise ConfigError("FusionOCC.query_ratio needs loss_occ=dict(type='ChunkedOccupancyLoss')")
        self.query_ratio, self.query_budget, self.query_skip_free = query_ratio, query_budget, query_skip_free
        self.pointwise = occ_upsample is not None and final_kernel == 1 and query_ratio is None
        self.pointwise &= not isinstance(self.loss_occ, ChunkedOccupancyLoss)

    def init_weights(self):
        super().init_weights()
        if self.free_prior is not None:
            last = self.final_conv.conv if self.predicter is None else self.predicter[-1]
            with torch.no_grad():
                others = (1 - self.free_prior) / (self.num_classes - 1)
                last.bias.zero_()
                last.bias[self.num_classes - 1] = math.log(self.free_prior / others)

    @staticmethod
    def _build_loss(config, num_classes):
        config = dict(config or dict(type='OccupancyLoss'))
        if config['type'] in ('CrossEntropyLoss', 'mmdet.CrossEntropyLoss'):
            if config.get('use_sigmoid', False):
                raise ConfigError('loss_occ.use_sigmoid must be False: classes exclude each other')
            kept = {name: config[name] for name in ('loss_weight', 'class_weight') if name in config}
            config = dict(type='OccupancyLoss', **kept)
        config.setdefault('free_index', num_classes - 1)
        return _build(config, num_classes=num_classes)

    @property
    def class_axes(self) -> dict:
        """Where the classes are, for checkpoints with other ones (``occforge.engine.partial_load``)."""
        axes = {'predicter.2': 0} if self.predicter is not None else {'final_conv.conv': 0}
        if self.use_camera:
            head = 'img_seg_head' if isinstance(self.img_seg_head, nn.Conv2d) else 'img_seg_head.classify'
            axes.update({head: 0, 'img_view_transformer.depth_seg_net.seg_out': 0})
        if self.point_painting:
            # how clear the view is stands where "free" would, behind the points' own features and the offsets
            start = self.lidar_encoder.in_channels + 3 * self.lidar_encoder.voxel_offsets
            axes['lidar_encoder.conv_input.0.weight'] = dict(axis=4, start=start)
        return axes

    # ------------------------------------------------------------------ features

    def extract_feat(self, batch_inputs_dict, batch_data_samples=None):
        """Encoded volume (B, out_dim, Z, Y, X) on the label grid and the camera branch's auxiliary outputs.

        Returns:
            The volume, and ``dict(depth, seg, depth_bins)`` of the key frame (empty without cameras).
        """
        encoded, fine, auxiliary = self.encode(batch_inputs_dict, batch_data_samples)
        if self.occ_upsample is not None:
            encoded = self.occ_upsample(encoded, fine)
        return self.final_conv(encoded), auxiliary

    def encode(self, batch_inputs_dict, batch_data_samples=None):
        """Both sensors' volumes and what the 3D encoder makes of them.

        Returns:
            The encoded volume (B, C, Z, Y, X) on the encoder's grid, the sensors' volumes that entered
            ``volume_downsample``, concatenated, on their grid (with ``coarse_camera`` the LiDAR's ``SparseTensor``,
            None without LiDAR), and the camera branch's auxiliary outputs.
        """
        cameras, auxiliary, lidar = [], {}, None
        if self.use_camera:
            cameras, auxiliary = self.extract_camera(batch_inputs_dict, batch_data_samples)
        if self.use_lidar:
            lidar = self.extract_lidar(batch_inputs_dict, auxiliary.pop('paint', None))
        if self.coarse_camera:
            fine = lidar
            coarse = [] if fine is None else [self.volume_downsample(fine).dense('zyx')]
            x = self._join(cameras + coarse, 'camera and downsampled LiDAR')
        else:
            fine = self._join(cameras + ([] if lidar is None else [lidar]), 'camera and LiDAR')
            x = fine if self.volume_downsample is None else self.volume_downsample(fine)
        return self.img_bev_encoder_neck(self.img_bev_encoder_backbone(x)), fine, auxiliary

    @staticmethod
    def _join(volumes, what):
        sizes = {tuple(volume.shape[2:]) for volume in volumes}
        if len(sizes) > 1:
            raise ConfigError(f'{what} volumes have the grids (Z, Y, X) {sorted(sizes)}, expected one')
        if torch.is_autocast_enabled(volumes[0].device.type):
            # once here, before the largest tensor of the network, instead of in each of its consumers
            volumes = [volume.to(torch.get_autocast_dtype(volume.device.type)) for volume in volumes]
        volume = volumes[0]
        if len(volumes) > 1:  # with the channels last, as they lie in memory: several times faster than along dim 1
            volume = torch.cat([each.movedim(1, -1) for each in volumes], dim=-1).movedim(-1, 1)
        return volume.contiguous(memory_format=torch.channels_last_3d)

    def extract_lidar(self, inputs, paint=None):
        """LiDAR volume (B, C, Z, Y, X), with ``coarse_camera`` the ``SparseTensor`` of its voxels.

        ``paint``: function of positions and samples, see ``CustomSparseEncoder``.
        """
        options = {} if paint is None else dict(paint=paint)
        if self.coarse_camera:
            options['dense'] = False
        return self.lidar_encoder(inputs['points'], **options)

    def extract_camera(self, inputs, data_samples=None):
        """Camera volumes, oldest frame first and the key frame last, and the key frame's auxiliary outputs."""
        imgs, view = inputs['imgs'], self.img_view_transformer
        if imgs.shape[1] < self.num_frames or (imgs.shape[1] > self.num_frames and not self.point_painting):
            raise ConfigError(
                f'FusionOCC.num_adj asks for {self.num_frames} camera frames, the pipeline gives {imgs.shape[1]}'
            )
        sensor2keyego, depth_bins = self._camera_geometry(inputs, data_samples)
        bda = inputs['bda']
        volumes, auxiliary = [], {}
        for frame in reversed(range(self.num_frames)):
            intrins, post_rots, post_trans = (inputs[key][:, frame] for key in ('intrins', 'post_rots', 'post_trans'))
            # The published model describes each frame's cameras by their pose in the key frame, and gives the key
            # frame's depth to every frame; its weights expect both.
            camera = camera_vector(sensor2keyego[:, 0], intrins, post_rots, post_trans, bda)
            with torch.set_grad_enabled(torch.is_grad_enabled() and frame == 0):
                finest, features = self.image_features(imgs[:, frame])
                volume, depth, seg = view(
                    features,
                    sensor2keyego[:, frame],
                    intrins,
                    post_rots,
                    post_trans,
                    bda,
                    camera,
                    depth_bins,
                    inputs.get('sample_seed'),
                )
                volume = volume.contiguous(memory_format=torch.channels_last_3d)
                if self.pre_process_net is not None:
                    volume = self.pre_process_net(volume)[0]
            volumes.append(volume)
            if frame == 0:
                auxiliary = dict(depth=depth, seg=seg, depth_bins=depth_bins)
                if self.img_seg_head is not None and (self.training or self.point_painting):
                    auxiliary['img_seg'] = self.pixel_classes(finest, features)
        if self.point_painting:
            auxiliary['paint'] = self._paint(inputs, auxiliary['img_seg'], sensor2keyego)
        return volumes, auxiliary

    def _paint(self, inputs, key_logits, sensor2keyego):
        """``paint_positions`` with the classes of the pixels of the key frame and of those behind ``num_adj``."""
        frames = [0, *range(self.num_frames, sensor2keyego.shape[1])]
        logits, shape = [key_logits], sensor2keyego.shape[:1] + sensor2keyego.shape[2:3]
        with torch.no_grad():
            logits += [self.pixel_classes(*self.image_features(inputs['imgs'][:, frame])) for frame in frames[1:]]
        scores = [part.float().softmax(1)[:, : self.num_classes - 1].unflatten(0, shape) for part in logits]
        cameras = {name: inputs[name][:, frames].flatten(1, 2) for name in ('intrins', 'post_rots', 'post_trans')}
        # where a scene has no earlier frame, the pipeline repeats the last one it has: nothing new to see
        poses = sensor2keyego[:, frames].flatten(2)
        repeated = (poses[:, :, None] == poses[:, None]).all(-1).tril(-1).any(-1)
        return functools.partial(
            paint_positions,
            features=torch.cat(scores, 1),
            sensor2keyego=sensor2keyego[:, frames].flatten(1, 2),
            bda=inputs['bda'],
            input_size=self.img_view_transformer.input_size,
            used=~repeated.repeat_interleave(shape[1], 1),
            **cameras,
        )

    def pixel_classes(self, finest, features):
        """Logits (B*N, num_classes, h', w') of ``img_seg_head`` from what ``image_features`` gives."""
        features = features.flatten(0, 1)
        if isinstance(self.img_seg_head, nn.Conv2d):
            return self.img_seg_head(features)
        return self.img_seg_head(finest, features)

    def _camera_geometry(self, inputs, data_samples):
        """Poses (B, T, N, 4, 4) in the key ego frame and the depth bins of the LiDAR's depth, or None."""
        view = self.img_view_transformer
        key_ego2global = None
        if self.key_ego == 'lidar':
            key_ego2global = self._lidar_ego_pose(data_samples).to(inputs['imgs'].device)
        sensor2keyego = self.sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global'], key_ego2global)
        sparse_depth = inputs.get('sparse_depth')
        depth_bins = None if sparse_depth is None else view.depth_bins(sparse_depth)
        if depth_bins is None and getattr(view, 'use_depth_input', False):
            raise ConfigError(
                "the pipeline gives no 'sparse_depth': add PointToMultiViewDepth, or set "
                'img_view_transformer.use_depth_input=False'
            )
        return sensor2keyego, depth_bins

    def image_auxiliary(self, inputs, data_samples=None):
        """The camera branch's auxiliary outputs of the key frame (see ``extract_feat``) without its volume."""
        sensor2keyego, depth_bins = self._camera_geometry(inputs, data_samples)
        finest, features = self.image_features(inputs['imgs'][:, 0])
        cameras = [inputs[key][:, 0] for key in ('intrins', 'post_rots', 'post_trans')]
        camera = camera_vector(sensor2keyego[:, 0], *cameras, inputs['bda'])
        depth, _, seg = self.img_view_transformer.encode(features, camera, depth_bins, inputs.get('sample_seed'))
        auxiliary = dict(depth=depth, seg=seg, depth_bins=depth_bins)
        if self.img_seg_head is not None:
            auxiliary['img_seg'] = self.pixel_classes(finest, features)
        return auxiliary

    def image_features(self, imgs):
        """(B, N, 3, H, W) -> the backbone's first map (B*N, C0, h0, w0) and the neck's (B, N, C, h, w)."""
        x = self.img_backbone(imgs.flatten(0, 1))
        if getattr(self.img_backbone, 'return_stereo_feat', False):
            x = x[1:]  # for temporal stereo, which this system has not
        features = x[-1] if self.img_neck is None else self.img_neck(x)
        return x[0], features.unflatten(0, imgs.shape[:2])

    @staticmethod
    def sensor_to_key_ego(sensor2ego, ego2global, key_ego2global=None):
        """Camera poses in the key ego frame.

        Args:
            sensor2ego, ego2global: (B, T, N, 4, 4), ego pose at each camera's own moment.
            key_ego2global: (B, 4, 4); default the ego pose of the first camera of the key frame.

        Returns:
            (B, T, N, 4, 4) float64, the product in float64: global translations are kilometres.
        """
        sensor2ego, ego2global = sensor2ego.double(), ego2global.double()
        global2key = torch.linalg.inv(ego2global[:, 0, 0] if key_ego2global is None else key_ego2global.double())
        return global2key[:, None, None] @ ego2global @ sensor2ego

    @staticmethod
    def _lidar_ego_pose(data_samples):
        """(B, 4, 4) float64 ego poses at the LiDAR's moment, from the meta information."""
        poses = [sample.metainfo.get('ego2global') for sample in data_samples or ()]
        if not poses or any(pose is None for pose in poses):
            raise ConfigError("FusionOCC.key_ego='lidar' needs data samples with the meta field 'ego2global'")
        return torch.as_tensor(np.array(poses, dtype=np.float64))

    # ------------------------------------------------------------------ loss and prediction

    def classify(self, features):
        """Logits of voxel features (..., C) -> (..., num_classes)."""
        return features if self.predicter is None else self.predicter(features)

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Losses of a batch: ``loss_occ`` (and ``loss_lovasz``), ``depth_loss`` and ``seg_loss``.

        While ``image_only`` is set (``ImagePretrainHook``) those of the camera branch alone, without lifting anything.
        """
        if self.image_only:
            auxiliary = self.image_auxiliary(batch_inputs_dict, batch_data_samples)
            return self.camera_losses(auxiliary, batch_inputs_dict.get('segs'))
        sample_seed = batch_inputs_dict.get('sample_seed')
        if self.pointwise:
            encoded, fine, auxiliary = self.encode(batch_inputs_dict, batch_data_samples)
            losses = self.pointwise_loss(encoded, fine, batch_data_samples, sample_seed)
            volume = None if self.render_head is None else self.final_conv(self.occ_upsample(encoded, fine))
        else:
            volume, auxiliary = self.extract_feat(batch_inputs_dict, batch_data_samples)
            losses = self.occupancy_loss(volume, batch_data_samples, sample_seed)
        if self.render_head is not None:
            if 'rays' not in batch_inputs_dict:
                raise ConfigError("FusionOCC.render_head needs 'rays': add GenerateRays to the pipeline")
            logits = self.classify(volume.permute(0, 4, 3, 2, 1))
            seed = None if sample_seed is None else sample_seed.flatten()[:1]
            losses.update(
                self.render_head.forward_logits(logits, batch_inputs_dict['rays'], batch_inputs_dict['bda'], seed)
            )
        if auxiliary:
            losses.update(self.camera_losses(auxiliary, batch_inputs_dict.get('segs')))
        return losses

    def occupancy_loss(self, volume, data_samples, sample_seed=None):
        """Loss of an encoded volume (B, C, Z, Y, X); supervised voxels are chosen before they are classified."""
        if self.query_ratio is not None:
            return self._query_loss(volume, data_samples, sample_seed)
        targets, rows = self._supervised(volume.shape[2:], volume.device, data_samples, sample_seed)
        features = volume.permute(0, 2, 3, 4, 1).reshape(-1, volume.shape[1])
        if isinstance(self.loss_occ, ChunkedOccupancyLoss):
            return self.loss_occ.forward_queries(
                lambda chosen: self.classify(features[chosen]), (rows,), targets, masked=self.use_mask
            )
        return self.loss_occ(self.classify(features.index_select(0, rows)), targets, masked=self.use_mask)

    def pointwise_loss(self, encoded, fine, data_samples, sample_seed=None):
        """The same loss where all that follows the 3D encoder acts voxel by voxel: only chosen voxels are computed."""
        scale = self.occ_upsample.scale_factor
        grid = tuple(scale * side for side in encoded.shape[2:])  # (Z, Y, X)
        targets, rows = self._supervised(grid, encoded.device, data_samples, sample_seed)
        features = self.occ_upsample.at(encoded, fine, rows)
        conv = self.final_conv.conv
        features = self.final_conv.activate(F.linear(features, conv.weight.flatten(1), conv.bias))
        return self.loss_occ(self.classify(features), targets, masked=self.use_mask)

    def _supervised(self, grid, device, data_samples, sample_seed):
        """Targets of a grid (Z, Y, X), and their positions in the flattened (B, Z, Y, X)."""
        targets = self._targets(data_samples, tuple(grid[::-1]), device, sample_seed)
        sample, x, y, z = torch.unravel_index(targets.index, (len(data_samples), *grid[::-1]))
        return targets, ((sample * grid[0] + z) * grid[1] + y) * grid[2] + x

    def _targets(self, data_samples, grid, device, sample_seed):
        """What the loss compares the logits of a grid (X, Y, Z) with."""
        if 'fine' in data_samples[0].gt_occ:
            if self.mask_extension is not None:
                raise ConfigError('FusionOCC.mask_extension needs labels on the grid of the logits, found fine ones')
            tables = [
                class_table(sample.gt_occ.fine.to(device), grid, self.num_classes, self.use_mask)
                for sample in data_samples
            ]
            return self.loss_occ.count_targets(tables, grid, sample_seed)
        semantics = torch.stack([sample.gt_occ.semantics for sample in data_samples]).to(device)
        mask = None
        if self.use_mask:
            mask = torch.stack([sample.gt_occ.mask_camera for sample in data_samples]).to(device)
            if self.mask_extension is not None:
                free = self.num_classes - 1
                mask = extend_mask(mask, semantics, free, self.point_cloud_range, **self.mask_extension)
        return self.loss_occ.targets(semantics, mask, grid, sample_seed)

    def _fine_shape(self, volume):
        """(X, Y, Z) of the grid that is asked for a volume (..., Z, Y, X)."""
        return tuple(side * ratio for side, ratio in zip(volume.shape[:-4:-1], self.query_ratio))

    def _query_loss(self, volume, data_samples, sample_seed):
        """Loss at fine voxels drawn from the labels."""
        shape, free = self._fine_shape(volume), self.num_classes - 1
        semantics = torch.stack([sample.gt_occ.semantics for sample in data_samples]).to(volume.device)
        if semantics.shape[1:] != shape:
            raise DataError(
                f'labels have the grid {tuple(semantics.shape[1:])}, FusionOCC.query_ratio asks for {shape}: see '
                "LoadFineOccGT with form='voxels'"
            )
        mask = None
        if self.use_mask:
            mask = torch.stack([sample.gt_occ.mask_camera for sample in data_samples]).to(volume.device)
        targets = draw_fine_targets(
            semantics, mask, self.query_budget, self.num_classes, free, self.loss_occ.ignore_index, sample_seed
        )
        volume = volume.float()  # coordinates of so many voxels need float32, and features must agree
        return self.loss_occ.forward_queries(
            lambda index: self.classify(fine_features(volume, index, shape)),
            (targets.index,),
            targets,
            masked=self.use_mask,
        )

    def camera_losses(self, auxiliary, segs):
        """Losses on the camera branch's depth and semantics, where there are labels."""
        losses, view = {}, self.img_view_transformer
        if auxiliary['depth_bins'] is not None and self.depth_loss_weight:
            depth_loss = view.depth_loss(auxiliary['depth_bins'], auxiliary['depth'])
            losses['depth_loss'] = self.depth_loss_weight * depth_loss
        if segs is not None and self.seg_loss_weight:
            losses['seg_loss'] = self.seg_loss_weight * view.seg_loss(segs, auxiliary['seg'])
            if 'img_seg' in auxiliary:
                losses['img_seg_loss'] = self.seg_loss_weight * view.seg_loss(segs, auxiliary['img_seg'])
        return losses

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_occ.semantics`` (X, Y, Z) uint8 to each data sample."""
        if self.tta:
            return super().predict(batch_inputs_dict, batch_data_samples)
        volume, _ = self.extract_feat(batch_inputs_dict, batch_data_samples)
        for features, sample in zip(volume, batch_data_samples):
            if self.query_ratio is None or self.query_skip_free:
                # plane by plane of z: the hidden layer of all voxels would be many times the volume
                planes = [self.classify(plane.permute(2, 1, 0)).argmax(dim=-1) for plane in features.unbind(1)]
                semantics = torch.stack(planes, dim=-1).to(torch.uint8)
            if self.query_ratio is not None:
                cells = None
                if self.query_skip_free:
                    occupied = (semantics != self.num_classes - 1).float()
                    cells = F.max_pool3d(occupied[None, None], 3, stride=1, padding=1)[0, 0].nonzero()
                semantics = self._predict_fine(features, cells)
            sample.pred_occ = BaseDataElement(semantics=semantics)
        return batch_data_samples

    def voxel_scores(self, inputs, data_samples=None):
        """Probabilities (B, X, Y, Z, num_classes)."""
        if self.query_ratio is not None:
            raise ConfigError('FusionOCC.query_ratio: fine voxels are classified, but not averaged')
        volume, _ = self.extract_feat(inputs, data_samples)
        planes = [
            (self.classify(plane.permute(0, 3, 2, 1)).float() / self.temperature).softmax(-1)
            for plane in volume.unbind(2)
        ]
        return (torch.stack(planes, dim=3),)

    def _predict_fine(self, features, cells=None):
        """Classes (X', Y', Z') uint8 of the fine voxels of a volume (C, Z, Y, X).

        ``cells`` (K, 3): those (x, y, z) that are looked at, the others are free; None: all.
        """
        shape, ratio = self._fine_shape(features), features.new_tensor(self.query_ratio, dtype=torch.long)
        if cells is None:
            cells = torch.ones(features.shape[:0:-1], dtype=torch.bool, device=features.device).nonzero()
        inside = torch.cartesian_prod(*(torch.arange(side, device=features.device) for side in self.query_ratio))
        semantics = torch.full(shape, self.num_classes - 1, dtype=torch.uint8, device=features.device)
        volume = features[None].float()
        for part in cells.split(max(1, self.loss_occ.chunk_size // len(inside))):
            x, y, z = (part[:, None] * ratio + inside.view(-1, 3)).flatten(0, 1).unbind(1)
            index = (x * shape[1] + y) * shape[2] + z
            logits = self.classify(fine_features(volume, index, shape))
            semantics.view(-1)[index] = logits.argmax(dim=1).to(torch.uint8)
        return semantics

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """Logits (B, X, Y, Z, num_classes)."""
        volume, _ = self.extract_feat(batch_inputs_dict, batch_data_samples)
        return self.classify(volume.permute(0, 4, 3, 2, 1)) / self.temperature
