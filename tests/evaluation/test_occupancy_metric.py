"""The metric against counting voxel by voxel, in any order, over any number of processes."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from occforge.datasets.occ3d import CLASS_NAMES
from occforge.errors import ConfigError, DataError
from occforge.evaluation import OccupancyMetric, RayIoU
from occforge.evaluation.occupancy_metric import MASKS, masked_confusions


def scene(seed, shape=(9, 8, 5), classes=18):
    """A random scene whose prediction is right for about half of the voxels; some classes are absent."""
    rng = np.random.default_rng(seed)
    present = rng.permutation(classes)[: rng.integers(3, classes)]
    gt = rng.choice(present, shape).astype(np.uint8)
    pred = np.where(rng.random(shape) < 0.5, gt, rng.choice(present, shape)).astype(np.uint8)
    masks = {name: rng.random(shape) < rng.random() for name in ('mask_camera', 'mask_lidar')}
    return dict(token=f't{seed}', pred_occ=dict(semantics=torch.from_numpy(pred)), gt_occ=dict(semantics=gt, **masks))


def brute_force(scenes, classes=18):
    """Confusion matrices by walking the voxels one at a time."""
    total = np.zeros((3, classes, classes), dtype=np.int64)
    for s in scenes:
        pred, gt = s['pred_occ']['semantics'].numpy(), s['gt_occ']['semantics']
        for index in np.ndindex(gt.shape):
            if gt[index] < classes:
                seen = (True, s['gt_occ']['mask_camera'][index], s['gt_occ']['mask_lidar'][index])
                for m in range(3):
                    total[m, gt[index], pred[index]] += bool(seen[m])
    return total


def brute_force_iou(matrix, free=17):
    """(mean over occurring classes but free, geometric IoU, per class), in percent, from sums written out."""
    ious = []
    for c in range(len(matrix)):
        tp, fn, fp = matrix[c, c], sum(matrix[c]) - matrix[c, c], sum(matrix[:, c]) - matrix[c, c]
        ious.append(100 * tp / (tp + fn + fp) if tp + fn + fp else float('nan'))
    occupied = [c for c in range(len(matrix)) if c != free]
    hits = sum(matrix[a, b] for a in occupied for b in occupied)
    wrong = sum(matrix[a, free] + matrix[free, a] for a in occupied)
    some = [ious[c] for c in occupied if ious[c] == ious[c]]
    return sum(some) / len(some), 100 * hits / (hits + wrong), ious


def run(scenes, batch=2, **options):
    metric = OccupancyMetric(**options)
    for start in range(0, len(scenes), batch):
        metric.process(None, scenes[start : start + batch])
    return metric.evaluate(len(scenes))


def test_equals_brute_force_on_random_scenes(tmp_path):
    scenes = [scene(seed) for seed in range(50)]
    for count in (1, 3, 50):
        expected = brute_force(scenes[:count])
        out_file = str(tmp_path / 'results.json')
        results = run(scenes[:count], out_file=out_file, eval_mask='camera')
        document = json.load(open(out_file))
        for m, mask in enumerate(MASKS):
            assert np.array_equal(document['confusion'][mask], expected[m])
            mean, geometric, ious = brute_force_iou(expected[m])
            assert results[f'mIoU/{mask}'] == pytest.approx(mean, rel=1e-12)
            assert results[f'geo_IoU/{mask}'] == pytest.approx(geometric, rel=1e-12)
            for name, iou in zip(CLASS_NAMES, ious):
                assert results[f'IoU/{mask}/{name}'] == pytest.approx(iou, rel=1e-12, nan_ok=True)
        assert results['mIoU'] == results['mIoU/camera_mask']
        assert document['samples'] == document['dataset_size'] == count


def test_order_and_batches_do_not_matter():
    scenes = [scene(seed) for seed in range(12)]
    expected = run(scenes)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(12)
        found = run([scenes[i] for i in order], batch=1 + seed % 5)
        assert all(
            found[key] == value or (found[key] != found[key] and value != value) for key, value in expected.items()
        )


def test_a_sample_counts_once():
    scenes = [scene(seed) for seed in range(4)]
    assert run([*scenes, scenes[0], scenes[2]], out_file=None)['mIoU'] == run(scenes)['mIoU']


def test_perfect_is_100_and_a_shift_costs_more_the_wider_it_is():
    blocks = np.random.default_rng(0).integers(0, 18, (5, 5, 4)).repeat(8, 0).repeat(8, 1).repeat(4, 2).astype(np.uint8)
    truth = dict(semantics=blocks, mask_camera=np.ones_like(blocks), mask_lidar=np.ones_like(blocks))
    values = []
    for shift in range(5):
        pred = torch.from_numpy(np.roll(blocks, shift, axis=0))
        values.append(run([dict(token='a', gt_occ=truth, pred_occ=dict(semantics=pred))])['mIoU/lidar_mask'])
    assert values[0] == 100.0 and values == sorted(set(values), reverse=True)


def test_absent_classes_are_stated(caplog, tmp_path):
    grid = np.full((4, 4, 2), 17, np.uint8)
    grid[0] = 4
    truth = dict(semantics=grid, mask_camera=grid == 17, mask_lidar=grid == 4)
    out_file = tmp_path / 'deep' / 'results.json'
    results = run([dict(token='a', gt_occ=truth, pred_occ=dict(semantics=grid))], out_file=str(out_file))
    assert results['mIoU/no_mask'] == results['mIoU/lidar_mask'] == 100.0
    assert np.isnan(results['mIoU/camera_mask']) and np.isnan(results['IoU/no_mask/bus'])
    document = json.load(open(out_file))
    assert document['metrics']['mIoU/camera_mask'] is None and 'bus' in document['absent_classes']['no_mask']
    assert 'car' not in document['absent_classes']['no_mask'] and 'car' in document['absent_classes']['camera_mask']
    assert document['voxels']['no_mask']['car'] == 8


def test_ignored_labels_and_finer_labels():
    rng = np.random.default_rng(0)
    pred = torch.from_numpy(rng.integers(0, 18, (5, 4, 3), dtype=np.uint8))
    fine = rng.integers(0, 18, (10, 12, 3), dtype=np.uint8)
    fine[:2] = 255
    camera, lidar = rng.random((2, 10, 12, 3)) < 0.5
    literal = pred.repeat_interleave(2, 0).repeat_interleave(3, 1)
    found = masked_confusions(pred, *(torch.from_numpy(a) for a in (fine, camera, lidar)), 18)
    expected = brute_force(
        [dict(pred_occ=dict(semantics=literal), gt_occ=dict(semantics=fine, mask_camera=camera, mask_lidar=lidar))]
    )
    assert np.array_equal(found.numpy(), expected)


def test_results_go_to_the_file_and_predictions_to_the_dump_dir(tmp_path):
    scenes = [scene(seed) for seed in range(3)]
    run(scenes, out_file=str(tmp_path / 'results.json'), dump_dir=str(tmp_path / 'dump'))
    assert json.load(open(tmp_path / 'results.json'))['samples'] == 3
    for s in scenes:
        with np.load(tmp_path / 'dump' / f'{s["token"]}.npz') as archive:
            assert archive.files == ['arr_0'] and archive['arr_0'].dtype == np.uint8
            assert np.array_equal(archive['arr_0'], s['pred_occ']['semantics'].numpy())


def test_wrong_input_is_named():
    def error(**changes):
        sample = dict(scene(0), **changes)
        with pytest.raises(DataError) as caught:
            run([sample])
        return str(caught.value)

    good = scene(0)
    assert "sample t0: field 'pred_occ.semantics'" in error(pred_occ={})
    assert "sample t0: field 'gt_occ.semantics'" in error(gt_occ=None)
    assert '18..18' in error(pred_occ=dict(semantics=torch.full((9, 8, 5), 18)))
    assert '(9, 8, 4)' in error(pred_occ=dict(semantics=torch.zeros(9, 8, 4, dtype=torch.uint8)))
    assert 'mask_camera' in error(gt_occ=dict(good['gt_occ'], mask_camera=np.ones((2, 1, 1), bool)))
    assert 'float32' in error(pred_occ=dict(semantics=torch.zeros(9, 8, 5)))
    assert 'token' in error(token=None)
    with pytest.raises(ConfigError, match='eval_mask'):
        OccupancyMetric(eval_mask='image')


def test_evaluating_starts_afresh():
    metric = OccupancyMetric()
    values = []
    for _ in range(2):
        metric.process(None, [scene(0)])
        values.append(metric.evaluate(1)['mIoU'])
    assert values[0] == values[1]


def _rank(rank, world_size, store, queue):
    os.environ['OMP_NUM_THREADS'] = '1'
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world_size)
    indices = list(range(7))
    indices += indices[: -len(indices) % world_size]  # the padding of a distributed sampler
    metric = OccupancyMetric()
    metric.process(None, [scene(i) for i in indices[rank::world_size]])
    queue.put((rank, metric.evaluate(7)))
    dist.destroy_process_group()


def test_several_processes_give_the_numbers_of_one(tmp_path):
    world_size = 3
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, world_size, str(tmp_path / 'store'), queue))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300)[1] for _ in processes]
    for process in processes:
        process.join(60)
    expected = run([scene(i) for i in range(7)])
    for results in found:
        assert results == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_the_classes_are_the_data_sets():
    for metric in (OccupancyMetric(), RayIoU()):
        assert len(metric.class_names) == 18
        metric.dataset_meta = dict(classes=['car', 'rest', 'free'])
        assert metric.class_names == ('car', 'rest', 'free') and metric.free == 2
        metric.dataset_meta = dict(classes=['detections', 'alone'])  # no classes of voxels
        assert metric.free == 2
    chosen = OccupancyMetric(class_names=['a', 'free'])
    chosen.dataset_meta = dict(classes=['car', 'rest', 'free'])
    assert chosen.class_names == ('a', 'free')
    with pytest.raises(ConfigError, match="no 'free'"):
        OccupancyMetric(class_names=['a', 'b'])
    with pytest.raises(ConfigError, match='last class'):
        RayIoU().dataset_meta = dict(classes=['free', 'car'])
    metric = OccupancyMetric()
    metric.dataset_meta = dict(classes=['car', 'rest', 'free'])
    labels = torch.tensor([0, 0, 1, 2, 255], dtype=torch.uint8).view(5, 1, 1)
    seen = torch.ones(5, 1, 1, dtype=torch.bool)
    pred = torch.tensor([0, 1, 1, 2, 0], dtype=torch.uint8).view(5, 1, 1)
    sample = dict(
        token='t', pred_occ=dict(semantics=pred), gt_occ=dict(semantics=labels, mask_camera=seen, mask_lidar=seen)
    )
    metric.process(None, [sample])
    found = metric.evaluate(1)
    assert found['IoU/no_mask/car'] == found['IoU/no_mask/rest'] == pytest.approx(50)
    assert found['mIoU/no_mask'] == pytest.approx(50)
