"""Imported before any test module: makes mmdet3d importable on the mmcv-lite lane and registers our modules."""

import cv2
import occforge  # noqa: F401
import pytest
from mmengine.registry import DefaultScope

cv2.setNumThreads(1)  # workers forked after OpenCV has started threads of its own wait for them for ever


@pytest.fixture(autouse=True)
def no_default_scope():
    """Building a Runner sets mmengine's default scope for the whole process; no test may lean on another's."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def tiny_city(tmp_path_factory):
    """Data root (a Path) of a synthetic city, made once a session: 2 scenes (1 train, 1 val) of 3 key frames, 400x225
    images, the nuScenes rig; tables of v1.0-trainval, true labels, nuscenes_infos_{train,val}.pkl. Read only."""
    from occforge.datasets import synthetic_city
    from occforge.datasets.preparation import nuscenes_converter

    root = tmp_path_factory.mktemp('tiny_city')
    synthetic_city.generate(root, scenes=2, keyframes=3, image_size=(400, 225), split='1:1', workers=2, progress=False)
    metainfo, data_lists, _ = nuscenes_converter.make_infos(root, quiet=True)
    nuscenes_converter.write_infos(root, metainfo, data_lists)
    return root
