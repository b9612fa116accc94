"""The last transform: tensors for the model, labels and meta information beside them."""

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import BaseDataElement

from occforge.errors import ConfigError

INPUT_KEYS = (
    'imgs',
    'sensor2ego',
    'intrins',
    'post_rots',
    'post_trans',
    'bda',
    'points',
    'sparse_depth',
    'segs',
    'rays',
    'adjacent_depth',
)
META_KEYS = (
    'sample_idx',
    'token',
    'scene_token',
    'scene_name',
    'timestamp',
    'ego2global',
    'lidar_path',
    'occ_path',
    'ray_origins',
    'flip_dx',
    'flip_dy',
    'sequence_group_idx',
    'sequence_visit',
    'start_of_sequence',
    'end_of_sequence',
    'prev_token',
    'curr_to_prev_ego_rt',
    'with_gt',
)


@TRANSFORMS.register_module()
class PackOccInputs(BaseTransform):
    """Packs a sample into ``dict(inputs=..., data_samples=Det3DDataSample)``.

    ``inputs`` holds those of imgs, sensor2ego, ego2global, intrins, post_rots, post_trans, bda, points, sparse_depth,
    segs and rays that the pipeline has made, and ``sample_seed``. ``data_samples.gt_occ`` holds ``semantics`` (X, Y, Z)
    uint8, ``mask_lidar`` and ``mask_camera`` bool where labels have been loaded, and ``fine`` (``cells``, ``codes``,
    ``counts``, ``grid``, ``ratio``, see ``fine_labels.CellCounts``) where LoadFineOccGT has counted; labels of voxels
    and pixels are in the dataset's own classes where it has such (``class_map``). Meta information: META_KEYS,
    ``lidar2ego`` (4x4), ``cam_names`` and ``img_path``, the key frame's cameras and their files in the same order.

    Args:
        input_keys: further keys of the results to pack as tensors.
        meta_keys: further keys of the results to keep as meta information.
        exclude_keys: keys to leave out: ``('points',)`` where points only serve to make depth labels.
    """

    def __init__(self, input_keys=(), meta_keys=(), exclude_keys=()):
        self.input_keys = tuple(key for key in (*INPUT_KEYS, *input_keys) if key not in exclude_keys)
        self.meta_keys = (*META_KEYS, *meta_keys)

    def transform(self, results: dict) -> dict:
        if results.get('label_map') is not None:
            results = in_own_classes(results)
        inputs = {key: _tensor(results[key]) for key in self.input_keys if results.get(key) is not None}
        if 'ego2global_cameras' in results:
            inputs['ego2global'] = _tensor(results['ego2global_cameras'])
        inputs['sample_seed'] = torch.tensor(results['sample_seed'])
        if 'bda' not in inputs:
            inputs['bda'] = torch.eye(3)
        sample = Det3DDataSample()
        if results.get('voxel_semantics') is not None:
            sample.gt_occ = BaseDataElement(
                semantics=_tensor(results['voxel_semantics']),
                mask_lidar=_tensor(results['mask_lidar']).bool(),
                mask_camera=_tensor(results['mask_camera']).bool(),
            )
        if results.get('fine_counts') is not None:
            if 'gt_occ' not in sample:
                sample.gt_occ = BaseDataElement()
            sample.gt_occ.fine = BaseDataElement(
                **{name: torch.as_tensor(value) for name, value in results['fine_counts']._asdict().items()}
            )
        meta = {key: results[key] for key in self.meta_keys if key in results}
        lidar = results.get('lidar_points') or {}
        if 'lidar2ego' in lidar:
            meta['lidar2ego'] = lidar['lidar2ego']
        images = results.get('images') or {}
        names = [name for name in results.get('used_cameras', results['camera_names']) if name in images]
        meta['cam_names'], meta['img_path'] = names, [images[name].get('img_path') for name in names]
        sample.set_metainfo(meta)
        return dict(inputs=inputs, data_samples=sample)


def in_own_classes(results: dict) -> dict:
    """The results with the labels of voxels and pixels in the numbers of the dataset's own classes."""
    if results.get('rays') is not None:
        raise ConfigError('rays have the classes of Occ3D: a dataset with classes of its own cannot have GenerateRays')
    table = results['label_map']
    own = {name: table[results[name]] for name in ('voxel_semantics', 'segs') if results.get(name) is not None}
    if results.get('fine_counts') is not None:
        counts = results['fine_counts']
        classes = table[counts.codes >> 2]
        kept = classes != 255
        own['fine_counts'] = counts._replace(
            cells=counts.cells[kept],
            codes=4 * classes[kept] + (counts.codes[kept] & 3),
            counts=counts.counts[kept],
        )
    return {**results, **own}


def _tensor(value):
    if isinstance(value, torch.Tensor):
        return value
    value = getattr(value, 'tensor', value)  # mmdet3d's points
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
