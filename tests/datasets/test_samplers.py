"""Batch samplers that play sequences."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from occforge.datasets import SequenceBatchSampler, SequenceTestBatchSampler
from occforge.datasets.nuscenes_occupancy import sequence_groups
from occforge.errors import ConfigError

LENGTHS = [4, 7, 1, 5, 3, 6, 2, 5, 4, 3]


def source(epoch=0, seed=0):
    groups = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    return SimpleNamespace(dataset=SimpleNamespace(sequence_groups=groups), seed=seed, epoch=epoch)


def batches(epochs, batch_size, rank=0, world=1, **options):
    sampler = SequenceBatchSampler(source(), batch_size, rank_and_world=(rank, world), **options)
    found = []
    for sampler.sampler.epoch in range(epochs):
        found += list(sampler)
        assert len(found) == (sampler.sampler.epoch + 1) * len(sampler)
    return found


def test_sequences_of_scenes():
    scenes = ['a'] * 7 + ['b'] * 4 + ['c']
    assert sequence_groups(scenes).tolist() == [0] * 7 + [1] * 4 + [2]
    assert sequence_groups(scenes, 2).tolist() == [0] * 4 + [1] * 3 + [2] * 2 + [3] * 2 + [4]
    assert sequence_groups(scenes, 3).tolist() == [0] * 3 + [1] * 3 + [2] + [3] * 2 + [4] * 2 + [5]
    assert sequence_groups(scenes, 'all').tolist() == list(range(12))


@pytest.mark.parametrize(('batch_size', 'world'), [(1, 1), (3, 1), (2, 2), (1, 4)])
def test_every_place_plays_whole_sequences(batch_size, world):
    groups = source().dataset.sequence_groups
    visits = Counter()
    for rank in range(world):
        shown = batches(12, batch_size, rank, world)
        assert all(len(batch) == batch_size for batch in shown)
        for place in range(batch_size):
            frames = [batch[place] for batch in shown]
            for before, after in itertools.pairwise(frames):
                if groups[before.index] == groups[after.index] and before.visit == after.visit:
                    assert after.index == before.index + 1
                else:  # the one ended and the other begins
                    assert before.index + 1 == len(groups) or groups[before.index + 1] != groups[before.index]
                    assert after.index == 0 or groups[after.index - 1] != groups[after.index]
            visits.update(frames)
    assert max(visits.values()) == 1  # a visit shows a frame once
    assert {visit.index for visit in visits} == set(range(len(groups)))


def test_an_epoch_is_so_many_passes_over_the_actual_total_batch():
    total = sum(LENGTHS)
    for batch_size, world in ((2, 1), (2, 2)):
        sampler = SequenceBatchSampler(source(), batch_size, epoch_factor=4.554, rank_and_world=(0, world))
        assert len(sampler) == len(list(sampler)) == int(total // (batch_size * world) * 4.554)


def test_resuming_skips_without_changing_what_follows():
    whole = batches(3, 2)
    sampler = SequenceBatchSampler(source(), 2)
    for done in (1, len(sampler) - 1, len(sampler), 2 * len(sampler) + 5):
        sampler.sampler.epoch, inside = divmod(done, len(sampler))
        sampler.skip_batches(inside)
        assert list(sampler) == whole[done : (sampler.sampler.epoch + 1) * len(sampler)]
        assert len(list(sampler)) == len(sampler)  # the skip holds once


@pytest.mark.parametrize(('batch_size', 'world', 'interleave'), [(1, 1, 4), (2, 2, 2), (1, 2, 5)])
def test_interleaved_sequences_are_whole_and_in_order(batch_size, world, interleave):
    groups = source().dataset.sequence_groups
    visits, mixed = Counter(), 0
    for rank in range(world):
        shown = batches(15, batch_size, rank, world, interleave=interleave)
        for place in range(batch_size):
            under_way = {}  # (sequence, visit) -> its latest frame
            for frame in (batch[place] for batch in shown):
                key = groups[frame.index], frame.visit
                begins = frame.index == 0 or groups[frame.index - 1] != groups[frame.index]
                assert begins if key not in under_way else frame.index == under_way.pop(key) + 1
                if frame.index + 1 < len(groups) and groups[frame.index + 1] == groups[frame.index]:
                    under_way[key] = frame.index
                assert len(under_way) <= interleave
                mixed = max(mixed, len(under_way))
                visits[frame] += 1
    assert mixed == interleave and max(visits.values()) == 1
    assert {visit.index for visit in visits} == set(range(len(groups)))


def test_interleaved_sequences_resume():
    whole = batches(3, 2, interleave=3)
    sampler = SequenceBatchSampler(source(), 2, interleave=3)
    for done in (1, len(sampler), 2 * len(sampler) + 5):
        sampler.sampler.epoch, inside = divmod(done, len(sampler))
        sampler.skip_batches(inside)
        assert list(sampler) == whole[done : (sampler.sampler.epoch + 1) * len(sampler)]


def test_no_more_are_interleaved_than_there_are():
    assert SequenceBatchSampler(source(), 3, rank_and_world=(0, 1), interleave=8).interleave == len(LENGTHS) // 3
    assert batches(2, 3, interleave=8) == batches(2, 3, interleave=3)


def test_seeds_differ():
    assert batches(1, 2) == batches(1, 2) != batches(1, 2, seed=1)


@pytest.mark.parametrize('world', [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize('batch_size', [1, 3])
def test_testing_shows_every_frame_once_in_order(world, batch_size):
    groups, shown, loads = source().dataset.sequence_groups, Counter(), []
    for rank in range(world):
        sampler = SequenceTestBatchSampler(source(), batch_size, rank_and_world=(rank, world))
        assert len(sampler) == len(list(sampler))
        last = {}
        for batch in sampler:
            assert 0 < len(batch) <= batch_size
            assert len({groups[index] for index in batch}) == len(batch)
            for index in batch:
                start = index == 0 or groups[index - 1] != groups[index]
                assert start or last[groups[index]] == index - 1
                last[groups[index]] = index
            shown.update(batch)
        loads.append(sum(len(batch) for batch in sampler))
    assert shown == Counter(range(len(groups)))
    assert max(loads) <= sum(LENGTHS) / world + max(LENGTHS)


def test_bad_data_sets_are_refused():
    with pytest.raises(ConfigError, match='10 sequences for 12 places'):
        SequenceBatchSampler(source(), 3, rank_and_world=(0, 4))
    with pytest.raises(ConfigError, match='interleave is 0'):
        SequenceBatchSampler(source(), 3, rank_and_world=(0, 1), interleave=0)
    plain = SimpleNamespace(dataset=SimpleNamespace(sequence_groups=None), seed=0, epoch=0)
    for kind in (SequenceBatchSampler, SequenceTestBatchSampler):
        with pytest.raises(ConfigError, match='sequences_split_num'):
            kind(plain, 1)
