"""UniOcc's and RenderOcc's configs: every one builds, the official ones with the published parameters."""

import json
import os
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS, TRANSFORMS
from occforge.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted([*(ROOT / 'configs/renderocc').glob('*.py'), *(ROOT / 'configs/uniocc').glob('*.py')])
PRETRAINERS = [path for path in CONFIGS if path.stem.endswith('depth_pretrain')]
DETECTORS = [path for path in CONFIGS if path not in PRETRAINERS]


def _published():
    path = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs')) / 'UniOcc_params.json'
    if not path.is_file():
        return {}
    return {name.partition(':')[2]: shapes for name, shapes in json.loads(path.read_text()).items()}


@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.stem)
def test_every_config_builds_and_loads_what_its_model_needs(path):
    cfg = load_config(path)
    model = MODELS.build(cfg.model)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    published = _published() if path.parent.name == 'renderocc' else {}
    expected = published.get(f'renderocc/{path.name}')
    if expected is not None:
        assert found == expected

    for loader in ('train_dataloader', 'val_dataloader'):
        dataset = cfg[loader].dataset
        while 'pipeline' not in dataset:
            dataset = dataset.dataset
        steps = {step.type: step for step in dataset.pipeline}
        for step in dataset.pipeline:
            TRANSFORMS.build(step)
        images = steps['PrepareImageInputs']
        student = getattr(model, 'student', model)
        assert tuple(images.data_config.input_size) == student.img_view_transformer.input_size
        assert images.get('num_adjacent', 0) + 1 >= student.num_frames
        assert dataset.num_adjacent >= images.get('num_adjacent', 0)
        if loader == 'val_dataloader':
            assert 'GenerateRays' not in steps
            continue
        renders = getattr(student, 'nerf_head', None) is not None
        assert ('GenerateRays' in steps) == renders
        assert ('LoadOccGTFromFile' in steps) == getattr(student, 'use_3d_loss', True)
        if renders:
            assert steps['GenerateRays'].get('key_ego', 'first_camera') == student.key_ego


def test_the_published_configs_are_all_there():
    if not _published():
        pytest.skip('UniOcc_params.json not found: set OCCFORGE_SPECS to the folder that holds it')
    names = {path.name for path in (ROOT / 'configs/renderocc').glob('*.py')}
    assert {Path(name).name for name in _published()} <= names
    assert 'renderocc-7frame-640x1600.py' in names


def _on_city(cfg, loader, root):
    """The dataset of a config on the tiny city: other files, everything else as it is."""
    dataset = cfg[loader].dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    dataset.update(data_root=str(root), ann_file='nuscenes_infos_train.pkl')
    for step in dataset.pipeline:
        if 'data_config' in step:
            step.data_config.pop('src_size', None)
        if step.type == 'GenerateRays':
            step.max_rays = 200
    return DATASETS.build(cfg[loader].dataset)


@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.stem)
def test_every_pipeline_makes_what_its_model_takes(path, tiny_city):
    cfg = load_config(path)
    item = _on_city(cfg, 'train_dataloader', tiny_city)[0] if '10percent.py' not in path.name else None
    if item is None:  # a tenth of three frames is none
        cfg.train_dataloader.dataset.dataset.label_fraction = 1.0
        item = _on_city(cfg, 'train_dataloader', tiny_city)[0]
    inputs = item['inputs']
    model = cfg.model.get('detector', cfg.model)
    assert tuple(inputs['imgs'].shape[2:4]) == tuple(model.img_view_transformer.input_size)
    assert ('rays' in inputs) == (model.get('nerf_head') is not None)
    if 'rays' in inputs:
        assert inputs['rays'].shape == (200, 13)
    assert 'sparse_depth' in inputs and 'points' not in inputs
    assert ('gt_occ' in item['data_samples']) == (model.get('use_3d_loss', True) is True)
    tested = _on_city(cfg, 'val_dataloader', tiny_city)[0]
    assert not {'rays', 'points', 'sparse_depth'} & set(tested['inputs'])


@pytest.mark.parametrize('path', PRETRAINERS, ids=lambda path: path.stem)
def test_every_pretraining_reads_images_and_depth_alone(path, tiny_city):
    cfg = load_config(path)
    item = _on_city(cfg, 'train_dataloader', tiny_city)[0]
    assert tuple(item['inputs']['imgs'].shape[2:4]) == tuple(cfg.model.depth_net.input_size)
    assert 'sparse_depth' in item['inputs'] and not {'rays', 'points'} & set(item['inputs'])
    assert 'gt_occ' not in item['data_samples']
    model = MODELS.build(cfg.model).train()
    batch = dict(inputs={name: [value] for name, value in item['inputs'].items()}, data_samples=[item['data_samples']])
    losses = model(**model.data_preprocessor(batch), mode='loss')
    assert set(losses) == {'loss_depth'} and losses['loss_depth'] > 0


def test_the_small_teacher_and_student_train_a_step(tiny_city):
    cfg = load_config(ROOT / 'configs/uniocc/uniocc_synthetic_10percent_teacher.py')
    cfg.train_dataloader.dataset.label_fraction = 0.34
    dataset = _on_city(cfg, 'train_dataloader', tiny_city)
    flags = [dataset.is_labelled(index) for index in range(3)]
    items = [dataset[flags.index(True)], dataset[flags.index(False)]]
    model = MODELS.build(cfg.model)
    model.init_weights()
    batch = model.train().data_preprocessor(
        dict(
            inputs={name: [item['inputs'][name] for item in items] for name in items[0]['inputs']},
            data_samples=[item['data_samples'] for item in items],
        )
    )
    losses = model(**batch, mode='loss')
    assert {'loss_3d_geo', 'loss_render_depth', 'loss_teacher_geo', 'loss_lss_depth'} <= set(losses)
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    assert torch.isfinite(total) and model.student.img_backbone.conv1.weight.grad.any()
