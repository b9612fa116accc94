"""Fine labels and masks: counting against the plain loop, storage, flips, loss and metric from counts, errors."""

import numpy as np
import pytest
import torch
from fake_nuscenes import write_world
from mmengine.structures import BaseDataElement
from occforge.datasets import NuScenesOccDataset
from occforge.datasets.fine_labels import CellCounts, FineLabels, read_fine_labels, write_fine_labels
from occforge.errors import ConfigError, DataError
from occforge.evaluation import OccupancyMetric
from occforge.evaluation.occupancy_metric import counted_confusions, masked_confusions
from occforge.models.losses import OccupancyLoss, class_table

GRID = (3, 4, 2)


def arrays(labels=(4, 2, 3), camera=(4, 2, 3), lidar=(4, 2, 3), seed=0):
    """Labels and masks, each finer than GRID by its own ratio; in patches, so that many cells hold one kind alone."""
    rng = np.random.default_rng(seed)

    def patches(ratio, high):
        small = rng.integers(0, high, GRID, dtype=np.uint8)
        for axis, factor in enumerate(ratio):
            small = small.repeat(factor, axis)
        noise = rng.integers(0, high, small.shape, dtype=np.uint8)
        return np.where(rng.random(small.shape) < 0.05, noise, small)

    semantics = patches(labels, 18)
    semantics[rng.random(semantics.shape) < 0.05] = 255
    return semantics, *(None if ratio is None else patches(ratio, 2) for ratio in (camera, lidar))


def plainly(semantics, camera, lidar, fine):
    """{(cell, code): number}, voxel by voxel."""
    found = {}

    def at(values, place):
        return int(values[tuple(p * n // f for p, n, f in zip(place, values.shape, fine))])

    for place in np.ndindex(fine):
        label = at(semantics, place)
        if label == 255:
            continue
        bits = sum((1 if mask is None else at(mask, place)) << bit for bit, mask in enumerate((camera, lidar)))
        cell = np.ravel_multi_index([p * g // f for p, g, f in zip(place, GRID, fine)], GRID)
        found[cell, 4 * label + bits] = found.get((cell, 4 * label + bits), 0) + 1
    return found


def as_dict(counts):
    assert (np.diff(counts.cells) >= 0).all()
    return {(cell, code): number for cell, code, number in zip(*(column.tolist() for column in counts[:3]))}


@pytest.mark.parametrize(
    'ratios',
    [
        dict(),
        dict(camera=(1, 1, 1), lidar=None),
        dict(labels=(1, 1, 1), camera=(8, 8, 8), lidar=(2, 4, 4)),
        dict(labels=(2, 2, 2), camera=(4, 2, 6), lidar=(1, 2, 2)),
    ],
)
def test_counts_equal_the_plain_loop(ratios, monkeypatch):
    monkeypatch.setattr('occforge.datasets.fine_labels._SLAB', 100)  # several slabs
    values = arrays(**ratios)
    labels = FineLabels(*values)
    counts = labels.counts(GRID)
    assert as_dict(counts) == plainly(*values, labels.shape)
    assert counts.grid == GRID and counts.cells.dtype == np.int32 and counts.codes.dtype == np.uint8


@pytest.mark.parametrize('storage', ['dense', 'packed', 'counts', 'folder'])
def test_storage(tmp_path, storage):
    semantics, camera, lidar = arrays(labels=(4, 4, 8), camera=(4, 4, 8), lidar=(1, 1, 1))
    semantics[semantics == 255] = 17
    labels = FineLabels(semantics, camera, lidar)
    path = tmp_path / 'labels_4x.npz'
    if storage == 'folder':
        path = tmp_path / 'labels'
        path.mkdir()
        for name, values in (('semantics', semantics), ('mask_camera', camera), ('mask_lidar', lidar)):
            np.save(path / f'{name}.npy', values)
    else:
        write_fine_labels(path, labels, storage, GRID)
    read = read_fine_labels(path)
    if storage == 'counts':
        assert isinstance(read, CellCounts)
        counts = read
    else:
        for found, expected in zip(read.dense(), (semantics, camera, lidar)):
            np.testing.assert_array_equal(found, expected)
        counts = read.counts(GRID)
    assert as_dict(counts) == as_dict(labels.counts(GRID))


def test_masks_come_from_the_second_file(tmp_path):
    semantics, camera, lidar = arrays(camera=(1, 1, 1), lidar=(1, 1, 1))
    np.savez(tmp_path / 'labels.npz', semantics=semantics[::4, ::2, ::3], mask_camera=camera, mask_lidar=lidar)
    np.savez(tmp_path / 'fine.npz', semantics=semantics)
    read = read_fine_labels(tmp_path / 'fine.npz', tmp_path / 'labels.npz')
    assert as_dict(read.counts(GRID)) == as_dict(FineLabels(semantics, camera, lidar).counts(GRID))


@pytest.mark.parametrize('flips', [(True, False), (False, True), (True, True)])
def test_flips(flips):
    step = (slice(None, None, -1 if flips[0] else 1), slice(None, None, -1 if flips[1] else 1))
    values = arrays()
    expected = FineLabels(*(value[step] for value in values)).counts(GRID)
    assert as_dict(FineLabels(*values).counts(GRID).flip(*flips)) == as_dict(expected)


def element(counts):
    return BaseDataElement(**{name: torch.as_tensor(value) for name, value in counts._asdict().items()})


@pytest.mark.parametrize('masked', [True, False])
def test_the_loss_from_counts_equals_that_from_voxels(masked):
    loss, logits, results = OccupancyLoss(), torch.randn(2 * 24, 18, dtype=torch.float64, requires_grad=True), []
    values = [arrays(seed=seed) for seed in (1, 2)]
    semantics, camera = (torch.from_numpy(np.stack([value[i] for value in values])) for i in (0, 1))
    tables = [class_table(element(FineLabels(*value).counts(GRID)), GRID, 18, masked) for value in values]
    for targets in (loss.targets(semantics, camera if masked else None, GRID), loss.count_targets(tables, GRID)):
        value = loss(logits[targets.index], targets, masked)['loss_occ']
        results.append((value, *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_the_metric_from_counts_equals_that_from_voxels():
    values = arrays(lidar=(1, 1, 1))
    pred = torch.randint(0, 18, GRID)
    counts = {name: torch.as_tensor(value) for name, value in FineLabels(*values).counts(GRID)._asdict().items()}
    expected = masked_confusions(pred, *(torch.from_numpy(value) for value in values), 18)
    assert torch.equal(counted_confusions(pred, counts, 18), expected)
    results = []
    for occ in (dict(fine=counts), dict(zip(('semantics', 'mask_camera', 'mask_lidar'), values))):
        metric = OccupancyMetric(range_edges=(0.0,))
        metric.process(None, [dict(token='a', pred_occ=dict(semantics=pred), gt_occ=occ)])
        results.append(metric.evaluate(1))
    assert results[0] == pytest.approx(results[1], nan_ok=True)


def pipeline(form, flips):
    conf = dict(flip_dx_ratio=1.0, flip_dy_ratio=1.0)
    load = [dict(type='LoadOccGTFromFile'), dict(type='LoadFineOccGT', file_name='labels_2x.npz', form=form)]
    flip = [dict(type='BEVAug', bda_aug_conf=conf, is_train=True)]
    return {'no': load, 'after': load + flip, 'before': flip + load}[flips] + [dict(type='PackOccInputs')]


def test_loading_with_flips_before_and_after(tmp_path):
    infos = write_world(tmp_path, scenes=1, frames=1)
    folder = tmp_path / infos[0]['occ_path']
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 18, (50, 50, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1).repeat(4, 2)
    np.savez_compressed(folder.with_name('labels_2x.npz'), semantics=fine)
    coarse = np.load(folder)

    def load(form, flips):
        data = NuScenesOccDataset('nuscenes_infos_val.pkl', str(tmp_path), pipeline(form, flips))[0]
        return data['data_samples'].gt_occ

    labels = FineLabels(fine, coarse['mask_camera'], coarse['mask_lidar'])
    plain, after, before = (load('counts', flips) for flips in ('no', 'after', 'before'))
    for found, expected in ((plain, labels.counts((200, 200, 16))), (after, labels.counts((200, 200, 16)).flip(1, 1))):
        for name in ('cells', 'codes', 'counts'):
            np.testing.assert_array_equal(getattr(found.fine, name), getattr(expected, name))
    assert torch.equal(before.fine.cells, after.fine.cells) and torch.equal(before.fine.codes, after.fine.codes)
    assert torch.equal(before.semantics, after.semantics)
    for flips, expected in (('no', fine), ('before', fine[::-1, ::-1])):
        found = load('voxels', flips)
        np.testing.assert_array_equal(found.semantics, expected)
        assert found.mask_camera.shape == (200, 200, 16)


def test_errors_say_what_is_wrong(tmp_path):
    semantics, camera, _ = arrays()
    with pytest.raises(DataError, match=r'\(12, 8, 6\), expected a multiple of \(5, 4, 2\)'):
        FineLabels(semantics).counts((5, 4, 2))
    with pytest.raises(DataError, match='expected multiples of each other'):
        FineLabels(semantics, camera[:8])
    with pytest.raises(DataError, match=r'holds the label 18, expected 0\.\.17 or 255'):
        FineLabels(np.full(GRID, 18, np.uint8)).counts(GRID)
    with pytest.raises(DataError, match='not ascending'):
        FineLabels((np.array([3, 2]), np.array([1, 1]), GRID))
    with pytest.raises(DataError, match='bits are uint8'):
        FineLabels(semantics, (np.zeros((12, 8, 2), np.uint8), (12, 8, 6)))
    with pytest.raises(DataError, match='the file is missing'):
        read_fine_labels(tmp_path / 'none.npz')
    np.savez(tmp_path / 'a.npz', other=semantics)
    with pytest.raises(DataError, match="expected 'semantics', or 'occupied'"):
        read_fine_labels(tmp_path / 'a.npz')
    infos = write_world(tmp_path, scenes=1, frames=1)
    fine = (tmp_path / infos[0]['occ_path']).with_name('labels_2x.npz')
    write_fine_labels(fine, FineLabels(semantics), 'counts', GRID)
    for form, error, message in (
        ('voxels', ConfigError, 'needs the voxels'),
        ('counts', DataError, r'counts by cells of the grid \(3, 4, 2\), expected \(200, 200, 16\)'),
    ):
        with pytest.raises(error, match=message):
            NuScenesOccDataset('nuscenes_infos_val.pkl', str(tmp_path), pipeline(form, 'no'))[0]
    fine = element(FineLabels(*arrays()).counts(GRID))
    with pytest.raises(DataError, match='counted on the grid'):
        class_table(fine, (3, 4, 4), 18, True)
