"""Depth-aware teacher-student: unlabelled frames are labelled by the average of the model that learns from them."""

import copy
import math

import numpy as np
import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.registry import MODELS
from torch.nn import functional as F

from ...engine.amp import float32_island
from ...engine.dist import reduce_mean_count
from ...errors import ConfigError
from ...models.heads import Rays
from ...ops import observed_cells
from .render_occ import FREE, UNKNOWN


@MODELS.register_module()
class UniOccTeacherStudent(Base3DDetector):
    """Two detectors of one config. The student learns from labels where there are any and else from the teacher, whose
    weights are the average of the student's (``MeanTeacherHook``).

    What makes the teacher better than its student: it averages many students, and where the LiDAR has measured a
    pixel's depth, its image features are lifted to that depth instead of the predicted ones.

    Source: Pan et al., "UniOcc", 2023 (arXiv 2306.09117), section on the depth-aware teacher-student; weights, ramp and
    thresholds are ours, the paper's are not published.

    Args:
        detector: ``RenderOcc``, of both. With a ``nerf_head`` rays supervise unlabelled frames, too (depths; classes
            where the pipeline gives them).
        weight_unlabelled: factor of the losses against the teacher.
        ramp_iters: iterations over which that factor rises from 0, as exp(-5 (1 - x)^2).
        soft: learn the teacher's probabilities (labels drawn from them, on average), not its answer. A camera is seldom
            sure of a voxel, so that most of what it sees faintly would count as free.
        geo_threshold, sem_threshold: least probability of the teacher's answer for a voxel to count.
        use_lidar_depth: lift the teacher's features to measured depths.
        use_mask: voxels of unlabelled frames that nobody observes do not count: ``visibility`` is needed. Nothing has
            taught the teacher what is in them.
        visibility: 'rays': voxels that the sample's measured rays cross or end in (needs a ``nerf_head`` and 'rays' in
            ``inputs``). Or a ``.npy`` file (X, Y, Z), share of the frames in which a camera observes a voxel.
        min_visibility: share from which a voxel counts.
        predict_with: 'teacher' or 'student', whose predictions are tested.
        data_preprocessor, init_cfg: as in mmdet3d.

    A sample is unlabelled where its meta field ``with_gt`` is False. Checkpoints hold both (``teacher.``,
    ``student.``); ``load_from = dict(path=..., prefix='teacher')`` takes one of them out.
    """

    def __init__(
        self,
        detector,
        weight_unlabelled=1.0,
        ramp_iters=0,
        soft=False,
        geo_threshold=0.7,
        sem_threshold=0.6,
        use_lidar_depth=True,
        use_mask=False,
        visibility=None,
        min_visibility=0.2,
        predict_with='teacher',
        data_preprocessor=None,
        init_cfg=None,
    ):
        detector = copy.deepcopy(detector)
        inner = detector.pop('data_preprocessor', None)
        data_preprocessor = data_preprocessor or inner
        if isinstance(data_preprocessor, dict):
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if predict_with not in ('teacher', 'student'):
            raise ConfigError(f"UniOccTeacherStudent.predict_with is {predict_with!r}, expected 'teacher' or 'student'")
        for name, value in (('geo_threshold', geo_threshold), ('sem_threshold', sem_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f'UniOccTeacherStudent.{name} is {value}, expected a probability')
        if use_mask and visibility is None:
            raise ConfigError('UniOccTeacherStudent.use_mask needs visibility, the share of frames that see a voxel')
        self.student = MODELS.build(detector)
        self.teacher = copy.deepcopy(self.student)  # draws no random numbers: the student starts as it would alone
        self.teacher.requires_grad_(False)
        if not self.student.use_3d_loss:
            raise ConfigError('UniOccTeacherStudent.detector.use_3d_loss must be True: the teacher gives 3D labels')
        self.weight_unlabelled, self.ramp_iters = weight_unlabelled, ramp_iters
        self.soft, self.geo_threshold, self.sem_threshold = soft, geo_threshold, sem_threshold
        self.use_lidar_depth, self.predict_with = use_lidar_depth, predict_with
        seen = None
        self.seen_by_rays = use_mask and visibility == 'rays'
        if self.seen_by_rays and self.student.nerf_head is None:
            raise ConfigError("UniOccTeacherStudent.visibility='rays' needs a detector with a nerf_head")
        if use_mask and not self.seen_by_rays:
            try:
                seen = torch.from_numpy(np.load(visibility, allow_pickle=False) >= min_visibility)
            except (OSError, ValueError) as error:
                raise ConfigError(f'UniOccTeacherStudent.visibility: {visibility}: {error}') from error
        self.register_buffer('visible', seen, persistent=False)
        # counted here so that a resumed training goes on with the same factor
        self.register_buffer('iteration', torch.zeros((), dtype=torch.int64))

    def init_weights(self):
        super().init_weights()
        self.start_teacher()

    def train(self, mode: bool = True):
        super().train(mode)
        self.teacher.train(False)  # no dropout, its averaged batch statistics
        return self

    @torch.no_grad()
    def start_teacher(self) -> None:
        """Make the teacher a copy of the student."""
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher = momentum teacher + (1 - momentum) student, buffers (batch statistics) included."""
        teacher, student = self.teacher.state_dict(), self.student.state_dict()
        averages = [value for value in teacher.values() if value.is_floating_point()]
        values = [student[name] for name, value in teacher.items() if value.is_floating_point()]
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, values, alpha=1 - momentum)
        for name, value in teacher.items():
            if not value.is_floating_point():
                value.copy_(student[name])

    @property
    def unlabelled_weight(self) -> float:
        """The present factor of the losses against the teacher."""
        if not self.ramp_iters:
            return self.weight_unlabelled
        x = min(int(self.iteration) / self.ramp_iters, 1.0)
        return self.weight_unlabelled * math.exp(-5 * (1 - x) ** 2)

    # ------------------------------------------------------------------ mmdet3d's interface

    def loss(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """The student's losses, ``loss_teacher_geo`` and ``loss_teacher_sem``; ``pseudo_share`` is logged besides, the
        share of the unlabelled frames' voxels of whose geometry the teacher is sure."""
        student = self.student
        features, depth = student.extract_feat(batch_inputs_dict, batch_data_samples)
        density, semantic = student.voxel_outputs(features)
        losses = student.render_losses(density, semantic, batch_inputs_dict) if student.nerf_head is not None else {}
        losses.update(student.depth_losses(batch_inputs_dict, depth))
        density, semantic = student.to_label_grid(density, semantic)
        mask = student.mask if student.use_mask else None
        semantics, mask = student._targets(batch_data_samples, density.device, mask)
        labelled = torch.tensor(
            [sample.metainfo.get('with_gt') is not False for sample in batch_data_samples], device=density.device
        )
        semantics = torch.where(labelled[:, None, None, None], semantics, UNKNOWN)
        losses.update(student.label_losses(density, semantic, semantics, mask))

        # the teacher looks at every batch, also at one without unlabelled frames: all processes then do the same
        pseudo = self.pseudo_labels(batch_inputs_dict, batch_data_samples)
        losses.update(self.teacher_losses(density, semantic, *pseudo, ~labelled))
        if self.training:
            self.iteration += 1
        return losses

    @torch.no_grad()
    def pseudo_labels(self, inputs, data_samples):
        """What the teacher says, and where it is sure.

        Returns:
            Targets of ``F.cross_entropy``: "occupied" or "free" and the class, (B, X, Y, Z) int64; with ``soft`` their
            probabilities, (B, X, Y, Z, 2) and (B, X, Y, Z, 17). Voxels of whose geometry the teacher is sure, (B, X, Y,
            Z) bool, and how much the class of each counts, (B, X, Y, Z) float32.
        """
        measured = None
        if self.use_lidar_depth:
            if 'sparse_depth' not in inputs:
                raise ConfigError("UniOccTeacherStudent.use_lidar_depth needs 'sparse_depth' (PointToMultiViewDepth)")
            measured = inputs['sparse_depth'][:, None]
            if 'adjacent_depth' in inputs:
                measured = torch.cat([measured, inputs['adjacent_depth']], dim=1)
        features, _ = self.teacher.extract_feat(inputs, data_samples, measured)
        density, semantic = self.teacher.to_label_grid(*self.teacher.voxel_outputs(features))
        occupied = self.teacher.occupied(density)
        geometry, classes = density.float().softmax(dim=-1), semantic.float().softmax(dim=-1)
        sure = torch.where(occupied, geometry[..., 0], geometry[..., 1]) >= self.geo_threshold
        if self.visible is not None:
            sure &= self.visible
        if self.seen_by_rays:
            sure &= self.cells_of_rays(inputs, sure.shape[1:])
        named = (sure & (classes.amax(dim=-1) >= self.sem_threshold)).float()
        if self.soft:  # as labels drawn from the probabilities would count on average
            return geometry, classes, sure, named * geometry[..., 0]
        return (~occupied).long(), classes.argmax(dim=-1), sure, named * occupied

    def cells_of_rays(self, inputs, size):
        """(B, X, Y, Z) bool, label voxels of the augmented ego frame that measured rays cross or end in."""
        if 'rays' not in inputs:
            raise ConfigError("UniOccTeacherStudent.visibility='rays' needs 'rays' (GenerateRays)")
        head = self.student.nerf_head
        lower, upper = head.point_cloud_range[:3], head.point_cloud_range[3:]
        edges = [(high - low) / cells for low, high, cells in zip(lower, upper, size)]
        empty = torch.full(tuple(size), FREE, dtype=torch.uint8, device=inputs['bda'].device)
        seen = []
        for rows, turn in zip(inputs['rays'], inputs['bda'].float()):
            rays = Rays.of(rows.to(empty.device))
            rays = rays.take(rays.depth > 0)
            targets = rays.origin + rays.depth[:, None] * rays.direction
            seen.append(observed_cells(empty, rays.origin @ turn.T, targets @ turn.T, lower, edges, free=FREE))
        return torch.stack(seen)

    @float32_island
    def teacher_losses(self, density, semantic, geometry, classes, sure, named, unlabelled) -> dict:
        """Cross entropies against the teacher, of the unlabelled samples' voxels of which it is sure.

        Args:
            density, semantic: the student's, (B, X, Y, Z, 2) and (B, X, Y, Z, 17).
            geometry, classes, sure, named: of ``pseudo_labels``.
            unlabelled: (B,) bool.
        """
        chosen = unlabelled[:, None, None, None]
        sure, named = sure & chosen, named * chosen
        geo = F.cross_entropy(density[sure].float(), geometry[sure], reduction='sum')
        some = named > 0
        sem = F.cross_entropy(semantic[some].float(), classes[some], reduction='none') @ named[some]
        weight = self.unlabelled_weight
        voxels = (unlabelled.sum() * sure[0].numel()).clamp(min=1)
        return dict(
            loss_teacher_geo=weight * geo / reduce_mean_count(sure.sum()),
            loss_teacher_sem=weight * sem / reduce_mean_count(named.sum()),
            pseudo_share=sure.sum() / voxels,
        )

    @property
    def tested(self):
        """The detector whose predictions are tested."""
        return self.teacher if self.predict_with == 'teacher' else self.student

    def extract_feat(self, batch_inputs_dict, batch_data_samples=None):
        """Features of the detector that is tested; see ``StereoVolumeDetector.extract_feat``."""
        return self.tested.extract_feat(batch_inputs_dict, batch_data_samples)

    def predict(self, batch_inputs_dict, batch_data_samples, **kwargs):
        """Adds ``pred_occ.semantics`` (X, Y, Z) uint8 to each data sample."""
        return self.tested.predict(batch_inputs_dict, batch_data_samples)

    def predict_scores(self, inputs, data_samples=None):
        return self.tested.predict_scores(inputs, data_samples)

    def semantics_of(self, *scores):
        return self.tested.semantics_of(*scores)

    def _forward(self, batch_inputs_dict, batch_data_samples=None, **kwargs):
        return self.tested._forward(batch_inputs_dict, batch_data_samples)
