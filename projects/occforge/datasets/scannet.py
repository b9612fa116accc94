"""ScanNet (20 and 200 classes) as single frames and as scenes of frames."""

import os

import numpy as np
from mmdet3d.datasets import Seg3DDataset
from mmdet3d.registry import DATASETS

from occforge.errors import DataError

from . import scannet_classes
from .info_files import load_pickle

STUFF = 2  # the first two classes, wall and floor, have no instances


class _ScanNet(Seg3DDataset):
    """Common to all: classes by number, info files read as data."""

    MAX_ID = 0
    RAW_IDS: tuple = ()

    def __init__(self, metainfo: dict | None = None, ignore_index: int | None = None, **kwargs):
        super().__init__(
            metainfo=dict(dict(classes=self.METAINFO['classes']), **(metainfo or {})),
            ignore_index=ignore_index,
            **kwargs,
        )

    def get_seg_label_mapping(self, metainfo=None) -> np.ndarray:
        """Raw label -> class, (MAX_ID + 1,); unlabelled and other ones -> the number of classes."""
        mapping = np.full(self.MAX_ID + 1, len(self.RAW_IDS), dtype=np.int64)
        mapping[list(self.RAW_IDS)] = np.arange(len(self.RAW_IDS))
        return mapping

    def get_scene_idxs(self, scene_idxs=None) -> np.ndarray:
        return np.arange(len(self)).astype(np.int32)

    def load_data_list(self) -> list[dict]:
        annotations = load_pickle(self.ann_file)
        if not isinstance(annotations, dict) or not {'data_list', 'metainfo'} <= set(annotations):
            raise DataError(f"{self.ann_file}: expected a dict of 'metainfo' and 'data_list'")
        for name, value in annotations['metainfo'].items():
            self._metainfo.setdefault(name, value)
        return [self.parse_data_info(item) for item in annotations['data_list']]


def _meta(kind: str) -> dict:
    names, ids, biggest = scannet_classes.classes(kind)
    return dict(
        classes=names, palette=scannet_classes.palette(len(names)), seg_valid_class_ids=ids,
        seg_all_class_ids=tuple(range(1, biggest + 1)),
    )  # fmt: skip


class _Frames(_ScanNet):
    def parse_data_info(self, info: dict) -> dict:
        if 'super_pts_path' not in info:
            raise DataError(f"{self.ann_file}: an item without 'super_pts_path', found {sorted(info)}")
        info['super_pts_path'] = os.path.join(self.data_prefix.get('sp_pts_mask', ''), info['super_pts_path'])
        if info.get('img_path'):
            info['img_path'] = os.path.join(self.data_root, info['img_path'])
        if info.get('clip_feat_path'):
            info['clip_feat_path'] = os.path.join(self.data_root, info['clip_feat_path'])
        return super().parse_data_info(info)


class _Scenes(_ScanNet):
    def parse_data_info(self, info: dict) -> dict:
        names = ('pts_paths', 'super_pts_paths', 'pts_instance_mask_paths', 'pts_semantic_mask_paths')
        missing = [name for name in names if name not in info]
        if missing:
            raise DataError(f'{self.ann_file}: an item without {", ".join(missing)}, found {sorted(info)}')
        for name in (*names, 'img_paths', 'clip_feat_paths'):
            if name in info:
                info[name] = [os.path.join(self.data_root, path) for path in info[name]]
        info['seg_label_mapping'] = self.seg_label_mapping
        if self.test_mode and self.load_eval_anns:
            info['eval_ann_info'] = {}
        return info


@DATASETS.register_module()
class ScanNetSegDataset_(_Frames):
    """Single frames, 20 classes.

    Args:
        data_root, ann_file, pipeline, test_mode, ...: as mmdet3d's ``Seg3DDataset``.
        data_prefix: folders ``pts``, ``pts_instance_mask``, ``pts_semantic_mask``, ``sp_pts_mask``.
    """

    METAINFO = _meta('scannet')
    RAW_IDS, MAX_ID = METAINFO['seg_valid_class_ids'], 40


@DATASETS.register_module()
class ScanNet200SegDataset_(_Frames):
    """Single frames, 200 classes; arguments of ``ScanNetSegDataset_``."""

    METAINFO = _meta('scannet200')
    RAW_IDS, MAX_ID = METAINFO['seg_valid_class_ids'], 1357


@DATASETS.register_module()
class ScanNetSegMVDataset_(_Scenes):
    """Scenes of frames, 20 classes; paths of the info file are below ``data_root``."""

    METAINFO = _meta('scannet')
    RAW_IDS, MAX_ID = METAINFO['seg_valid_class_ids'], 40


@DATASETS.register_module()
class ScanNet200SegMVDataset_(_Scenes):
    """Scenes of frames, 200 classes; paths of the info file are below ``data_root``."""

    METAINFO = _meta('scannet200')
    RAW_IDS, MAX_ID = METAINFO['seg_valid_class_ids'], 1357
