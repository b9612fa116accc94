"""Test-time augmentation by flips, and ensembles, of occupancy detectors."""

import copy

import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import ConfigError

FLIPS = ('img_flip', 'flip_dx', 'flip_dy')


def check_flips(flips, where: str, with_images: bool = True) -> tuple[str, ...]:
    """The names as a tuple.

    Raises:
        ConfigError: one is not of FLIPS, or mirrors images that the model does not look at.
    """
    unknown = set(flips) - set(FLIPS)
    if unknown:
        raise ConfigError(f"{where} has {sorted(unknown)}, expected of 'img_flip', 'flip_dx' and 'flip_dy'")
    if 'img_flip' in flips and not with_images:
        raise ConfigError(f"{where} has 'img_flip', but the model uses no cameras")
    return tuple(flips)


def flip_variants(flips) -> list[tuple[str, ...]]:
    """All combinations of the flips; the first is none of them."""
    variants = [()]
    for name in flips:
        variants += [(*variant, name) for variant in variants]
    return variants


def flip_inputs(inputs: dict, flips) -> dict:
    """The batch as it were with mirrored images ('img_flip') and a mirrored ego frame ('flip_dx', 'flip_dy').

    Args:
        inputs: ``imgs`` (B, T, N, 3, H, W) with ``post_rots``, ``post_trans``, and the depths of their pixels
            (``sparse_depth``, ``segs``), where there are any; ``bda`` (B, 3, 3); ``points``, B tensors (P, F) in the
            ego frame that ``bda`` has turned, where there are any.
    """
    inputs = dict(inputs)
    if 'img_flip' in flips:
        imgs = inputs['imgs']
        inputs['imgs'] = imgs.flip(-1)
        mirror = torch.diag(imgs.new_tensor([-1.0, 1.0, 1.0]))
        inputs['post_rots'] = mirror @ inputs['post_rots']
        # pixel u goes to W - u, the convention of the training augmentation
        inputs['post_trans'] = inputs['post_trans'] @ mirror + imgs.new_tensor([imgs.shape[-1], 0.0, 0.0])
        inputs.update({name: inputs[name].flip(-1) for name in ('sparse_depth', 'segs') if name in inputs})
    signs = [-1.0 if name in flips else 1.0 for name in ('flip_dx', 'flip_dy')]
    if -1.0 in signs:
        bda = inputs['bda']
        inputs['bda'] = torch.diag(bda.new_tensor([*signs, 1.0])) @ bda
        if 'points' in inputs:
            mirrored = [torch.cat([each[:, :2] * each.new_tensor(signs), each[:, 2:]], 1) for each in inputs['points']]
            inputs['points'] = mirrored
    return inputs


class FlipAveraging:
    """Mixin of occupancy detectors that remember nothing: what they say of each voxel is averaged over the flips.

    A detector sets ``tta`` and has ``voxel_scores(inputs, data_samples)``: a tuple of (B, X, Y, Z, C), which may be
    averaged.
    """

    tta: tuple[str, ...] = ()

    @property
    def variants(self) -> list[tuple[str, ...]]:
        """The test-time variants: all combinations of the flips in ``tta``."""
        return flip_variants(self.tta)

    def predict_scores(self, inputs, data_samples=None) -> tuple:
        """``voxel_scores``, averaged over ``variants``."""

        def scores(variant):
            axes = [axis for axis, name in ((1, 'flip_dx'), (2, 'flip_dy')) if name in variant]
            found = self.voxel_scores(flip_inputs(inputs, variant), data_samples)
            return tuple(each.flip(axes) if axes else each for each in found)

        return mean_scores(map(scores, self.variants))

    def semantics_of(self, probability):
        """Classes (B, X, Y, Z) uint8 of probabilities (B, X, Y, Z, num_classes)."""
        return probability.argmax(dim=-1).to(torch.uint8)

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_occ.semantics`` (X, Y, Z) uint8 to each data sample."""
        scores = self.predict_scores(batch_inputs_dict, batch_data_samples)
        for semantics, sample in zip(self.semantics_of(*scores), batch_data_samples):
            sample.pred_occ = BaseDataElement(semantics=semantics)
        return batch_data_samples


def mean_scores(scores, weights=None) -> tuple:
    """Tuples of tensors -> the tuple of their means, one of them in memory at a time."""
    total, sum_of_weights = None, 0.0
    for number, each in enumerate(scores):
        weight = 1.0 if weights is None else weights[number]
        sum_of_weights += weight
        each = each if weight == 1.0 else tuple(weight * tensor for tensor in each)
        total = each if total is None else tuple(a + b for a, b in zip(total, each))
    return total if sum_of_weights == 1.0 else tuple(tensor / sum_of_weights for tensor in total)


@MODELS.register_module()
class OccupancyEnsemble(Base3DDetector):
    """The mean of what several trained models say of each voxel.

    ``tools/test.py CONFIG A.pth B.pth`` makes one of a config's model and the checkpoints. Models that remember
    (FB-OCC) keep their own memories; each averages its own ``tta`` first.

    Args:
        members: configs of occupancy detectors of one kind (FusionOCC, FBOCC, RenderOcc, ...), which get the same
            inputs.
        weights: of the members, default equal.
        data_preprocessor: default the members', which must be the same.
        init_cfg: as in mmdet3d.
    """

    def __init__(self, members, weights=None, data_preprocessor=None, init_cfg=None):
        members = [copy.deepcopy(dict(member)) for member in members]
        if not members:
            raise ConfigError('OccupancyEnsemble.members is empty')
        if weights is not None and (len(weights) != len(members) or min(weights) < 0 or not any(weights)):
            raise ConfigError(
                f'OccupancyEnsemble.weights is {weights}, expected {len(members)} numbers, none below 0 and one above'
            )
        theirs = [member.pop('data_preprocessor', None) for member in members]
        if data_preprocessor is None:
            if any(each != theirs[0] for each in theirs):
                raise ConfigError('OccupancyEnsemble.members differ in data_preprocessor, but get the same inputs')
            data_preprocessor = theirs[0]
        if isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.members = nn.ModuleList(MODELS.build(member) for member in members)
        for member in self.members:
            if not hasattr(member, 'predict_scores'):
                raise ConfigError(f'OccupancyEnsemble: {type(member).__name__} gives no scores that could be averaged')
        self.weights = weights

    @property
    def class_axes(self) -> dict:
        """Where the members' classes are, see ``occforge.engine.partial_load``."""
        return {
            f'members.{number}.{name}': axis
            for number, member in enumerate(self.members)
            for name, axis in getattr(member, 'class_axes', {}).items()
        }

    def predict_scores(self, inputs, data_samples=None) -> tuple:
        return mean_scores((member.predict_scores(inputs, data_samples) for member in self.members), self.weights)

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_occ.semantics`` (X, Y, Z) uint8 to each data sample."""
        scores = self.predict_scores(batch_inputs_dict, batch_data_samples)
        for semantics, sample in zip(self.members[0].semantics_of(*scores), batch_data_samples):
            sample.pred_occ = BaseDataElement(semantics=semantics)
        return batch_data_samples

    def extract_feat(self, batch_inputs_dict, batch_data_samples=None):
        return [member.extract_feat(batch_inputs_dict, batch_data_samples) for member in self.members]

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        raise ConfigError('OccupancyEnsemble is for tests: train its members by themselves')

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        """The averaged scores."""
        return self.predict_scores(batch_inputs_dict, batch_data_samples)
