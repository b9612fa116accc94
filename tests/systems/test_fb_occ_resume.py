"""FB-OCC trained by the runner, its samplers and hooks: stopped in the middle of its sequences it goes on the same."""

import sys
from pathlib import Path

import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmengine.config import Config
from occforge.engine import OccRunner, load_config, read_checkpoint
from occforge.engine.hooks.metrics_csv_hook import read_table
from test_fb_occ import GRID, INPUT_SIZE, tiny_config

sys.path.insert(0, str(Path(__file__).parents[1] / 'datasets'))
from fake_nuscenes import write_world

RUNTIME = Path(__file__).parents[2] / 'configs/_base_/default_runtime.py'
STEPS, STOP = 6, 3  # sequences of four frames: in the middle of two


@TRANSFORMS.register_module()
class ThinLabels(BaseTransform):
    """Labels on the grid of the tiny model."""

    def transform(self, results):
        for name in ('voxel_semantics', 'mask_lidar', 'mask_camera'):
            results[name] = results[name][::10, ::10, ::2]
        return results


def config(root, folder, batch_size, interleave):
    data_config = dict(input_size=INPUT_SIZE, resize=(-0.1, 0.1), rot=(-5, 5), flip=True)
    flips = dict(rot_lim=(0, 0), scale_lim=(1, 1), flip_dx_ratio=0.5, flip_dy_ratio=0.5)
    pipeline = [
        dict(type='PrepareImageInputs', data_config=data_config, is_train=True),
        dict(type='BEVAug', bda_aug_conf=flips, is_train=True),
        dict(type='LoadLidarPoints'),
        dict(type='PointToMultiViewDepth', grid_config=GRID, downsample=8),
        dict(type='LoadOccGTFromFile'),
        dict(type='ThinLabels'),
        dict(type='PackOccInputs', exclude_keys=('points',)),
    ]
    dataset = dict(type='NuScenesOccDataset', ann_file='nuscenes_infos_val.pkl', data_root=str(root))
    fields = dict(
        model=tiny_config(),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_sampler=dict(type='SequenceBatchSampler', interleave=interleave),
            dataset=dict(dataset, pipeline=pipeline, sequences_split_num=1),
        ),
        train_cfg=dict(by_epoch=False, max_iters=STEPS),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(
            checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1),
            logger=dict(interval=1),
            metrics_csv=dict(interval=1),
        ),
        custom_hooks=[dict(type='HistoryHook', temporal_start_iter=0)],
        log_processor=dict(by_epoch=False),
    )
    path = folder / 'config.py'
    Config(fields).dump(path)
    path.write_text(f'_base_ = {str(RUNTIME)!r}\n{path.read_text()}')
    return path


def train(path, work_dir, **fields):
    cfg = load_config(path, dict(work_dir=str(work_dir), **fields))
    cfg.experiment_name = work_dir.name
    OccRunner.from_cfg(cfg).train()
    _, rows = read_table(work_dir / 'metrics.csv')
    losses = {int(row['iter']): {key: row[key] for key in row if 'loss' in key} for row in rows}
    return losses, read_checkpoint(work_dir / f'iter_{STEPS}.pth')['state_dict']


@pytest.mark.parametrize(('batch_size', 'interleave'), [(2, 1), (1, 3)])
def test_a_training_stopped_inside_its_sequences_goes_on_the_same(tmp_path, batch_size, interleave):
    write_world(tmp_path / 'world', scenes=3, frames=4)
    path = config(tmp_path / 'world', tmp_path, batch_size, interleave)
    expected, weights = train(path, tmp_path / 'straight')
    assert len(expected) == STEPS and all('loss_depth' in row for row in expected.values())
    checkpoint = tmp_path / 'straight' / f'iter_{STOP}.pth'
    found, resumed = train(path, tmp_path / 'again', resume=str(checkpoint))
    assert found == {step: expected[step] for step in range(STOP + 1, STEPS + 1)}
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    # it is the memory that does it
    checkpoint.with_name(f'{checkpoint.name}.temporal_rank0').unlink()
    forgetful, _ = train(path, tmp_path / 'forgetful', resume=str(checkpoint))
    if interleave == 1:  # the step after the stop continues a sequence
        assert forgetful[STOP + 1] != expected[STOP + 1]
    assert forgetful != found
