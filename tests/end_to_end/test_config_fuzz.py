"""A config with one wrong field: it runs, or the error names the field."""

import copy
from pathlib import Path

import _cli
import numpy as np
import pytest
import torch
from mmengine.config import Config
from occforge.engine import load_config
from occforge.engine.loops import _Step
from shrink import shrink

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SYSTEMS = [
    'fusion_occ/fusion_occ_synthetic.py',
    'fbocc/fbocc_synthetic.py',
    'uniocc/uniocc_synthetic.py',
    'bevfusion/bevfusion_synthetic.py',
    'ESAM/ESAM_sv_3d_rooms.py',
]
PARTS = ('model', 'optim_wrapper', 'param_scheduler', 'train_dataloader', 'train_cfg', 'default_hooks', 'custom_hooks')
KINDS = ('misspelt', 'missing', 'text', 'number', 'list', 'none')


def places(node, path=()):
    """Paths of all fields of dicts."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from places(value, (*path, index))


def _at(node, path):
    for step in path:
        node = node[step]
    return node


def mutate(cfg, path, kind):
    """A copy with the field changed, and the names one of which the error must give."""
    content = copy.deepcopy(cfg.to_dict())
    holder = content
    for step in path[:-1]:
        holder = holder[step]
    key, value = path[-1], holder[path[-1]]
    names = [key]
    for step in reversed(path[:-1]):  # or the argument of its object that it is a part of
        if isinstance(step, str) and 'type' not in _at(content, path[: path.index(step) + 1]):
            names.append(step)
        elif isinstance(step, str):
            break
    if kind == 'misspelt':
        holder[f'{key}_x'] = holder.pop(key)
    elif kind == 'missing':
        del holder[key]
    else:
        changed = dict(text='wrong', number=-3, list=['wrong', 1], none=None)[kind]
        if type(changed) is type(value):
            changed = {'wrong': 1}
        holder[key] = changed
    # a type decides what the object is: its owner's name says which one
    names += [step for step in path[-2:] if isinstance(step, str)] if key == 'type' else []
    return Config(content, filename=cfg.filename), names


class _Done(Exception):
    """A step has been trained: the rest of the training shows nothing more."""


def one_step(run_iter):
    def stepped(self, *arguments):
        run_iter(self, *arguments)
        raise _Done

    return stepped


def attempt(cfg, work_dir):
    """The error that the tools would show, or None."""
    cfg.work_dir, cfg.launcher, cfg.log_level = str(work_dir), 'none', 'ERROR'
    torch.manual_seed(0)
    try:
        runner = _cli.build_runner(cfg)
        _cli.run(runner.train, cfg)
    except _Done:
        return None
    except Exception as error:
        return ' '.join([type(error).__name__, str(error), *getattr(error, '__notes__', ())])
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('path', SYSTEMS)
def test_a_wrong_field_runs_or_is_named(path, worlds, tmp_path, monkeypatch, count=40):
    monkeypatch.setattr(_Step, 'run_iter', one_step(_Step.run_iter))
    cfg = load_config(CONFIGS / path)
    shrink(cfg, worlds['rooms' if path.startswith('ESAM') else 'city'])
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    fields = [each for part in PARTS if cfg.get(part) for each in places(cfg.to_dict()[part], (part,))]
    rng = np.random.default_rng(0)
    unnamed = []
    for number in range(count):
        where, kind = fields[rng.integers(len(fields))], KINDS[rng.integers(len(KINDS))]
        wrong, names = mutate(cfg, where, kind)
        error = attempt(wrong, tmp_path / str(number))
        if error is not None and not any(str(name) in error for name in names):
            unnamed.append(f'{".".join(map(str, where))} {kind}: {error[:300]}')
    assert not unnamed, '\n'.join(unnamed)
