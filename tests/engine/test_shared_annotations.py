"""The processes of a machine have one copy of the annotations together."""

import os
import tempfile

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from occforge.engine import shared_annotations
from occforge.engine.shared_annotations import share_annotations
from ranks import run_ranks


class Listed(BaseDataset):
    """Annotations that are given."""

    def __init__(self, infos):
        self.infos = infos
        super().__init__()

    def load_data_list(self):
        return [dict(info) for info in self.infos]


def _infos(count, offset=0):
    return [dict(number=index + offset, text='x' * 1000) for index in range(count)]


def _inode(array):
    """Of the file that an array is mapped from, as the kernel tells; None: of none."""
    address = array.ctypes.data
    with open('/proc/self/maps') as maps:
        for line in maps:
            span, _, _, _, inode, *_ = line.split()
            first, last = (int(end, 16) for end in span.split('-'))
            if first <= address < last:
                return int(inode) or None
    return None


def _equal_on_all_but_the_last(rank, world):
    dataset = ConcatDataset([Listed(_infos(50)), Listed(_infos(60, offset=rank == world - 1))])
    shared = share_annotations(dataset)
    inodes = [_inode(part.data_bytes) for part in dataset.datasets]
    read = [dataset[index]['number'] for index in (0, 49, 50, 109)]
    torch.distributed.barrier()
    left = [name for name in os.listdir('/dev/shm') if name.startswith(f'occforge-annotations-{os.getpid()}-')]
    return dict(shared=shared, inodes=inodes, read=read, left=left, nbytes=dataset.datasets[0].data_bytes.nbytes)


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='Linux')
def test_equal_annotations_are_one_mapping(tmp_path):
    first, second, last = run_ranks(_equal_on_all_but_the_last, 3, tmp_path)
    assert first['inodes'] == second['inodes'] and None not in first['inodes']
    assert last['inodes'] == [first['inodes'][0], None]  # its second data set is another one
    assert last['shared'] == first['nbytes'] and first['shared'] > 2 * first['nbytes']
    assert first['read'] == second['read'] == [0, 49, 0, 59] and last['read'] == [0, 49, 1, 60]
    assert not first['left'] and not last['left']


def _nowhere_to_write(rank, world):
    shared_annotations._write = lambda array: None
    dataset = Listed(_infos(20))
    return dict(shared=share_annotations(dataset), number=dataset[19]['number'])


def _one_has_none(rank, world):
    dataset = Listed(_infos(20)) if rank else torch.utils.data.TensorDataset(torch.zeros(3))
    return dict(shared=share_annotations(dataset))


def test_each_keeps_its_own_where_sharing_cannot_be(tmp_path):
    for found in run_ranks(_nowhere_to_write, 2, tmp_path):
        assert found == dict(shared=0, number=19)
    assert [found['shared'] for found in run_ranks(_one_has_none, 2, tmp_path)] == [0, 0]


def test_a_full_disk_is_no_end(monkeypatch, tmp_path):
    array = np.arange(1000, dtype=np.uint8)
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path))
    made = tempfile.mkstemp

    def full(prefix, dir):
        if dir == '/dev/shm':
            raise OSError(28, 'No space left on device')
        return made(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, 'mkstemp', full)
    path = shared_annotations._write(array)
    assert path.startswith(str(tmp_path)) and np.array_equal(np.fromfile(path, np.uint8), array)
    monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path / 'nowhere'))
    assert shared_annotations._write(array) is None


def test_one_process_needs_nothing():
    dataset = Listed(_infos(3))
    before = dataset.data_bytes
    assert share_annotations(dataset) == 0 and dataset.data_bytes is before
