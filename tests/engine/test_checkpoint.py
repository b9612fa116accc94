import collections
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from occforge.engine import read_checkpoint, write_checkpoint
from occforge.engine.checkpoint import (
    check_loadable,
    latest_checkpoint,
    load_weights,
    model_type_of,
    state_dict_of,
)
from occforge.errors import ConfigError, DataError
from torch import nn


def training_checkpoint():
    buffer = HistoryBuffer()
    buffer.update(1.5)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(epoch=1, iter=2, dataset_meta=dict(classes=('a',), weights=np.ones(3), scalar=np.float32(2))),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars=collections.OrderedDict(loss=buffer), runtime_info={}, resumed_keys={}),
    )


def test_what_mmengine_stores_is_read_back(tmp_path):
    content = training_checkpoint()
    write_checkpoint(content, tmp_path / 'a.pth')
    again = read_checkpoint(tmp_path / 'a.pth')
    assert again['message_hub']['log_scalars']['loss'].statistics('mean') == 1.5
    assert again['meta']['dataset_meta']['weights'].tolist() == [1, 1, 1]
    assert torch.equal(again['state_dict']['weight'], content['state_dict']['weight'])
    # the loader that mmengine uses for resume, load_from and init_cfg
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), 'cpu')['meta']['epoch'] == 1


class Payload:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def _payloads(target):
    touch = f'touch {target}'
    return {
        'system': Payload(os.system, touch),
        'open': Payload(open, str(target), 'w'),
        'eval': Payload(eval, f'open({str(target)!r}, "w")'),
        'exec': Payload(exec, f'open({str(target)!r}, "w")'),
        'getattr': Payload(getattr, HistoryBuffer, '__init__'),
        'getattr of a class': Payload(getattr, dict, 'update'),
        'import': Payload(__import__, 'antigravity'),
        'popen': Payload(os.popen, touch),
        'map': Payload(map, os.system, [touch]),
        'mkdir': Payload(os.mkdir, str(target)),
        'load': Payload(torch.load, str(target)),
        'loads': Payload(pickle.loads, pickle.dumps(Payload(os.system, touch))),
    }


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('name', list(_payloads('x')))
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tmp_path, name, legacy):
    target, path = tmp_path / 'ran', tmp_path / 'bad.pth'
    content = dict(state_dict=dict(x=torch.ones(1)), meta=dict(a=_payloads(target)[name]))
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=r'bad.pth: refused') as error:
        read_checkpoint(path)
    with pytest.raises(DataError):
        CheckpointLoader.load_checkpoint(str(path))
    assert not target.exists() and '\n' not in str(error.value)


@pytest.mark.parametrize('size', [0, 1, 100, 1000, -1])
def test_a_damaged_file_is_named(tmp_path, size):
    path = tmp_path / 'a.pth'
    write_checkpoint(training_checkpoint(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r'a.pth'):
        read_checkpoint(path)


@pytest.mark.parametrize('content', [b'hello', b'PK\x03\x04' + b'\0' * 500, os.urandom(2000)])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(DataError, match=r'a.pth'):
        read_checkpoint(tmp_path / 'a.pth')


def test_an_absent_file_and_a_bare_tensor(tmp_path):
    with pytest.raises(DataError, match='no such checkpoint'):
        read_checkpoint(tmp_path / 'none.pth')
    torch.save(torch.ones(2), tmp_path / 'tensor.pth')
    with pytest.raises(DataError, match='dict with weights'):
        read_checkpoint(tmp_path / 'tensor.pth')


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    write_checkpoint(training_checkpoint(), path)
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        write_checkpoint(training_checkpoint(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.pth']


def test_metadata_that_could_not_be_loaded_is_refused_when_saving():
    content = training_checkpoint()
    check_loadable(content)
    content['meta']['dataset_meta']['box_type'] = nn.Linear
    with pytest.raises(DataError, match=r'metadata holds torch.nn.modules.linear.Linear'):
        check_loadable(content)


def test_the_newest_loadable_checkpoint(tmp_path):
    notes = []
    assert latest_checkpoint(tmp_path, notes.append) is None
    for number in (1, 2, 3):
        write_checkpoint(training_checkpoint(), tmp_path / f'epoch_{number}.pth')
        os.utime(tmp_path / f'epoch_{number}.pth', (number, number))
    assert latest_checkpoint(tmp_path, notes.append) == str(tmp_path / 'epoch_3.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert latest_checkpoint(tmp_path, notes.append) == str(tmp_path / 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text('/moved/away/epoch_1.pth')
    assert latest_checkpoint(tmp_path, notes.append) == str(tmp_path / 'epoch_1.pth')
    assert not notes
    copy = shutil.copytree(tmp_path, tmp_path / 'copy')  # of the folder: it is the copy's own file that counts
    (copy / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    assert latest_checkpoint(copy, notes.append) == str(copy / 'epoch_1.pth')
    (copy / 'epoch_1.pth').unlink()
    assert latest_checkpoint(copy, notes.append) == str(tmp_path / 'epoch_1.pth') and not notes
    (tmp_path / 'epoch_1.pth').write_bytes(b'')
    assert latest_checkpoint(tmp_path, notes.append) == str(tmp_path / 'epoch_3.pth')
    assert 'epoch_1.pth' in notes[0]
    for number in (2, 3):
        (tmp_path / f'epoch_{number}.pth').write_bytes(b'x')
    with pytest.raises(DataError, match='none of 3 checkpoints'):
        latest_checkpoint(tmp_path, notes.append)


@pytest.mark.parametrize(
    'content, expected',
    [
        (dict(occforge=dict(model_type='A')), 'A'),
        (dict(meta=dict(cfg="model = dict(type='B', x=1)")), 'B'),
        (dict(meta=dict(config="model = {'x': 1, 'type': 'C'}")), 'C'),
        (dict(meta=dict(cfg='import os\nos.abort()')), None),
        (dict(meta=dict(cfg='(((')), None),
        (dict(), None),
    ],
)
def test_the_model_type_is_read_without_running_the_config(content, expected):
    assert model_type_of(content) == expected


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, classes)


def test_partial_loading_is_reported():
    source, model = Net(classes=10), Net(classes=8)
    state = state_dict_of(dict(state_dict={f'module.{name}': value for name, value in source.state_dict().items()}))
    state['extra.weight'] = torch.ones(1)
    del state['backbone.0.bias'], state['backbone.1.num_batches_tracked']
    report = load_weights(model, state, 'x.pth')
    assert torch.equal(model.backbone[0].weight, source.backbone[0].weight)
    assert report.mismatched == [('head.weight', (10, 4), (8, 4)), ('head.bias', (10,), (8,))]
    assert report.missing == ['backbone.0.bias'] and report.unexpected == ['extra.weight']
    assert len(report.loaded) == 5 and not report.complete
    lines = report.lines()
    assert any('shape of head.weight: (10, 4) in the file, (8, 4) in the model' in line for line in lines)
    backbone = next(line.split() for line in lines if line.strip().startswith('backbone'))
    assert backbone[:7] == ['backbone', '5', '.', '.', '1', '.', '.']
    # of 4 x 2 + 4 + 2 x 4 parameters of the backbone and 8 x 5 of the head, the backbone's but for a bias
    assert report.share == pytest.approx((8 + 8) / (20 + 40))
    assert load_weights(Net(), Net().state_dict(), 'y.pth').complete


def test_loading_nothing_is_an_error():
    with pytest.raises(ConfigError, match='nothing in it fits'):
        load_weights(Net(), {'a.b': torch.ones(1)}, 'x.pth')
    with pytest.raises(DataError, match='no weights'):
        state_dict_of({})
