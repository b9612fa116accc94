"""The dataset configs build, and one sample of each goes through."""

import os
from pathlib import Path

import numpy as np
import pytest
from fake_nuscenes import write_world
from occforge.datasets import NuScenesOccDataset
from occforge.engine import load_config

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp('city')
    write_world(root, scenes=1, frames=2, image_size=(800, 450))
    os.link(root / 'nuscenes_infos_val.pkl', root / 'nuscenes_infos_train.pkl')
    return root


def build(cfg, split='train', **changes):
    options = dict(cfg[f'{split}_dataloader'].dataset, **changes)
    assert options.pop('type') == 'NuScenesOccDataset'
    return NuScenesOccDataset(**options)


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
@pytest.mark.parametrize('kind', ['', 'camera_', 'lidar_'])
def test_synthetic_city(city, split, kind):
    cfg = load_config(CONFIGS / 'synthetic_city_occ.py', [f'data_root={city}'])
    pipeline = cfg[f'{kind}{"train" if split == "train" else "test"}_pipeline']
    data = build(cfg, split, pipeline=pipeline)[1]
    inputs = data['inputs']
    assert ('points' in inputs) == (kind != 'camera_') and ('imgs' in inputs) == (kind != 'lidar_')
    if 'imgs' in inputs:
        frames = 1 if kind else dict(train=2).get(split, 5)  # with those whose images paint points
        assert inputs['imgs'].shape == (frames, 6, 160, 448, 3)
    assert ('segs' in inputs) == (split == 'train' and kind != 'lidar_')
    assert data['data_samples'].gt_occ.semantics.shape == (200, 200, 16)


def test_the_image_branch_alone_reads_the_same_pixels(city):
    cfg = load_config(CONFIGS / 'synthetic_city_occ.py', [f'data_root={city}'])
    alone, whole = (build(cfg, pipeline=cfg[f'{kind}train_pipeline'])[1]['inputs'] for kind in ('image_', ''))
    assert set(whole) - set(alone) == {'points'}
    for key, value in alone.items():
        other = whole[key]
        if other.shape != value.shape:  # two frames, of which the second paints points
            other = other[:1]
        np.testing.assert_array_equal(value, other, err_msg=key)


def test_nuscenes(city):
    cfg = load_config(CONFIGS / 'nuscenes_occ.py', {'data_root': str(city)})
    for split, keys in (('train', {'segs'}), ('val', set())):
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            if step.type == 'PrepareImageInputs':
                step.data_config.src_size = (450, 800)
        inputs = build(cfg, split)[1]['inputs']
        assert inputs['imgs'].shape == (2, 6, 512, 1408, 3) and inputs['sparse_depth'].shape == (6, 32, 88)
        assert keys <= set(inputs)


def test_the_mask_of_the_metric_follows_its_field():
    path = CONFIGS / 'synthetic_city_occ.py'
    assert load_config(path).val_evaluator.eval_mask == 'none'
    for override in ('eval_mask=lidar', 'val_evaluator.eval_mask=lidar', 'test_evaluator.0.eval_mask=lidar'):
        cfg = load_config(path, [override])
        assert cfg.val_evaluator.eval_mask == cfg.test_evaluator[0].eval_mask == 'lidar'


@pytest.mark.parametrize('name', ['', '_unified', '_occ3d_nuscenes_swinT_student_cam64_nolidar'])
def test_the_published_configs_read_what_their_model_takes(city, name):
    path = CONFIGS.parents[1] / f'fusion_occ/fusion_occ{name}.py'
    cfg = load_config(path, {'data_root': str(city), 'train_dataloader.dataset.pipeline.0.data_config.src_size': None})
    inputs = build(cfg)[1]['inputs']
    assert inputs['imgs'].shape == (cfg.model.num_adj + 1, 6, *cfg.model.img_view_transformer.input_size, 3)
    assert inputs['segs'].shape == inputs['sparse_depth'].shape == (6, 32, 88)
    assert set(inputs['segs'].unique().tolist()) > {17}
    assert ('points' in inputs) == cfg.model.get('use_lidar', True)
    if 'points' in inputs:
        assert inputs['points'].shape[1] == cfg.model.lidar_in_channel
