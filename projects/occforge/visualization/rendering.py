"""What a camera sees of a volume: depth and classes, of label grids (first voxel hit) and of rendered densities.

Cameras: ``cam2ego`` (4, 4) to the frame of the grid (x right, y down, z forward; metres), ``cam2img`` (3, 3) of an
image of ``size`` (H, W). Depths are metres along the camera's axis.
"""

from pathlib import Path

import numpy as np
import torch
from mmdet3d.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from occforge.datasets import occ3d
from occforge.errors import ConfigError
from occforge.ops import cast_rays

from .canvas import Pen, blank, fit, paste, read_image, write_png
from .sensors import depth_colours

SKY = (225, 232, 240)


def camera_rays(cam2ego, cam2img, size, stride: int = 1) -> tuple:
    """Rays through the middles of every ``stride``-th pixel.

    Returns:
        origins (h*w, 3), directions (h*w, 3) one metre along the camera's axis, float32, and (h, w).
    """
    cam2ego = np.asarray(cam2ego, dtype=np.float64)
    rows, columns = (np.arange(stride / 2, side, stride) for side in size)
    v, u = np.meshgrid(rows, columns, indexing='ij')
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    seen = pixels @ np.linalg.inv(np.asarray(cam2img, dtype=np.float64)[:3, :3]).T
    directions = (seen / seen[:, 2:]) @ cam2ego[:3, :3].T
    origins = np.broadcast_to(cam2ego[:3, 3], directions.shape)
    made = (torch.from_numpy(np.ascontiguousarray(part)).float() for part in (origins, directions))
    return (*made, (len(rows), len(columns)))


def view_labels(
    semantics, cam2ego, cam2img, size, stride=1, point_cloud_range=occ3d.POINT_CLOUD_RANGE, free=occ3d.FREE
) -> tuple:
    """The first voxel that is not free.

    Args:
        semantics: (X, Y, Z) uint8.

    Returns:
        depth (h, w) float32, 0 where nothing is hit, and classes (h, w) uint8, ``free`` there.
    """
    origins, directions, shape = camera_rays(cam2ego, cam2img, size, stride)
    grid = torch.as_tensor(np.ascontiguousarray(semantics))
    cell = [(high - low) / side for low, high, side in zip(point_cloud_range, point_cloud_range[3:], grid.shape)]
    hits = cast_rays(grid, origins, directions, point_cloud_range[:3], cell, free=free)
    depth = torch.where(hits.entry.isfinite(), hits.entry, 0.0)
    return depth.float().view(shape).numpy(), hits.label.view(shape).numpy()


@torch.no_grad()
def view_volume(head, density, semantic, cam2ego, cam2img, size, stride=1, free=occ3d.FREE) -> tuple:
    """What the rays of ``NerfHead`` see.

    Args:
        head: ``NerfHead``.
        density: (X, Y, Z); semantic: (X, Y, Z, C).

    Returns:
        depth (h, w) float32, the mean depth of what is seen, and classes (h, w) uint8; 0 and ``free`` where more than
        half of the light passes.
    """
    origins, directions, shape = camera_rays(cam2ego, cam2img, size, stride)
    device = density.device
    found = head.render(density[None], semantic[None], origins.to(device), directions.to(device))
    opacity = 1 - found.transmittance
    solid = opacity > 0.5
    depth = torch.where(solid, found.depth / opacity.clamp(min=1e-6), 0.0)
    classes = torch.where(solid, found.semantics.argmax(dim=1), free).to(torch.uint8)
    return depth.view(shape).cpu().numpy(), classes.view(shape).cpu().numpy()


def colour_view(depth, classes, palette=occ3d.PALETTE, max_depth=50.0, free=occ3d.FREE) -> tuple:
    """Pictures (h, w, 3) uint8 RGB of a view's classes, shaded by depth, and of its depths."""
    seen = classes != free
    shade = np.clip(1.1 - 0.5 * depth / max_depth, 0.5, 1.0)[..., None]
    of_classes = np.where(seen[..., None], palette[np.where(seen, classes, 0)] * shade, SKY).astype(np.uint8)
    of_depths = depth_colours(np.where(depth > 0, depth, max_depth).ravel(), high=max_depth).reshape(*depth.shape, 3)
    return of_classes, np.where((depth > 0)[..., None], of_depths, SKY).astype(np.uint8)


def fly_path(frames: int, start=(-18.0, 0.0, 9.0), end=(6.0, 0.0, 3.0), ahead=22.0, swing=8.0) -> list:
    """Camera poses (4, 4) of a flight from ``start`` to ``end`` (metres, ego frame) that swings from side to side and
    looks at a point ``ahead`` metres in front on the ground."""
    poses = []
    for share in np.linspace(0, 1, frames):
        eye = (1 - share) * np.array(start, dtype=float) + share * np.array(end, dtype=float)
        eye[1] += swing * np.sin(2 * np.pi * share)
        forward = np.array([eye[0] + ahead, 0.3 * eye[1], 0.0]) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = eye
        poses.append(pose)
    return poses


def draw_views(rows: dict, width: int = 300) -> np.ndarray:
    """One picture of named rows of pictures, ``{row: {column: (h, w, 3) uint8}}``; a picture may be missing (None)."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    first = next(picture for row in rows.values() for picture in row.values() if picture is not None)
    height, margin, band = round(width * first.shape[0] / first.shape[1]), 90, 24
    canvas = blank(band + len(rows) * (height + 4), margin + len(columns) * (width + 4))
    for j, (_, pictures) in enumerate(rows.items()):
        for i, name in enumerate(columns):
            if pictures.get(name) is not None:
                x, y = margin + i * (width + 4), band + j * (height + 4)
                paste(canvas, fit(pictures[name], width, height), x, y)
    with Pen(canvas) as pen:
        for i, name in enumerate(columns):
            pen.text(margin + i * (width + 4) + 4, 4, name, 14)
        for j, name in enumerate(rows):
            for k, line in enumerate(name.split('\n')):
                pen.text(6, band + j * (height + 4) + 6 + 18 * k, line, 13)
    return canvas


@HOOKS.register_module()
class RenderedViewsHook(Hook):
    """Writes for each tested sample what its cameras see: the image, rendered classes and depth, and the true ones.

    Models with a ``nerf_head`` are rendered from their densities; of others the predicted voxels are looked at. The
    truth is the label grid, seen from the same pose. File name: ``<scene>_<token>_views.png``.

    Args:
        out_dir: folder of the pictures.
        max_samples: stop after that many; None draws all.
        stride: every so many pixels of the camera's file a ray.
    """

    priority = 'LOW'

    def __init__(self, out_dir, max_samples=None, stride: int = 4):
        if stride < 1:
            raise ConfigError(f'RenderedViewsHook.stride is {stride}, expected 1 or more')
        self.out_dir, self.max_samples, self.stride = Path(out_dir), max_samples, stride
        self.drawn = 0

    @staticmethod
    def _model(runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return getattr(model, 'tested', model)

    def before_test_epoch(self, runner) -> None:
        self.drawn = 0
        model = self._model(runner)
        if getattr(model, 'nerf_head', None) is not None:
            model.keep_volumes = True

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        head = getattr(self._model(runner), 'nerf_head', None)
        for i, sample in enumerate(outputs or ()):
            if self.max_samples is not None and self.drawn >= self.max_samples:
                return
            inputs = {key: value[i] for key, value in data_batch['inputs'].items()}
            picture = self.draw(sample, inputs, head)
            meta = sample.metainfo
            name = '_'.join(str(meta[key]) for key in ('scene_name', 'token') if meta.get(key))
            write_png(self.out_dir / f'{name}_views.png', picture)
            self.drawn += 1

    def after_test_epoch(self, runner, metrics=None) -> None:
        model = self._model(runner)
        if getattr(model, 'keep_volumes', False):
            model.keep_volumes = False
        print_log(f'{self.drawn} pictures of rendered views written to {self.out_dir}', logger='current')

    def draw(self, sample, inputs, head=None) -> np.ndarray:
        """The picture of one sample.

        Args:
            sample: with ``pred_occ``, perhaps ``pred_volume`` and ``gt_occ``.
            inputs: of the sample: ``sensor2ego`` (T, N, 4, 4) and ``intrins`` (T, N, 3, 3).
            head: ``NerfHead`` that renders ``pred_volume``.
        """
        images = load_images(sample.metainfo)
        truth = sample.get('gt_occ')
        rows = {name: {} for name in ('image', 'rendered\nclasses', 'rendered\ndepth', 'true\nclasses', 'true\ndepth')}
        for n, name in enumerate(images):
            camera = (inputs['sensor2ego'][0, n].numpy(), inputs['intrins'][0, n].numpy(), images[name].shape[:2])
            if 'pred_volume' in sample and head is not None:
                volume = sample.pred_volume
                view = view_volume(head, volume.density, volume.semantic, *camera, stride=self.stride)
            else:
                view = view_labels(sample.pred_occ.semantics.cpu().numpy(), *camera, stride=self.stride)
            pictures = [images[name], *colour_view(*view)]
            if truth is not None:
                pictures += colour_view(*view_labels(truth.semantics.cpu().numpy(), *camera, stride=self.stride))
            for row, picture in zip(rows, pictures):
                rows[row][name] = picture
        return draw_views({name: row for name, row in rows.items() if row})


def load_images(meta: dict) -> dict | None:
    """The key frame's images named by a sample's metainfo, camera name -> RGB; None where it names none."""
    paths = meta.get('img_path')
    if not paths:
        return None
    if isinstance(paths, str):
        paths = [paths]
    names = meta.get('cam_names') or [Path(path).parent.name for path in paths]
    return {name: read_image(path) for name, path in zip(names, paths) if path} or None
