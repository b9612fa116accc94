"""Every config parses, survives being written and read again, and builds: model, pipelines and metrics."""

from pathlib import Path

import pytest
import torch
from mmdet3d.registry import METRICS, MODELS, TRANSFORMS
from mmengine.registry import DefaultScope
from occforge.engine import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts
)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def pipelines(dataset):
    """All pipelines in the config of a data set, through its wrappers."""
    if 'pipeline' in dataset:
        yield dataset.pipeline
    inner = dataset.get('dataset', dataset.get('datasets'))
    for one in inner if isinstance(inner, (list, tuple)) else [inner] if inner is not None else []:
        yield from pipelines(one)


def build(config):
    """The model without memory for its weights, where its constructor makes no constants from computed numbers."""
    try:
        with torch.device('meta'):
            return MODELS.build(config)
    except (RuntimeError, NotImplementedError) as error:
        if 'meta' not in str(error) and 'device' not in str(error):
            raise
    return MODELS.build(config)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config(path, tmp_path):
    cfg = load_config(ROOT / 'configs' / path)
    cfg.dump(tmp_path / 'again.py')
    again = load_config(tmp_path / 'again.py')
    assert again.to_dict() == cfg.to_dict()
    DefaultScope.get_instance('test', scope_name=cfg.get('default_scope', 'mmdet3d'))
    model = build(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    assert all(hasattr(model, name) for name in ('loss', 'predict'))
    for loader in (cfg.get(name) for name in LOADERS):
        for pipeline in pipelines(loader.dataset) if loader else ():
            assert [TRANSFORMS.build(step) for step in pipeline]
    for evaluator in (cfg.get(name) for name in ('val_evaluator', 'test_evaluator')):
        for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []:
            assert METRICS.build(metric)
