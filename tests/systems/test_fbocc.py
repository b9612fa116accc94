"""FB-OCC: built from its configs, trained for a step, and its memory of sequences."""

import json
import os
from pathlib import Path

import pytest
from mmdet3d.registry import MODELS
from occforge.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'


def _specs(name):
    folder = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs'))
    if not (folder / name).is_file():
        pytest.skip(f'{name} not found: set OCCFORGE_SPECS to the folder that holds it')
    return json.loads((folder / name).read_text())


def test_official_size_has_the_published_parameters():
    model = MODELS.build(load_config(CONFIGS / '_base_/models/fbocc.py').model)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    for name, expected in _specs('FBOCC_params.json').items():
        assert found == expected, name
    assert sum(parameter.numel() for parameter in model.parameters()) == 68_457_727
