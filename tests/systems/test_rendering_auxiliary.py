"""Rendering as an auxiliary of other systems: one field switches it on, and its losses reach the whole network."""

from pathlib import Path

import numpy as np
import pytest
import test_fb_occ
import test_fusion_occ
import torch
from mmdet3d.registry import MODELS
from occforge.datasets.rays import ray_rows
from occforge.engine.config import load_config
from occforge.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
HEAD = dict(type='NerfHead', point_cloud_range=test_fusion_occ.RANGE, voxel_size=0.8, alpha_init=0.5)
WEIGHTS = dict(weight_line_of_sight=0.1)


def _rays(inputs):
    """Some rays of each sample's first camera, 4 m to a car."""
    rows = []
    for pose, intrinsics in zip(inputs['sensor2ego'][:, 0, 0], inputs['intrins'][:, 0, 0]):
        uv = np.random.default_rng(0).uniform(2, 30, (20, 2))
        rows.append(torch.from_numpy(ray_rows(uv, np.full(20, 4.0), np.full(20, 4), pose.numpy(), intrinsics.numpy())))
    return rows


def _fusion(**fields):
    return test_fusion_occ.tiny_model(**fields), *test_fusion_occ.tiny_batch()


def _fbocc(**fields):
    model = test_fb_occ.tiny_model(history_cat_num=0, **fields)
    frames = [test_fb_occ.tiny_frame(sequence, 0) for sequence in (0, 1)]
    batch = model.data_preprocessor(
        dict(
            inputs={name: [inputs[name] for inputs, _ in frames] for name in frames[0][0]},
            data_samples=[sample for _, sample in frames],
        )
    )
    return model, batch['inputs'], batch['data_samples']


@pytest.mark.parametrize('build', [_fusion, _fbocc])
def test_one_field_adds_rendering_losses_that_reach_the_image_branch(build):
    names = {'loss_render_depth', 'loss_render_semantic', 'loss_render_sight'}
    model, inputs, samples = build(render_head=HEAD | WEIGHTS)
    inputs['rays'] = _rays(inputs)
    model.train()
    losses = model(inputs, samples, mode='loss')
    assert names <= set(losses)
    sum(losses[name] for name in names).backward()
    reached = [name for name, value in model.img_neck.named_parameters() if value.grad is not None and value.grad.any()]
    assert reached
    plain, _, _ = build()
    plain.train()
    assert not names & set(plain(inputs, samples, mode='loss'))
    del inputs['rays']
    with pytest.raises(ConfigError, match='GenerateRays'):
        model(inputs, samples, mode='loss')


@pytest.mark.parametrize('name', ['fusion_occ/fusion_occ_synthetic', 'fbocc/fbocc_synthetic'])
def test_the_child_configs_differ_by_the_head_and_its_rays(name):
    base, child = (load_config(CONFIGS / f'{name}{suffix}.py') for suffix in ('', '_rendering'))
    model = dict(child.model)
    head = MODELS.build(model.pop('render_head'))
    assert model == dict(base.model)
    assert head.shift == 0  # a voxel's opacity is its probability of being occupied
    ours, theirs = (list(cfg.train_dataloader.dataset.pipeline) for cfg in (child, base))
    rays = [step for step in ours if step.type == 'GenerateRays']
    assert [step for step in ours if step not in rays] == theirs and len(rays) == 1
    assert child.val_dataloader == base.val_dataloader
    assert rays[0].key_ego == child.model.get('key_ego', 'CAM_FRONT')
