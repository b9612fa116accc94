"""UniOcc's and RenderOcc's detectors: occupancy from rendered depth and semantics, with or without 3D labels."""

import math

import torch
from mmdet3d.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn import functional as F

from ...engine.amp import float32_island
from ...engine.dist import reduce_mean_count
from ...errors import ConfigError
from ...models.losses.rendering import RENDEROCC_VOXEL_COUNTS
from ...models.losses.voxel_terms import log_frequency_weights
from .stereo_occ import StereoVolumeDetector

NUM_SEMANTIC = 17  # classes but "free"
FREE = 17
UNKNOWN = 255


@MODELS.register_module(name=['RenderOcc', 'UniOcc'])
class RenderOcc(StereoVolumeDetector):
    """Each voxel has a density and semantics; images supervise them by rendering, 3D labels where there are any.

    Source: Pan et al., "UniOcc: Unifying Vision-Centric 3D Occupancy Prediction with Geometric and Semantic Rendering",
    2023 (arXiv 2306.09117), and "RenderOcc: Vision-Centric 3D Occupancy Prediction with 2D Rendering Supervision", ICRA
    2024. Parameter names and shapes are those of the published checkpoints.

    Of a voxel's two densities the first is what rays see (raw density, also the logit of "occupied"), the second the
    logit of "free". Testing renders nothing: a voxel is free unless its density says otherwise.

    Args:
        nerf_head: ``NerfHead``; None: no rendering.
        use_3d_loss: supervise with 3D labels.
        use_mask: the 3D losses look only at the voxels of ``mask``.
        mask: 'mask_camera' or 'mask_lidar'.
        weight_3d_geo, weight_3d_sem: factors of the 3D losses.
        balance_cls_weight: weights 1 / ln(voxels of the class) in the 3D semantic loss.
        final_softplus: softplus behind the densities, too.
        test_threshold: of ``decode``.
        decode: 'threshold': occupied where density 0 is above ``test_threshold``; 'argmax': where it is above density 1
            (needs training with 3D labels); 'probability': where their softmax is above ``test_threshold`` (likewise);
            'opacity': where a voxel takes more of the light than the share ``test_threshold``. None: 'argmax' with
            ``use_3d_loss``, else 'threshold'.
        initial_opacity: share of the light that a voxel of the untrained model takes. The reference's starts as good as
            transparent (1e-6), so that no ray sees anything and hardly a gradient arrives. None: leave the layers as
            torch initialises them.
        free_prior: with ``initial_opacity``, probability of "free" that the untrained model starts with.
        label_ratio: voxels of the answer per label voxel, along each axis: rendering sees the fine grid, 3D losses and
            predictions its means over the label voxels.
        (others): of ``StereoVolumeDetector``.

    Besides that detector's ``inputs``: ``rays``, B tensors (R_i, 13), see ``models.heads.Rays``.
    """

    #: timed by tools/benchmarks/model.py beside the modules
    stage_methods = ('label_losses',)

    def __init__(
        self,
        nerf_head=None,
        use_3d_loss=False,
        use_mask=False,
        mask='mask_camera',
        weight_3d_geo=1.0,
        weight_3d_sem=1.0,
        balance_cls_weight=True,
        final_softplus=False,
        test_threshold=8.5,
        decode=None,
        initial_opacity=None,
        free_prior=0.9,
        label_ratio=1,
        loss_occ=None,
        out_dim=32,
        **kwargs,
    ):
        super().__init__(out_dim=out_dim, **kwargs)
        if mask not in ('mask_camera', 'mask_lidar'):
            raise ConfigError(f"RenderOcc.mask is {mask!r}, expected 'mask_camera' or 'mask_lidar'")
        decode = decode or ('argmax' if use_3d_loss else 'threshold')
        if decode not in ('threshold', 'argmax', 'probability', 'opacity'):
            raise ConfigError(
                f"RenderOcc.decode is {decode!r}, expected 'threshold', 'argmax', 'probability' or 'opacity'"
            )
        if decode in ('probability', 'opacity') and not 0 < test_threshold < 1:
            raise ConfigError(f'RenderOcc.decode={decode!r} needs test_threshold in (0, 1), found {test_threshold}')
        if decode == 'opacity' and nerf_head is None:
            raise ConfigError("RenderOcc.decode='opacity' needs a nerf_head")
        if initial_opacity is not None and (nerf_head is None or not 0 < initial_opacity < 1):
            raise ConfigError(f'RenderOcc.initial_opacity is {initial_opacity}: needs a nerf_head and (0, 1)')
        if nerf_head is None and not use_3d_loss:
            raise ConfigError('RenderOcc: nerf_head is None and use_3d_loss is False, nothing supervises the voxels')
        if loss_occ is not None and loss_occ.get('use_sigmoid', False):
            raise ConfigError('RenderOcc.loss_occ is accepted for the published configs as softmax cross entropy alone')
        self.use_3d_loss, self.use_mask, self.mask = use_3d_loss, use_mask, mask
        self.weight_3d_geo, self.weight_3d_sem = weight_3d_geo, weight_3d_sem
        self.test_threshold, self.decode = test_threshold, decode
        self.initial_opacity, self.free_prior, self.final_softplus = initial_opacity, free_prior, final_softplus
        self.label_ratio = label_ratio
        #: add ``pred_volume`` (``density`` (X, Y, Z), ``semantic`` (X, Y, Z, 17)) to predictions, for pictures
        self.keep_volumes = False
        self.nerf_head = None if nerf_head is None else MODELS.build(nerf_head)
        weight = self._semantic_weight() if balance_cls_weight else None
        self.semantic_loss = nn.CrossEntropyLoss(weight=weight)  # holds the published buffer
        self._build_mlps(out_dim)

    @staticmethod
    def _semantic_weight():
        return log_frequency_weights(RENDEROCC_VOXEL_COUNTS)[:NUM_SEMANTIC]

    def _build_mlps(self, width):
        self.density_mlp = self._mlp(width, 2, self.final_softplus)
        self.semantic_mlp = self._mlp(width, NUM_SEMANTIC)

    @staticmethod
    def _mlp(width, outputs, softplus=False):
        layers = [nn.Linear(width, 2 * width), nn.Softplus(), nn.Linear(2 * width, outputs)]
        return nn.Sequential(*layers, *([nn.Softplus()] if softplus else []))

    def init_weights(self):
        super().init_weights()
        if self.initial_opacity is None:
            return
        occupied = self.nerf_head.density_of(self.initial_opacity)
        free = occupied + math.log(self.free_prior / (1 - self.free_prior))
        values = torch.tensor([occupied, free])
        if self.final_softplus:
            values = values + torch.log(-torch.expm1(-values))  # the inverse of softplus
        with torch.no_grad():
            self.density_mlp[2].bias.view(-1, 2).copy_(values)

    # ------------------------------------------------------------------ voxels

    def voxel_outputs(self, features):
        """Densities (B, X, Y, Z, 2) and semantic logits (B, X, Y, Z, 17) of features (B, C, Z, Y, X)."""
        features = features.permute(0, 4, 3, 2, 1)
        return self.density_mlp(features), self.semantic_mlp(features)

    def to_label_grid(self, *volumes):
        """Means of volumes (B, X, Y, Z, C) over the label voxels."""
        if self.label_ratio == 1:
            return volumes
        return tuple(
            F.avg_pool3d(volume.movedim(-1, 1), self.label_ratio).movedim(1, -1).contiguous() for volume in volumes
        )

    # ------------------------------------------------------------------ losses

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """3D losses, rendering losses and ``loss_lss_depth``, as far as they are switched on."""
        features, depth = self.extract_feat(batch_inputs_dict, batch_data_samples)
        density, semantic = self.voxel_outputs(features)
        losses = {}
        if self.use_3d_loss:
            targets = self._targets(batch_data_samples, density.device, self.mask if self.use_mask else None)
            losses.update(self.label_losses(*self.to_label_grid(density, semantic), *targets))
        if self.nerf_head is not None:
            losses.update(self.render_losses(density, semantic, batch_inputs_dict))
        losses.update(self.depth_losses(batch_inputs_dict, depth))
        return losses

    @float32_island
    def label_losses(self, density, semantic, semantics, mask=None) -> dict:
        """``loss_3d_geo`` and ``loss_3d_sem``.

        Args:
            density: (B, X, Y, Z, 2); semantic: (B, X, Y, Z, 17).
            semantics: (B, X, Y, Z) uint8 labels, 17 = free, 255 = unknown.
            mask: (B, X, Y, Z) bool, voxels that count; None: all.
        """
        if semantics.shape != density.shape[:-1]:
            raise ConfigError(
                f'{type(self).__name__} answers on a grid of {tuple(density.shape[1:-1])} voxels, the labels are '
                f'{tuple(semantics.shape[1:])}: grid_config, stride of img_bev_encoder_backbone, occ_upsample and '
                'label_ratio decide'
            )
        known = semantics != UNKNOWN
        known = known if mask is None else known & mask.bool()
        labels = semantics[known].long()
        geo = F.cross_entropy(density[known].float(), (labels == FREE).long(), reduction='sum')
        occupied = labels != FREE
        labels, weight = labels[occupied], self.semantic_loss.weight
        sem = F.cross_entropy(semantic[known][occupied].float(), labels, weight, reduction='sum')
        share = occupied.sum() if weight is None else weight[labels].sum()
        return dict(
            loss_3d_geo=self.weight_3d_geo * geo / reduce_mean_count(known.sum()),
            loss_3d_sem=self.weight_3d_sem * sem / reduce_mean_count(share, minimum=1e-6),
        )

    def render_losses(self, density, semantic, inputs) -> dict:
        """Losses of ``NerfHead``."""
        if 'rays' not in inputs:
            raise ConfigError(
                f"{type(self).__name__}.nerf_head needs 'rays': add GenerateRays to the pipeline, or set nerf_head=None"
            )
        seed = inputs.get('sample_seed')
        seed = None if seed is None else seed.flatten()[:1]
        return self.nerf_head(density[..., 0], semantic, inputs['rays'], inputs['bda'], seed)

    # ------------------------------------------------------------------ prediction

    def occupied(self, density):
        """(B, X, Y, Z) bool of densities (B, X, Y, Z, 2), see ``decode``."""
        if self.decode == 'argmax':
            return density.argmax(dim=-1) == 0
        if self.decode == 'probability':
            return density[..., 0] - density[..., 1] > math.log(self.test_threshold / (1 - self.test_threshold))
        if self.decode == 'opacity':
            return density[..., 0] > self.nerf_head.density_of(self.test_threshold)
        return density[..., 0] > self.test_threshold

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_occ.semantics`` (X, Y, Z) uint8 to each data sample."""
        density, semantic = self.predict_scores(batch_inputs_dict, batch_data_samples)
        for i, (own, sample) in enumerate(zip(self.semantics_of(density, semantic), batch_data_samples)):
            sample.pred_occ = BaseDataElement(semantics=own)
            if self.keep_volumes:
                sample.pred_volume = BaseDataElement(density=density[i, ..., 0], semantic=semantic[i])
        return batch_data_samples

    def voxel_scores(self, inputs, data_samples=None):
        """What ``_forward`` gives: it is averaged before anything is decided."""
        return self._forward(inputs, data_samples)

    def semantics_of(self, density, semantic):
        """Classes (B, X, Y, Z) uint8 of densities (B, X, Y, Z, 2) and semantic logits (B, X, Y, Z, 17)."""
        return torch.where(self.occupied(density), semantic.argmax(dim=-1), FREE).to(torch.uint8)

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """Densities (B, X, Y, Z, 2) and semantic logits (B, X, Y, Z, 17) on the label grid."""
        features, _ = self.extract_feat(batch_inputs_dict, batch_data_samples)
        return self.to_label_grid(*self.voxel_outputs(features))


@MODELS.register_module()
class RenderOcc2D(RenderOcc):
    """``RenderOcc`` on a bird's-eye-view map: the planes of z are channels, until the last layers spread them out.

    Source: Yu et al., "FlashOcc", 2023, on UniOcc's losses.

    Args:
        num_planes: voxels along z.
        (others): of ``RenderOcc``; ``img_view_transformer.collapse_z`` must be True.
    """

    volume_dims = 2

    def __init__(self, num_planes=16, **kwargs):
        self.num_planes = num_planes
        super().__init__(**kwargs)

    @staticmethod
    def _semantic_weight():
        weight = RenderOcc._semantic_weight()
        return weight / weight.sum()

    def _build_mlps(self, width):
        self.density_mlp = self._mlp(width, 2 * self.num_planes, self.final_softplus)
        self.semantic_mlp = self._mlp(width, NUM_SEMANTIC * self.num_planes)

    def voxel_outputs(self, features):
        features = features.permute(0, 3, 2, 1)  # (B, X, Y, C)
        planes = (self.num_planes, -1)
        return self.density_mlp(features).unflatten(-1, planes), self.semantic_mlp(features).unflatten(-1, planes)
