"""UniOcc's and RenderOcc's configs: every one builds, the official ones with the published parameters."""

import json
import os
from pathlib import Path

import pytest
from mmdet3d.registry import MODELS, TRANSFORMS
from occforge.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted([*(ROOT / 'configs/renderocc').glob('*.py'), *(ROOT / 'configs/uniocc').glob('*.py')])


def _published():
    path = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs')) / 'UniOcc_params.json'
    if not path.is_file():
        return {}
    return {name.partition(':')[2]: shapes for name, shapes in json.loads(path.read_text()).items()}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
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
