"""Every config parses, survives being written and read again, builds, and takes a training step and a test.

The steps are those of a shrunk copy (``shrink.py``); ``make test-slow`` also takes 200 in mixed precision and some at
official size.
"""

import math
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import METRICS, MODELS, TRANSFORMS
from mmengine.registry import DefaultScope
from occforge.datasets.random_samples import use_random_samples
from occforge.engine import load_config
from shrink import LOADERS, leaves, run, shorten_pass, shrink

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path.relative_to(ROOT / 'configs')
    for path in (ROOT / 'configs').rglob('*')
    if path.suffix in ('.py', '.yaml') and '_base_' not in path.parts
)


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
        for dataset in leaves(loader.dataset) if loader else ():
            assert [TRANSFORMS.build(step) for step in dataset.pipeline]
    for evaluator in (cfg.get(name) for name in ('val_evaluator', 'test_evaluator')):
        for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator] if evaluator else []:
            assert METRICS.build(metric)


# ------------------------------------------------------------------------------------------------------- shrunk copies
@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_a_training_step_and_a_test(path, worlds, tmp_path):
    torch.manual_seed(0)
    cfg = load_config(ROOT / 'configs' / path)
    world = 'rooms' if path.parts[0].startswith('ESAM') else 'other' if path.parts[0] == 'custom' else 'city'
    shrink(cfg, worlds[world])
    metrics = run(cfg, tmp_path)
    assert bool(metrics) == bool(cfg.get('test_dataloader'))
    assert any(math.isfinite(value) for value in metrics.values()) or not metrics
    assert (tmp_path / 'metrics.csv').is_file() and (not metrics or (tmp_path / 'results.json').is_file())


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a CPU without bfloat16 takes a second or two a step
@pytest.mark.parametrize(
    'path',
    [
        'fusion_occ/fusion_occ.py',
        'fbocc/fbocc_synthetic.py',
        'uniocc/uniocc_synthetic.py',
        'bevfusion/bevfusion_synthetic.py',
        'ESAM/ESAM_sv_bifusion_rooms.py',
    ],
)
def test_200_steps_of_mixed_precision(path, worlds, tmp_path):
    """In bfloat16, the finite-loss guard watching."""
    torch.manual_seed(0)
    cfg = load_config(ROOT / 'configs' / path)
    shrink(cfg, worlds['rooms' if path.startswith('ESAM') else 'city'])
    cfg.train_cfg = dict(by_epoch=False, max_iters=200, val_begin=1000)
    cfg.param_scheduler = []
    cfg.optim_wrapper.type = 'OccAmpOptimWrapper'
    assert cfg.default_hooks.finite_loss.action == 'stop'
    metrics = run(cfg, tmp_path)
    assert any(math.isfinite(value) for value in metrics.values())


# ------------------------------------------------------------------------------------------------------- official size
@pytest.mark.slow
@pytest.mark.parametrize(
    'path',
    [
        'fusion_occ/fusion_occ.py',
        'fbocc/fbocc-r50-cbgs_depth_16f_16x4_20e.py',
        'renderocc/renderocc-7frame-256x704.py',
        'bevfusion/bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py',
    ],
)
def test_a_step_at_official_size(path, tmp_path):
    """On noise in nuScenes' formats and sizes; 16 GB of memory."""
    cfg = load_config(ROOT / 'configs' / path, ['with_cp_3d=True'] if 'fusion_occ' in path else [])
    cfg.load_from = None
    use_random_samples(cfg, tmp_path / 'data', samples=1)
    cfg.model.get('img_backbone', {}).pop('init_cfg', None)
    cfg.train_cfg.update(max_epochs=1, val_begin=1000)
    for name in LOADERS:
        cfg[name].update(batch_size=1, num_workers=0, persistent_workers=False)
        shorten_pass(cfg[name], 1)
    if 'bevfusion' in path:  # no nuScenes tables
        metric = dict(type='BEVBoxMetric', data_root=str(tmp_path / 'data'), ann_file='nuscenes_infos_val.pkl')
        cfg.val_evaluator = cfg.test_evaluator = [metric]
    assert run(cfg, tmp_path / 'work')
