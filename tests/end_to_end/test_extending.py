"""The code of docs/extending.md, as a package outside of the repository: it trains and it tests."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import HOOKS, MODELS, TRANSFORMS
from occforge.engine import OccRunner, load_config, read_checkpoint
from occforge.models.losses.occupancy import OccTargets

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / 'docs/extending.md').read_text()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Folder with my_package and my_config.py as the guide has them."""
    code, config = re.findall(r'```python\n(.*?)```', GUIDE, re.S)[:2]
    (tmp_path / 'my_package').mkdir()
    (tmp_path / 'my_package/__init__.py').write_text(code)
    (tmp_path / 'my_config.py').write_text(config.replace('<path to>', str(ROOT)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop('my_package', None)
    for registry, names in ((MODELS, ('MyLoss', 'MyDetector')), (TRANSFORMS, ('MyAug',)), (HOOKS, ('MyHook',))):
        for name in names:
            registry.module_dict.pop(name, None)


def test_a_package_of_ones_own_trains_and_tests(package, tiny_city):
    pipeline = load_config(ROOT / 'configs/fusion_occ/fusion_occ_synthetic.py').train_dataloader.dataset.pipeline
    place = [step.type for step in pipeline].index('BEVAug')
    cfg = load_config(
        package / 'my_config.py',
        [
            f'data_root={tiny_city}',
            f'train_dataloader.dataset.pipeline.{place}.type=MyAug',
            'max_epochs=1',
            'image_epochs=0',
            'train_dataloader.num_workers=0',
            'train_dataloader.persistent_workers=False',
            'test_dataloader.num_workers=0',
            'test_dataloader.batch_size=1',
            '+test_dataloader.dataset.indices=1',
        ],
    )
    cfg.work_dir = str(package / 'work_dir')
    cfg.experiment_name = 'extending'
    cfg.train_cfg.val_begin = 1000
    mine = importlib.import_module('my_package')
    torch.manual_seed(0)
    runner = OccRunner.from_cfg(cfg)
    assert type(runner.model) is mine.MyDetector and type(runner.model.loss_occ) is mine.MyLoss
    before = runner.model.log_temperature.item()
    assert before == pytest.approx(np.log(2))
    runner.train()
    assert mine.MyAug.seen == 3 and runner.iter == 3
    assert runner.model.log_temperature.item() != before  # it was trained
    assert (package / 'done.txt').read_text() == 'done: 3 iterations'
    metrics = runner.test()
    assert 0 <= metrics['mIoU/no_mask'] <= 100
    weights = read_checkpoint(package / 'work_dir/epoch_1.pth')['state_dict']
    assert weights['log_temperature'] == runner.model.log_temperature


def test_the_loss_is_the_parents_times_its_scale(package):
    mine = importlib.import_module('my_package')
    cfg = load_config(package / 'my_config.py').model.loss_occ
    fields = {**{key: value for key, value in cfg.items() if key != 'scale'}, 'num_classes': 18, 'lovasz_weight': 0.0}
    own = MODELS.build({**fields, 'scale': cfg.scale})
    parent = MODELS.build({**fields, 'type': 'OccupancyLoss'})
    assert isinstance(own, mine.MyLoss) and own.scale == 0.5
    labels = torch.arange(36) % 18
    counts = torch.bincount(labels, minlength=18).double()
    targets = OccTargets(torch.arange(36), labels, None, counts, torch.zeros(36, dtype=torch.long), 1)
    logits = torch.randn(36, 18, generator=torch.Generator().manual_seed(0))
    found, wanted = (loss(logits, targets, masked=False)['loss_occ'].item() for loss in (own, parent))
    assert wanted > 0 and found == pytest.approx(0.5 * wanted)
