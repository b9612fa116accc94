"""RayIoU and RayPQ against a plain-Python implementation of the protocol, ray by ray; in any order; merged."""

import json
import math
import multiprocessing
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from occforge.datasets.occ3d import CLASS_NAMES
from occforge.datasets.ray_origins import ray_origins, scene_ray_origins
from occforge.errors import ConfigError, DataError
from occforge.evaluation import RayIoU, RayPQ
from occforge.evaluation.ranges import column_rings, range_names
from occforge.evaluation.rays import (
    IOU_UNIT,
    THING_CLASSES,
    drop_mixed_instances,
    panoptic_counts,
    ray_directions,
    ray_pq,
)

RANGE = (-4.0, -4.0, -1.0, 4.0, 4.0, 1.4)  # 20 x 20 x 6 cells of 0.4 m
EDGES = (0.0, 2.0, 3.5)


def scene(seed, instances=False):
    rng = np.random.default_rng(seed)
    shape = (20, 20, 6)
    gt = np.where(rng.random(shape) < 0.06, rng.integers(0, 17, shape), 17).astype(np.uint8)
    gt[:, :, 0] = 11
    pred = np.where(rng.random(shape) < 0.85, gt, 17).astype(np.uint8)
    pred[rng.random(shape) < 0.01] = 4
    if seed % 3 == 0:
        pred = np.roll(pred, 1, axis=0)
    sample = dict(token=f't{seed}', pred_occ=dict(semantics=torch.from_numpy(pred)), gt_occ=dict(semantics=gt))
    sample['ray_origins'] = rng.uniform((-3, -3, 0), (3, 3, 1), (2, 3))
    if instances:
        ids = rng.integers(0, 3, (5, 5, 1)).repeat(4, 0).repeat(4, 1).repeat(6, 2)
        sample['pred_occ']['instances'] = ids
        sample['gt_occ']['instances'] = np.where(rng.random(shape) < 0.9, ids, 0)
    return sample


def cast(grid, origin, direction, lower=RANGE[:3], size=0.4):
    """(label, depth, cell) of one ray, by stepping through its own list of face crossings."""
    position = [(o - low) / size for o, low in zip(origin, lower)]
    cell = [math.floor(p) for p in position]
    crossings = []
    for axis in range(3):
        d = direction[axis] / size
        if d:
            faces = range(cell[axis] + 1, 25) if d > 0 else range(cell[axis], -5, -1)
            crossings += [((face - position[axis]) / d, -axis, axis, 1 if d > 0 else -1) for face in faces]
    for t, _, axis, step in sorted(crossings):
        if not all(0 <= c < n for c, n in zip(cell, grid.shape)):
            break
        if grid[tuple(cell)] != 17:
            return int(grid[tuple(cell)]), t, tuple(cell)
        cell[axis] += step
    return 17, None, None


def rays_of(sample, directions):
    pred, gt = sample['pred_occ']['semantics'].numpy(), np.asarray(sample['gt_occ']['semantics'])
    for origin in sample['ray_origins']:
        for direction in directions.tolist():
            truth = cast(gt, origin, direction)
            if truth[0] != 17:
                yield truth, cast(pred, origin, direction)


def brute_force(scenes, directions, ring=None):
    """RayIoU per threshold and class, written out; nan where no ray met the class."""
    true, predicted, hits = [0] * 17, [0] * 17, [[0] * 17 for _ in range(3)]
    for sample in scenes:
        for (label, depth, cell), (other, other_depth, _) in rays_of(sample, directions):
            centre = [RANGE[a] + (cell[a] + 0.5) * 0.4 for a in range(2)]
            if ring is not None and sum(edge <= math.hypot(*centre) for edge in EDGES) - 1 != ring:
                continue
            true[label] += 1
            if other != 17:
                predicted[other] += 1
            for k, threshold in enumerate((1, 2, 4)):
                hits[k][label] += label == other and abs(depth - other_depth) < threshold
    return np.array([
        [h / (t + p - h) if t + p - h else math.nan for t, p, h in zip(true, predicted, row)] for row in hits
    ])  # fmt: skip


def thin(metric, every=97):
    """Fewer rays, so that plain Python follows."""
    metric._directions = metric._directions[::every]
    return metric


def run(scenes, batch=2, every=97, cls=RayIoU, **options):
    if cls is RayIoU:
        options.setdefault('range_edges', EDGES)
    metric = thin(cls(point_cloud_range=RANGE, **options), every)
    for start in range(0, len(scenes), batch):
        metric.process(None, scenes[start : start + batch])
    return metric.evaluate(len(scenes))


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        found[key] == value or (math.isnan(found[key]) and math.isnan(value)) for key, value in expected.items()
    )


def test_equals_plain_python(tmp_path):
    scenes = [scene(seed) for seed in range(6)]
    directions = ray_directions()[::97].astype(np.float64)
    out_file = tmp_path / 'results.json'
    results = run(scenes, out_file=str(out_file))
    table = 100 * brute_force(scenes, directions)
    assert np.isfinite(table).sum() > 30 and 5 < np.nanmean(table) < 95
    assert results['RayIoU'] == pytest.approx(np.nanmean(table), rel=1e-12)
    for k, threshold in enumerate((1, 2, 4)):
        assert results[f'RayIoU@{threshold}'] == pytest.approx(np.nanmean(table[k]), rel=1e-12)
    for c, name in enumerate(CLASS_NAMES[:17]):
        mean = np.nanmean(table[:, c]) if np.isfinite(table[:, c]).any() else math.nan
        assert results[f'RayIoU/{name}'] == pytest.approx(mean, rel=1e-12, nan_ok=True)
    for ring, name in enumerate(('0-2m', '2-3.5m', '3.5m+')):
        expected = 100 * brute_force(scenes, directions, ring)
        assert results[f'RayIoU/{name}'] == pytest.approx(np.nanmean(expected), rel=1e-12)
    document = json.loads(out_file.read_text())
    assert document['metrics']['RayIoU'] == results['RayIoU'] and 'rayiou' in document['protocols']
    by_name = {number['name']: number for number in document['numbers']}
    assert by_name['RayIoU@2/car']['mask'] == 'no_mask' and by_name['RayIoU@2/car']['protocol'] == 'rayiou'
    assert by_name['RayIoU@2/car']['value'] == pytest.approx(table[1, 4], rel=1e-12)


def test_hand_numbers():
    # A car in the cell [2, 2.4) of x, predicted 1.2 m nearer. Own position at the middle of the grid.
    gt = np.full((20, 20, 6), 17, np.uint8)
    gt[15, :, :] = 4
    pred = np.full_like(gt, 17)
    pred[12, :, :] = 4
    sample = dict(token='a', pred_occ=dict(semantics=torch.from_numpy(pred)), gt_occ=dict(semantics=gt))
    sample['ray_origins'] = [[0.2, 0.2, 0.2]]
    metric = RayIoU(point_cloud_range=RANGE)
    metric._directions = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    metric.process(None, [sample])
    results = metric.evaluate(1)
    # one ray counts (the other meets nothing); 1.2 m apart: wrong at 1 m, right at 2 and 4 m
    assert [results[f'RayIoU@{t}'] for t in (1, 2, 4)] == [0.0, 100.0, 100.0]
    assert results['RayIoU'] == results['RayIoU/car'] == pytest.approx(200 / 3)
    assert math.isnan(results['RayIoU/bus'])


def test_perfect_is_100_and_a_shift_costs_more_the_wider_it_is():
    sample, values = scene(1), []
    for shift in range(4):
        sample['pred_occ'] = dict(semantics=torch.from_numpy(np.roll(sample['gt_occ']['semantics'], shift, 0)))
        values.append(run([sample], every=7)['RayIoU@1'])
    assert values[0] == 100.0 and values == sorted(values, reverse=True) and values[3] < 60


def test_order_batches_and_repeats_do_not_matter():
    scenes = [scene(seed, instances=True) for seed in range(8)]
    for cls in (RayIoU, RayPQ):
        expected = run(scenes, cls=cls)
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(8).tolist()
            assert equal(run([scenes[i] for i in [*order, order[0]]], batch=1 + seed % 3, cls=cls), expected)


def test_finer_labels_and_labels_to_ignore():
    sample = scene(2)
    fine = dict(sample, gt_occ=dict(semantics=sample['gt_occ']['semantics'].repeat(2, 0).repeat(2, 1).repeat(3, 2)))
    literal = dict(fine, pred_occ=dict(semantics=sample['pred_occ']['semantics'].repeat_interleave(2, 0)
                                       .repeat_interleave(2, 1).repeat_interleave(3, 2)))  # fmt: skip
    assert equal(run([fine]), run([literal]))
    free = scene(2)['gt_occ']['semantics'].copy()
    ignored = free.copy()
    free[free == 4], ignored[ignored == 4] = 17, 255
    assert equal(run([dict(sample, gt_occ=dict(semantics=ignored))]), run([dict(sample, gt_occ=dict(semantics=free))]))


def test_ray_pq_equals_plain_python():
    scenes = [scene(seed, instances=True) for seed in range(4)]
    directions = ray_directions()[::7].astype(np.float64)
    results = run(scenes, every=7, cls=RayPQ)
    things = [CLASS_NAMES.index(name) for name in THING_CLASSES]
    table = np.full((3, 17), math.nan)
    segments = []
    for sample in scenes:
        semantics, instances = sample['gt_occ']['semantics'].copy(), sample['gt_occ']['instances']
        for number in np.unique(instances):  # an instance of several things is no obstacle
            of_thing = (instances == number) & np.isin(semantics, things)
            if len(np.unique(semantics[of_thing])) > 1:
                semantics[of_thing] = 17
        sample = dict(sample, gt_occ=dict(semantics=semantics))
        ids = sample['pred_occ']['instances']
        segments.append([
            (label, int(instances[cell]) if label in things else 0, depth, other,
             int(ids[other_cell]) if other != 17 else 0, other_depth)
            for (label, depth, cell), (other, other_depth, other_cell) in rays_of(sample, directions)
        ])  # fmt: skip
    for k, threshold in enumerate((1, 2, 4)):
        for c in range(17):
            matches, quality, wrong = 0, 0.0, 0
            for rays in segments:
                truth, pred = {}, {}
                for index, (label, number, _, other, other_number, _) in enumerate(rays):
                    if label == c:
                        truth.setdefault(number, set()).add(index)
                    if other == c:
                        pred.setdefault(other_number, set()).add(index)
                used = [set(), set()]
                for a, first in truth.items():
                    for b, second in pred.items():
                        common = sum(abs(rays[i][2] - rays[i][5]) < threshold for i in first & second)
                        iou = common / (len(first) + len(second) - common)
                        if iou > 0.5:
                            matches, quality = matches + 1, quality + iou
                            used[0].add(a), used[1].add(b)
                for side, group in zip(used, (truth, pred)):
                    wrong += sum(len(members) >= 10 for number, members in group.items() if number not in side)
            if matches + wrong:
                table[k, c] = quality / (matches + wrong / 2)
    assert np.isfinite(table).sum() > 10 and 0 < np.nanmean(table) < 1
    assert results['RayPQ'] == pytest.approx(100 * np.nanmean(table), rel=1e-9)
    assert results['RayPQ@2'] == pytest.approx(100 * np.nanmean(table[1]), rel=1e-9)


def test_panoptic_hand_numbers():
    # 20 rays meet car 1, predicted as car 7 but for 4 of them, which are within no threshold: 16 / (20 + 20 - 16).
    truth, ids = np.full(20, 4), np.ones(20, int)
    depth = np.zeros(20)
    error = np.where(np.arange(20) < 4, 9.0, 0.0)
    counts = panoptic_counts(truth, 7 * ids, error, truth, ids, depth, 17, [4], [1.0])
    assert counts[0, :, 4].tolist() == [1, 0, 0, round(16 / 24 * IOU_UNIT)]
    assert ray_pq(counts)[0, 4] == pytest.approx(2 / 3)
    counts = panoptic_counts(truth[:9], 7 * ids[:9], error[:9] + 9, truth[:9], ids[:9], depth[:9], 17, [4], [1.0])
    assert counts.sum() == 0 and np.isnan(ray_pq(counts)[0, 4])  # nine rays are too few for an error
    counts = panoptic_counts(truth, 7 * ids, error + 9, truth, ids, depth, 17, [4], [1.0])
    assert counts[0, :, 4].tolist() == [0, 1, 1, 0] and ray_pq(counts)[0, 4] == 0


def test_an_instance_of_several_things_is_free_space():
    semantics = np.array([[[4, 3, 4, 11, 17]]])
    unmixed, ids = drop_mixed_instances(semantics, np.array([[[1, 1, 2, 1, 0]]]), (3, 4), 17)
    assert unmixed.tolist() == [[[17, 17, 4, 11, 17]]] and ids.tolist() == [[[1, 1, 2, 1, 0]]]


# ------------------------------------------------------------------------------------------------------- rays, rings
def test_directions():
    directions = ray_directions()
    assert directions.shape == (14040, 3) and directions.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    pitches = np.degrees(np.arcsin(directions[::360, 2]))
    np.testing.assert_allclose(pitches[:4], [-45, -26.565, -18.435, -14.036], atol=1e-3)
    assert len(pitches) == 39 and math.sin(0.21) < directions[-1, 2] < math.sin(0.22)


def test_origins_along_a_straight_drive():
    # 1 m a frame along x, LiDAR 1 m ahead of the ego origin and 2 m up, turned by 90 degrees
    lidar2ego = np.array([[0, 1, 0, 1], [-1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1.0]])
    poses = np.stack([np.eye(4)] * 100)
    poses[:, 0, 3] = np.arange(100)
    origins = ray_origins(poses @ lidar2ego, 50, lidar2ego)
    # positions within 39 m: x = 1 + k, k = -39 .. 37 (|x| < 39); eight of the 77 at equal spacing
    assert len(origins) == 8
    np.testing.assert_allclose(origins[:, 0], 1 - 39 + np.round(np.linspace(0, 76, 8)), atol=1e-9)
    np.testing.assert_allclose(origins[:, 1:], [[0, 2]] * 8, atol=1e-9)
    few = ray_origins((poses @ lidar2ego)[:3], 1, lidar2ego)
    np.testing.assert_allclose(few, [[0, 0, 2], [1, 0, 2], [2, 0, 2]], atol=1e-12)
    infos = [
        dict(token=str(k), scene_token=str(k % 2), timestamp=float(k), ego2global=poses[k].tolist(),
             lidar_points=dict(lidar2ego=lidar2ego.tolist()))
        for k in (4, 0, 2, 1, 3)
    ]  # fmt: skip
    found = scene_ray_origins(infos)
    np.testing.assert_allclose(found['2'], [[-1, 0, 2], [1, 0, 2], [3, 0, 2]], atol=1e-12)
    assert len(found['3']) == 2
    with pytest.raises(DataError, match=r'a\.pkl: item 1.*lidar2ego'):
        scene_ray_origins([infos[0], dict(infos[1], lidar_points={})], 'a.pkl')


def test_rings():
    assert range_names((0, 20, 35)) == ['0-20m', '20-35m', '35m+']
    rings = column_rings((200, 200, 16), (-40, -40, -1, 40, 40, 5.4), (0, 20, 35))
    x, y = np.meshgrid(*[-40 + 0.4 * (np.arange(200) + 0.5)] * 2, indexing='ij')
    distance = np.hypot(x, y)
    assert np.array_equal(rings.numpy(), (distance >= 20).astype(int) + (distance >= 35))
    for edges in ((), (1, 2), (0, 5, 5)):
        with pytest.raises(ConfigError, match='range_edges'):
            range_names(edges)


# ---------------------------------------------------------------------------------------------------------- bad input
def test_wrong_input_is_named():
    def error(cls=RayIoU, **changes):
        with pytest.raises(DataError) as caught:
            run([dict(scene(0), **changes)], cls=cls)
        return str(caught.value)

    assert "RayIoU: sample t0: field 'ray_origins' is missing" in error(ray_origins=None)
    assert "'ray_origins' has shape (3,)" in error(ray_origins=[1.0, 2.0, 3.0])
    assert "'ray_origins'" in error(ray_origins=[[math.nan, 0, 0]])
    assert "field 'pred_occ.semantics' is missing" in error(pred_occ={})
    assert '18..18' in error(pred_occ=dict(semantics=torch.full((20, 20, 6), 18)))
    assert '(20, 20, 5)' in error(pred_occ=dict(semantics=torch.zeros(20, 20, 5, dtype=torch.uint8)))
    assert 'float32' in error(pred_occ=dict(semantics=torch.zeros(20, 20, 6)))
    assert "'pred_occ.instances' is missing" in error(RayPQ)
    for options in (dict(thresholds=()), dict(thresholds=(-1,)), dict(point_cloud_range=(0, 0, 0, 1, 1, 0))):
        with pytest.raises(ConfigError, match=next(iter(options))):
            RayIoU(**options)
    with pytest.raises(ConfigError, match='tram'):
        RayPQ(things=['tram'])


# ---------------------------------------------------------------------------------------------------------- processes
def _rank(rank, world_size, store, queue):
    os.environ['OMP_NUM_THREADS'] = '1'
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world_size)
    indices = [*range(5), 0]  # with the padding of a distributed sampler
    metrics = [
        thin(RayIoU(point_cloud_range=RANGE, range_edges=EDGES)),
        thin(RayPQ(point_cloud_range=RANGE)),
    ]
    results = []
    for metric in metrics:
        metric.process(None, [scene(i, instances=True) for i in indices[rank::world_size]])
        results.append(metric.evaluate(5))
    queue.put((rank, results))
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(rank, 2, str(tmp_path / 'store'), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300)[1] for _ in processes]
    for process in processes:
        process.join(60)
    scenes = [scene(i, instances=True) for i in range(5)]
    for results in found:
        assert equal(results[0], run(scenes)) and equal(results[1], run(scenes, cls=RayPQ))
