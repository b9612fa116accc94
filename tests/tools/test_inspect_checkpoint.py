"""tools/inspect_checkpoint.py, and how tools load what is not quite a checkpoint of theirs."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from occforge.engine import read_checkpoint, write_checkpoint
from test_train_and_test import TOY, tool

CLASSES = ('a', 'b')


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """Weights of the toy model but for its head, which has another shape, and one tensor more."""
    sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))
    from toy import ToyModel

    state = ToyModel().state_dict()
    state['head.weight'], state['head.bias'] = torch.ones(3, 8), torch.ones(3)
    state['extra.weight'] = torch.ones(5)
    path = tmp_path_factory.mktemp('file') / 'a.pth'
    meta = dict(epoch=2, iter=12, dataset_meta=dict(classes=CLASSES), mmengine_version='0.10.7')
    write_checkpoint(dict(state_dict=state, meta=meta), path)
    return path


def test_a_file_is_described(tmp_path, file):
    result = tool(tmp_path, 'inspect_checkpoint.py', file, '--json', tmp_path / 'out.json')
    assert result.code == 0, result.err
    for text in ('epoch: 2', 'classes: a, b', 'written_by: mmengine 0.10.7', 'training_state: False'):
        assert text in result.out
    assert f'sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}' in result.out
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if not line.split()[0].endswith(':')}
    assert rows['first'] == ['1', '32', 'float32'] and rows['norm'] == ['5', '33', 'float32,', 'int64']
    written = json.loads((tmp_path / 'out.json').read_text())
    assert written['tensors']['head.weight'] == dict(shape=[3, 8], dtype='torch.float32')


def test_the_report_without_training(tmp_path, file):
    result = tool(tmp_path, 'inspect_checkpoint.py', file, TOY, '--json', tmp_path / 'out.json')
    assert result.code == 0, result.err
    assert 'a.pth: 7 of 9 tensors of the model loaded' in result.out
    assert 'shape of head.weight: (3, 8) in the file, (1, 8) in the model' in result.out
    assert 'in the file alone: extra.weight' in result.out
    assert json.loads((tmp_path / 'out.json').read_text())['unexpected'] == ['extra.weight']
    assert not (tmp_path / 'work_dirs').exists()
    result = tool(tmp_path, 'inspect_checkpoint.py', file, TOY, '--load_from.leave', 'head', '--load_from.min_loaded=1')
    assert result.code == 0 and '2 kept on purpose' in result.out, result.err
    result = tool(tmp_path, 'inspect_checkpoint.py', file, TOY, '--load_from.min_loaded', '0.95')
    assert result.code == 2 and 'gives 84.2% of the parameters, min_loaded is 95.0%' in result.err


def test_a_model_is_not_tested_with_weights_that_are_missing(tmp_path, file):
    result = tool(tmp_path, 'test.py', TOY, file, '--work-dir', tmp_path / 'work')
    assert result.code == 2 and 'only 84.2% of the wanted 57 parameters' in result.err
    result = tool(tmp_path, 'test.py', TOY, file, '--work-dir', tmp_path / 'work', '--min-loaded', '0.8')
    assert result.code == 0, result.err
    assert json.loads((tmp_path / 'work' / 'load_report_test.json').read_text())['shape'][0]['name'] == 'head.weight'


def test_load_from_on_the_command_line_keeps_what_the_config_says_about_names(tmp_path, file):
    options = ['--load_from.leave', 'first', '--load-from', file, '--optimizer.lr', '0', '--max_epochs', '1']
    result = tool(tmp_path, 'train.py', TOY, '--work-dir', tmp_path / 'work', *options)
    assert result.code == 0, result.err
    report = json.loads((tmp_path / 'work' / 'load_report.json').read_text())
    assert report['kept'] == ['first.weight'] and report['left'] == ['first.weight']


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_unsafe_pickles_need_the_option_and_are_named(tmp_path, file):
    target, path = tmp_path / 'ran', tmp_path / 'bad.pth'
    torch.save(dict(read_checkpoint(file), more=Payload(target)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    test = ['test.py', TOY, path, '--work-dir', tmp_path / 'work', '--min-loaded', '0.5']
    for option in ([], ['--allow-unsafe-pickle', '0' * 64]):
        result = tool(tmp_path, *test, *option)
        assert result.code == 2 and f'--allow-unsafe-pickle {digest}' in result.err and not target.exists()
    result = tool(tmp_path, *test, '--allow-unsafe-pickle', digest)
    assert result.code == 0 and target.exists()
    assert f'bad.pth (SHA-256 {digest}) wants to run' in result.out + result.err
