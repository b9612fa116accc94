"""Multi-view images with the BEVDet family's augmentation. Source: Huang et al., "BEVDet", arXiv 2112.11790."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from PIL import Image

from occforge.errors import ConfigError, DataError

from .common import camera, camera_matrices, read_bytes


class ImageAugmentation(NamedTuple):
    """One draw: scale, size after it (W, H), crop (left, top, right, bottom) in it, mirror, degrees anticlockwise."""

    resize: float
    resize_dims: tuple
    crop: tuple
    flip: bool
    rotate: float


def draw_augmentation(source_size, config: dict, rng=None) -> ImageAugmentation:
    """Draws the augmentation of one camera.

    Args:
        source_size: (W, H) of the image file.
        config: ``input_size`` (H, W) of the network; ``resize``, ``rot``, ``crop_h`` (low, high), ``flip`` of the
            training draw; ``resize_test`` added to the scale otherwise.
        rng: the sample's generator in training, None for the fixed view of testing.
    """
    width, height = source_size
    out_height, out_width = config['input_size']
    scale = out_width / width
    crop_h = config.get('crop_h', (0.0, 0.0))
    if rng is None:
        scale += config.get('resize_test', 0.0)
        above, flip, rotate = float(np.mean(crop_h)), False, 0.0
    else:
        scale += rng.uniform(*config.get('resize', (0.0, 0.0)))
        above = rng.uniform(*crop_h)
    new_width, new_height = int(width * scale), int(height * scale)
    top = int((1 - above) * new_height) - out_height
    spare = max(0, new_width - out_width)
    if rng is None:
        left = int(spare / 2)
    else:
        left = int(rng.uniform(0, spare))
        flip = bool(config.get('flip', False) and rng.random() < 0.5)
        rotate = float(rng.uniform(*config.get('rot', (0.0, 0.0))))
    crop = (left, top, left + out_width, top + out_height)
    return ImageAugmentation(scale, (new_width, new_height), crop, flip, rotate)


def augment_image(image: Image.Image, augmentation: ImageAugmentation, resample=None) -> Image.Image:
    """Resize (bicubic by default), crop (black outside), mirror, rotate about the centre (nearest, black outside)."""
    if image.size != augmentation.resize_dims:
        image = image.resize(augmentation.resize_dims, resample)
    image = image.crop(augmentation.crop)
    if augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.rotate(augmentation.rotate) if augmentation.rotate else image


def photometric_table(config: dict, rng) -> list:
    """Draws a lookup table for ``Image.point``: 256 values for each of R, G and B.

    Contrast about mid-grey, brightness and a gain of each channel: ``config['contrast']``, ``config['brightness']``
    and ``config['channel_gain']``, each (low, high), each 1 where it is missing.
    """
    contrast, brightness = (rng.uniform(*config.get(name, (1.0, 1.0))) for name in ('contrast', 'brightness'))
    gain = brightness * rng.uniform(*config.get('channel_gain', (1.0, 1.0)), size=(3, 1))
    values = gain * (128 + contrast * (np.arange(256) - 128))
    return np.clip(np.rint(values), 0, 255).astype(int).ravel().tolist()


def augmentation_matrices(augmentation: ImageAugmentation) -> tuple:
    """The pixel map of ``augment_image``: ``uv_network = rot @ uv_file + tran``; rot (2, 2), tran (2,), float64."""
    left, top, right, bottom = augmentation.crop
    size = np.array([right - left, bottom - top], dtype=np.float64)
    rot = np.eye(2) * augmentation.resize
    tran = -np.array([left, top], dtype=np.float64)
    if augmentation.flip:
        mirror = np.diag([-1.0, 1.0])
        rot, tran = mirror @ rot, mirror @ tran + [size[0], 0]
    angle = np.deg2rad(augmentation.rotate)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return turn @ rot, turn @ (tran - size / 2) + size / 2


def read_image(path) -> Image.Image:
    """An RGB image, decoded whole.

    Raises:
        DataError: missing, empty, truncated or no image.
    """
    content = read_bytes(path, 'image')
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert('RGB')
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error... on damaged files
        raise DataError(f'{path}: image: truncated or not readable: {error}') from error


@TRANSFORMS.register_module()
class PrepareImageInputs(BaseTransform):
    """Reads the cameras of the key frame and of previous ones, and augments them.

    Every camera has its own draw; the older frames of a camera take the key frame's. Sets (T frames, key frame
    first, then older; N cameras in the dataset's order)

    * ``imgs`` (T, N, H, W, 3) uint8, RGB; normalised in OccDataPreprocessor;
    * ``sensor2ego``, ``ego2global`` (T, N, 4, 4) float64: camera -> ego at the camera's time -> global;
    * ``intrins`` (T, N, 3, 3) float32, of the file's pixels; ``post_rots`` (T, N, 3, 3), ``post_trans`` (T, N, 3)
      float32: pixels of the file -> pixels of the network, (u', v', d) = post_rots (u, v, d) + post_trans;
    * ``image_augmentations``: per camera ((H, W) of the file, ImageAugmentation).

    Args:
        data_config: ``input_size`` (H, W); training: ``resize``, ``rot`` (degrees), ``crop_h``, each (low, high),
            ``flip`` and ``photometric`` (see ``photometric_table``; one draw a camera); testing: ``resize_test``;
            optional ``src_size`` (H, W): what the files must have; optional ``cams``: cameras, in place of the
            dataset's (``Ncams`` must then agree).
        is_train: draw the augmentation (else the fixed centre view).
        num_adjacent: older frames, T - 1; or which ones, as (2, 4): the last but one and the last but three, and where
            a scene does not reach so far back its oldest one. At most the dataset's ``num_adjacent``.

    Raises:
        DataError: an image is missing, truncated or of another size, or a matrix is not usable.
        ConfigError: bad ``data_config``, or the dataset gives too few frames.
    """

    def __init__(self, data_config: dict, is_train: bool = False, num_adjacent: int | Sequence[int] = 0):
        known = {'input_size', 'src_size', 'resize', 'rot', 'flip', 'crop_h', 'resize_test', 'photometric'}
        known |= {'cams', 'Ncams'}
        unknown = set(data_config) - known
        if unknown or 'input_size' not in data_config:
            raise ConfigError(
                f'PrepareImageInputs field data_config: unknown keys {sorted(unknown)}, expected input_size (H, W) and '
                f'any of {sorted(known)}'
            )
        cams = data_config.get('cams')
        if cams is not None and data_config.get('Ncams', len(cams)) != len(cams):
            raise ConfigError(f'data_config: Ncams={data_config["Ncams"]}, but cams lists {len(cams)}')
        self.data_config = dict(data_config)
        self.is_train = is_train
        self.num_adjacent = num_adjacent

    def _older(self, results, adjacent):
        if isinstance(self.num_adjacent, int):
            needed = self.num_adjacent
        else:
            needed = max(self.num_adjacent, default=0)
        if len(adjacent) < needed:
            raise ConfigError(
                f'PrepareImageInputs wants num_adjacent={self.num_adjacent}, the dataset gives {len(adjacent)} frames '
                '(dataset field num_adjacent)'
            )
        if isinstance(self.num_adjacent, int):
            return adjacent[:needed]
        known = [results, *(info for info in adjacent if not info.get('is_repeat'))]
        return [known[min(place, len(known) - 1)] for place in self.num_adjacent]

    def transform(self, results: dict) -> dict:
        names = tuple(self.data_config.get('cams') or results['camera_names'])
        adjacent = results.get('adjacent') or []
        frames = [results, *self._older(results, adjacent)]
        height, width = self.data_config['input_size']
        shape = (len(frames), len(names))
        imgs = np.empty((*shape, height, width, 3), dtype=np.uint8)
        sensor2ego, ego2global = np.empty((*shape, 4, 4)), np.empty((*shape, 4, 4))
        intrins = np.empty((*shape, 3, 3), dtype=np.float32)
        post_rots = np.tile(np.eye(3, dtype=np.float32), (*shape, 1, 1))
        post_trans = np.zeros((*shape, 3), dtype=np.float32)
        augmentations = []
        for n, name in enumerate(names):
            augmentation, table, decoded = None, None, {}
            for t, info in enumerate(frames):
                intrins[t, n], sensor2ego[t, n], ego2global[t, n] = camera_matrices(info, name)
                path = camera(info, name)['img_path']
                if path in decoded:  # the key frame again, at the start of a scene
                    imgs[t, n] = imgs[decoded[path], n]
                else:
                    image = self._read(path)
                    if augmentation is None:
                        rng = results['rng'] if self.is_train else None
                        augmentation = draw_augmentation(image.size, self.data_config, rng)
                        source_size = image.size
                        if self.is_train and self.data_config.get('photometric'):
                            table = photometric_table(self.data_config['photometric'], results['rng'])
                    if image.size != source_size:
                        raise DataError(f'{path}: image: size {image.size}, but the key frame has {source_size}')
                    image = augment_image(image, augmentation)
                    imgs[t, n] = np.asarray(image if table is None else image.point(table))
                    decoded[path] = t
                post_rots[t, n, :2, :2], post_trans[t, n, :2] = augmentation_matrices(augmentation)
            augmentations.append((source_size[::-1], augmentation))
        results.update(
            imgs=imgs,
            sensor2ego=sensor2ego,
            ego2global_cameras=ego2global,
            intrins=intrins,
            post_rots=post_rots,
            post_trans=post_trans,
        )
        results['input_size'] = (height, width)
        results['used_cameras'] = names
        results['image_augmentations'] = augmentations
        return results

    def _read(self, path):
        image = read_image(path)
        expected = self.data_config.get('src_size')
        if expected is not None and image.size != (expected[1], expected[0]):
            raise DataError(f'{path}: image: size {image.size[::-1]} (H, W), data_config.src_size says {expected}')
        return image
