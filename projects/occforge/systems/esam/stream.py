"""Frame-by-frame inference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ...datasets.rgbd import sample_frame
from ...datasets.transforms.scannet import INTRINSICS, project
from ...errors import ConfigError
from ...visualization import instance_palette
from .esam import ScanNet200MixFormer3D_Online

# Colours of NormalizePointsColor_ in the configs.
COLOR_MEAN = (121.87265261401, 109.732557961814, 95.61477873999799)
COLOR_STD = (72.2790247614, 70.293699472075, 68.898390804783)


@dataclass
class FrameResult:
    """What a frame has brought.

    Attributes:
        points: (P, 6) float32, world metres and colours 0..255.
        instance_ids: (P,) int64 instance of each point in the scene, -1: none; the numbers never change.
        new_ids, merged: instances of the scene that this frame has begun, and that it has added to.
        semantic: (P,) int64 class of each point.
    """

    points: np.ndarray
    instance_ids: np.ndarray
    new_ids: list[int]
    merged: list[int]
    semantic: np.ndarray


@dataclass
class SceneResult:
    """The scene so far.

    Attributes:
        points: (P, 6) of all frames.
        masks: (n, P) bool. ids, labels: (n,) int64; scores: (n,). boxes: (n, 6) corners, or None.
        semantic: (P,) int64.
    """

    points: np.ndarray
    masks: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    semantic: np.ndarray
    boxes: np.ndarray | None


class OnlineSegmentor:
    """A scene, frame after frame: ``reset``, ``step``, ``result``. ::

        stream = OnlineSegmentor.from_config('configs/ESAM-E_CA/ESAM-E_online_stream.py', 'epoch_128.pth')
        for rgb, depth, pose in camera:
            print(stream.step(rgb, depth, pose).new_ids)
        masks = stream.result().masks

    Args:
        model: ``ScanNet200MixFormer3D_Online`` or one made of it, set to evaluation mode. Several streams may share it:
            each has a memory of its own.
        num_sample: points of a frame.
        clusters: groups of the points that no mask has.
        use_memory: False: forget the features of a frame at the next one; instances are merged all the same.
        mask_provider: function of the colour image (H, W, 3) that gives masks, where ``step`` gets none; None: regions
            of depth, normals and colours.
        intrinsics: fx, fy, cx, cy where ``step`` gets none.
        depth_scale: raw units of the depth image a metre.
        seed: of the drawing of points.
    """

    def __init__(
        self,
        model: ScanNet200MixFormer3D_Online,
        num_sample: int = 20000,
        clusters: int = 8,
        use_memory: bool = True,
        mask_provider=None,
        intrinsics=INTRINSICS['scannet'],
        depth_scale: float = 1000.0,
        seed: int = 0,
    ):
        if not isinstance(model, ScanNet200MixFormer3D_Online):
            raise ConfigError(f'OnlineSegmentor needs an online model, found {type(model).__name__}')
        self.model = model.eval()
        self.num_sample, self.clusters, self.use_memory = num_sample, clusters, use_memory
        self.mask_provider, self.intrinsics, self.depth_scale, self.seed = mask_provider, intrinsics, depth_scale, seed
        self.reset()

    @classmethod
    def from_config(
        cls, config: str, checkpoint: str | None = None, device: str = 'cpu', **kwargs
    ) -> 'OnlineSegmentor':
        """A stream of the model of a config, with the weights of a file (None: its initial ones)."""
        from mmdet3d.registry import MODELS

        from ...engine import load_config, load_partially, parse_load_from

        model = MODELS.build(load_config(str(config)).model)
        if checkpoint is not None:
            load_partially(model, parse_load_from(str(checkpoint)), min_loaded=0.99)
        return cls(model.to(device), **kwargs)

    def reset(self) -> None:
        """A new scene."""
        self._memory: tuple = ({}, 0)
        self.merge = self.model.new_merge()
        self.rng = np.random.default_rng(self.seed)
        self.points: list[np.ndarray] = []
        self.semantic: list[np.ndarray] = []

    @contextmanager
    def _own_memory(self) -> Iterator[None]:
        """Inside, the model remembers this stream's frames; afterwards what it did before."""
        memory = self.model.memory
        if memory is None:
            yield
            return
        before = memory.states, memory.frame
        states, memory.frame = self._memory
        memory.states = dict(states)  # it is filled in place
        try:
            yield
            if self.use_memory:
                self._memory = memory.states, memory.frame
        finally:
            memory.states, memory.frame = before

    @torch.no_grad()
    def step(self, rgb, depth, pose, intrinsic=None, masks=None, clip=None) -> FrameResult:
        """The next frame.

        Args:
            rgb: (H, W, 3) uint8. depth: (H, W) raw. pose: (4, 4) camera to world.
            intrinsic: (3, 3), (4, 4) or (fx, fy, cx, cy).
            masks: see ``datasets.rgbd.segment_image``.
            clip: dict(pix, global) of the image, for Bi-Fusion; None: computed.
        """
        camera = self._camera(intrinsic)
        masks = self.mask_provider if masks is None else masks
        data = sample_frame(
            rgb, depth, pose, camera, masks, self.num_sample, self.clusters, self.depth_scale, self.rng
        )  # fmt: skip
        points, device = data['points'], next(self.model.parameters()).device
        colours = (points[:, 3:] - np.float32(COLOR_MEAN)) / np.float32(COLOR_STD)
        inputs = torch.from_numpy(np.concatenate([points[:, :3], colours], 1).astype(np.float32)).to(device)
        extra = {}
        if self.model.bi_encoder is not None:
            size = np.shape(rgb)[1::-1]
            uv = project(points[:, :3], pose, camera, size) * np.float32(self.model.bi_encoder.image_size) / size
            extra['clip_uv'] = torch.from_numpy(uv.astype(np.float32)).to(device)
            if clip is None:
                extra['img'] = torch.from_numpy(np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))).to(device)
            else:
                extra.update(clip_pix=clip['pix'].to(device), clip_global=clip['global'].to(device))
        sp = torch.from_numpy(data['superpoints']).to(device)
        with self._own_memory():
            features, out, found, semantic = self.model.frame_predictions(inputs, sp, extra)
        known = 0 if self.merge.scene is None else len(self.merge.scene)
        owner = self.model.merge_frame(self.merge, features, out, found).cpu().numpy()
        ids, masks = np.full(len(points), -1, dtype=np.int64), found.masks.cpu().numpy()
        for row in range(len(owner))[::-1]:  # the best one last
            ids[masks[row]] = owner[row]
        semantic = semantic.cpu().numpy()
        self.points.append(points)
        self.semantic.append(semantic)
        new, merged = sorted(owner[owner >= known].tolist()), sorted(owner[owner < known].tolist())
        return FrameResult(points, ids, new, merged, semantic)

    def _camera(self, intrinsic) -> tuple:
        if intrinsic is None:
            return self.intrinsics
        intrinsic = np.asarray(intrinsic, dtype=np.float64)
        if intrinsic.ndim == 2:
            return intrinsic[0, 0], intrinsic[1, 1], intrinsic[0, 2], intrinsic[1, 2]
        return tuple(intrinsic)

    def result(self) -> SceneResult:
        """Instances over the points of all frames; independent of what ``step`` does later.

        Raises:
            ConfigError: there was no frame.
        """
        if self.merge.scene is None:
            raise ConfigError('OnlineSegmentor.result: no frame has come yet')
        number, best = self.merge.best()
        return SceneResult(
            np.concatenate(self.points),
            self.merge.masks(number).cpu().numpy(),
            number.cpu().numpy().copy(),
            best.labels.cpu().numpy().copy(),
            best.scores.cpu().numpy().copy(),
            np.concatenate(self.semantic),
            None if best.boxes is None else best.boxes.cpu().numpy().copy(),
        )


def instance_colour(number: int) -> tuple[int, int, int]:
    """Colour (R, G, B) of an instance of the scene, the same in every frame."""
    return tuple(instance_palette(int(number) + 1)[-1].tolist())
