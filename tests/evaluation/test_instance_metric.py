"""ScanNet's figures against a plain reading of its protocol, on scenes of random instances."""

import numpy as np
import pytest
from occforge.datasets import scannet_classes
from occforge.errors import ConfigError
from occforge.evaluation import UnifiedSegMetric

STUFF = 2
MIN_POINTS = 20
OVERLAPS = [0.5 + 0.05 * i for i in range(9)]


def scene(rng, names, points=3000):
    """Truth and prediction of a line of points: instances are stretches of it, predictions shifted or doubled."""
    semantic, instance = rng.integers(0, STUFF, points), np.zeros(points, np.int64)
    masks, labels, scores = [], [], []
    start, number = 0, 0
    while start < points - 200:
        length = int(rng.integers(10, 200))  # some are too small to count
        stop, label = start + length, int(rng.integers(STUFF, len(names)))
        if rng.random() < 0.8:
            semantic[start:stop], instance[start:stop] = label, STUFF + number
            number += 1
        for _ in range(int(rng.integers(0, 3))):
            mask = np.zeros(points, bool)
            shift = int(rng.integers(-length // 3 - 1, length // 3 + 1))
            mask[max(start + shift, 0) : max(stop + shift, 0)] = True
            masks.append(mask)
            labels.append(label - STUFF if rng.random() < 0.8 else int(rng.integers(0, len(names) - STUFF)))
            scores.append(rng.random())
        start = stop + int(rng.integers(0, 40))
    instance[semantic < STUFF] = semantic[semantic < STUFF]
    guess = np.where(rng.random(points) < 0.7, semantic, rng.integers(0, len(names), points))
    return dict(
        eval_ann_info=dict(pts_semantic_mask=semantic, pts_instance_mask=instance),
        pred_pts_seg=dict(
            pts_instance_mask=[np.array(masks)], instance_labels=np.array(labels), instance_scores=np.array(scores),
            pts_semantic_mask=[guess],
        ),
    )  # fmt: skip


def precision_area(hits, misses):
    """Area under precision over recall: ``hits`` are (score, correct) of all predictions that count, ``misses`` the
    instances that none found."""
    hits = sorted(hits, reverse=True)
    found = sum(correct for _, correct in hits)
    total = found + misses
    curve = [(0.0, 1.0)]
    for score in sorted({score for score, _ in hits}, reverse=True):
        above = [correct for each, correct in hits if each >= score]
        curve.append((sum(above) / total, sum(above) / len(above)))
    # each precision counts for half of the way between the recalls beside it
    recall = [curve[-1][0], *[r for r, _ in curve[::-1]], 0.0]
    return sum(p * (recall[i] - recall[i + 2]) / 2 for i, (_, p) in enumerate(curve[::-1]))


def expected_ap(scenes, label, threshold):
    """AP of one class at one overlap; None without an instance of it."""
    hits, misses, instances = [], 0, 0
    for data in scenes:
        truth, found = data['eval_ann_info'], data['pred_pts_seg']
        ids, semantic = truth['pts_instance_mask'], truth['pts_semantic_mask']
        void = ids < STUFF
        own = [i for i in np.unique(ids[~void]) if semantic[ids == i][0] == label + STUFF]
        large = [i for i in own if (ids == i).sum() >= MIN_POINTS]
        small = np.isin(ids, [i for i in own if i not in large])
        rows = np.flatnonzero(found['instance_labels'] == label)
        rows = [row for row in rows if found['pts_instance_mask'][0][row].sum() >= MIN_POINTS]
        instances += len(large)
        taken = set()
        for i in large:
            inside, best = ids == i, None
            for row in rows:
                mask, score = found['pts_instance_mask'][0][row], found['instance_scores'][row]
                if row in taken or (mask & inside).sum() / (mask | inside).sum() <= threshold:
                    continue
                taken.add(row)
                if best is None:
                    best = score
                else:  # the one with the lower score is a false alarm
                    hits.append((min(best, score), False))
                    best = max(best, score)
            if best is None:
                misses += 1
            else:
                hits.append((best, True))
        for row in rows:
            mask = found['pts_instance_mask'][0][row]
            overlaps = [(mask & (ids == i)).sum() / (mask | (ids == i)).sum() for i in own]
            if not any(overlap > threshold for overlap in overlaps):
                ignored = (mask & void).sum() + (mask & small).sum()
                if ignored / mask.sum() <= threshold:
                    hits.append((found['instance_scores'][row], False))
    if instances == 0:
        return None
    return precision_area(hits, misses) if hits else 0.0


def mean(values):
    values = [value for value in values if value is not None]
    return np.mean(values) if values else np.nan


def score(scenes, names, **changes):
    metric = UnifiedSegMetric(min_region_size=MIN_POINTS, metric_meta=dict(classes=names), **changes)
    for data in scenes:
        metric.process(None, [data])
    return metric.compute_metrics(metric.results)


@pytest.mark.parametrize('seed', range(3))
def test_average_precision_of_classes_and_groups(seed):
    rng = np.random.default_rng(seed)
    names = ['wall', 'floor', 'chair', 'table', 'lamp', 'cup']
    groups = dict(many=['wall', 'chair', 'table'], few=['lamp', 5])
    scenes = [scene(rng, names) for _ in range(4)]
    numbers = score(scenes, names, eval_mode='multi_class', class_groups=groups)
    for name, overlaps in (('all_ap', OVERLAPS), ('all_ap_50%', [0.5]), ('all_ap_25%', [0.25])):
        each = [mean([expected_ap(scenes, label, overlap) for overlap in overlaps]) for label in range(4)]
        assert 0.05 < np.mean(each) < 0.95
        assert numbers[name] == pytest.approx(np.mean(each), abs=1e-6), name
        assert numbers[f'{name}/many'] == pytest.approx(np.mean(each[:2]), abs=1e-6)
        assert numbers[f'{name}/few'] == pytest.approx(np.mean(each[2:]), abs=1e-6)
    iou = []
    for label in range(6):
        truth, guess = (
            np.concatenate([np.ravel(data[part][key]) for data in scenes]) == label
            for part, key in (('eval_ann_info', 'pts_semantic_mask'), ('pred_pts_seg', 'pts_semantic_mask'))
        )
        iou.append((truth & guess).sum() / (truth | guess).sum())
    assert numbers['miou'] == pytest.approx(np.mean(iou))
    assert numbers['miou/many'] == pytest.approx(np.mean([iou[0], iou[2], iou[3]]))
    assert numbers['miou/few'] == pytest.approx(np.mean(iou[4:]))


def test_one_class_of_objects():
    rng = np.random.default_rng(7)
    names = ['wall', 'floor', 'chair', 'table', 'lamp']
    scenes = [scene(rng, names) for _ in range(3)]
    numbers = score(scenes, names, eval_mode='cat_agnostic', class_groups=dict(few=['lamp']))
    assert 'all_ap/few' not in numbers and numbers['miou/few'] > 0
    for data in scenes:
        data['eval_ann_info']['pts_semantic_mask'] = data['eval_ann_info']['pts_semantic_mask'].clip(0, STUFF)
        data['pred_pts_seg']['instance_labels'] = np.zeros_like(data['pred_pts_seg']['instance_labels'])
    assert numbers['all_ap_50%'] == pytest.approx(expected_ap(scenes, 0, 0.5), abs=1e-6)
    assert numbers['all_ap'] == pytest.approx(mean([expected_ap(scenes, 0, each) for each in OVERLAPS]), abs=1e-6)


def test_groups_of_scannet200_share_out_all_classes():
    names, groups = scannet_classes.SCANNET200_CLASSES, scannet_classes.SCANNET200_GROUPS
    assert {group: len(listed) for group, listed in groups.items()} == dict(head=66, common=68, tail=66)
    assert sorted(name for listed in groups.values() for name in listed) == sorted(names)
    scenes = [scene(np.random.default_rng(0), names)]
    numbers = score(scenes, names, eval_mode='multi_class', class_groups='scannet200')
    things = [
        mean([expected_ap(scenes, names.index(name) - STUFF, 0.25) for name in set(listed) - {'wall', 'floor'}])
        for listed in groups.values()
    ]
    found = [numbers[f'all_ap_25%/{group}'] for group in groups]
    np.testing.assert_allclose(found, things, atol=1e-6)


def test_unknown_groups_are_refused():
    with pytest.raises(ConfigError, match="expected a dict or 'scannet200'"):
        UnifiedSegMetric(class_groups='scannet')
    scenes = [scene(np.random.default_rng(0), ['wall', 'floor', 'chair'])]
    with pytest.raises(ConfigError, match=r"class_groups\.few: unknown classes \['cup'\]"):
        score(scenes, ['wall', 'floor', 'chair'], class_groups=dict(few=['cup']))
