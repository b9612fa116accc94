"""results.json: one form for the metrics of all systems."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from occforge.datasets.info_files import load_infos
from occforge.errors import DataError
from occforge.evaluation import (
    BEVBoxMetric,
    BEVMapMetric,
    BEVNuScenesMetric,
    OccupancyMetric,
    RayIoU,
    UnifiedSegMetric,
)
from occforge.evaluation.results import Number, merge_documents, results_document, with_prefix, write_results

UNITS = {'%', 'fraction', 'm', 'rad', 'm/s'}


def check_form(document, logged):
    """What every metric's part holds, and that it says what was logged."""
    assert document['samples'] <= document['dataset_size']
    assert set(document['samples_by_protocol']) == set(document['protocols'])
    names = [number['name'] for number in document['numbers']]
    assert len(set(names)) == len(names)
    assert document['metrics'] == {number['name']: number['value'] for number in document['numbers']}
    for number in document['numbers']:
        assert tuple(number) == Number._fields
        assert number['protocol'] in document['protocols'] and number['unit'] in UNITS
        assert number['mask'] in (None, 'no_mask', 'camera_mask', 'lidar_mask')
        assert number['value'] is None or math.isfinite(number['value'])
        assert number['class_name'] is None or number['class_name'] in document['class_names']
    for name, value in logged.items():
        assert document['metrics'][name] == (value if math.isfinite(value) else None), name
    json.dumps(document, allow_nan=False)


def box_samples(city, shift=0.3, classes=('car', 'pedestrian')):
    """The boxes of a city's held-out frames, moved, as a model's answer."""
    metainfo, infos = load_infos(city / 'nuscenes_infos_val.pkl')
    names = {label: name for name, label in metainfo['categories'].items()}
    samples = []
    for place, info in enumerate(infos):
        items = [item for item in info['instances'] if names.get(item['bbox_label_3d']) in classes]
        boxes = torch.tensor([[*item['bbox_3d'], *item['velocity']] for item in items]).reshape(-1, 9).nan_to_num()
        boxes[:, 0] += shift
        boxes[:, 2] -= boxes[:, 5] / 2  # info files give the centre, mmdet3d's boxes the bottom's
        samples.append(
            dict(
                sample_idx=place,
                pred_instances_3d=dict(
                    bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
                    scores_3d=torch.linspace(0.9, 0.1, len(items)),
                    labels_3d=torch.tensor([classes.index(names[item['bbox_label_3d']]) for item in items]).long(),
                ),
            )
        )
    return dict(classes=list(classes), version=metainfo['version']), samples


@pytest.mark.parametrize('kind', [BEVNuScenesMetric, BEVBoxMetric])
def test_boxes(kind, tiny_city):
    meta, samples = box_samples(tiny_city)
    metric = kind(data_root=str(tiny_city), ann_file='nuscenes_infos_val.pkl')
    metric.dataset_meta = meta
    metric.process({}, samples)
    logged = metric.evaluate(len(samples))
    check_form(metric.document, logged)
    assert metric.document['metrics']['mATE'] == pytest.approx(0.3, abs=0.02)
    by_name = {number['name']: number for number in metric.document['numbers']}
    assert by_name['mAP']['class_name'] is None and by_name['AP@0.5m/car']['class_name'] == 'car'
    assert [by_name[name]['unit'] for name in ('mAP', 'mATE', 'mAOE', 'mAVE')] == ['fraction', 'm', 'rad', 'm/s']
    distances = [by_name[f'AP@{d}m/car']['value'] for d in ('0.5', '1', '2', '4')]
    assert by_name['AP/car']['value'] == pytest.approx(np.mean(distances))


def test_data_without_nuscenes_tables_are_said_at_once(tiny_city, tmp_path):
    with pytest.raises(DataError, match=r'no nuScenes tables.*BEVBoxMetric'):
        BEVNuScenesMetric(data_root=str(tmp_path), ann_file='custom_infos_val.pkl')
    meta, samples = box_samples(tiny_city)
    metric = BEVNuScenesMetric(data_root=str(tiny_city), ann_file='nuscenes_infos_val.pkl')
    metric.dataset_meta = meta
    metric.process({}, samples[:-1])  # as with an info file of part of the split
    with pytest.raises(DataError, match=r"split 'val'.*BEVBoxMetric"):
        metric.evaluate(len(samples) - 1)


def test_the_order_of_the_samples_is_nothing_to_the_boxes(tiny_city):
    meta, samples = box_samples(tiny_city)
    for sample in samples:  # ties are where order could count
        sample['pred_instances_3d']['scores_3d'].fill_(0.5)
        half = len(sample['pred_instances_3d']['labels_3d']) // 2
        sample['pred_instances_3d']['bboxes_3d'].tensor[:half, 0] += 30
    found = []
    for order in itertools.permutations(samples):
        metric = BEVBoxMetric('nuscenes_infos_val.pkl', str(tiny_city))
        metric.dataset_meta = meta
        metric.process({}, order)
        found.append(metric.evaluate(len(samples)))
    assert len(found) > 1 and all(each == found[0] for each in found)


def map_metric():
    metric = BEVMapMetric(thresholds=(0.4, 0.6), classes=['road', 'walkway'])
    masks = torch.zeros(2, 4, 4)
    masks[0, :2] = 1
    probs = torch.full((2, 4, 4), 0.5)
    metric.process({}, [dict(pred_masks_bev=dict(probs=probs), gt_masks_bev=dict(masks=masks), token='a')])
    return metric


def test_map_masks():
    metric = map_metric()
    logged = metric.evaluate(1)
    check_form(metric.document, logged)
    assert logged['map/road/iou@0.40'] == pytest.approx(0.5) and logged['map/road/iou@0.60'] == 0
    assert metric.document['absent_map_classes'] == ['walkway']


@pytest.mark.parametrize('mode', ['cat_agnostic', 'multi_class'])
def test_instances(mode):
    names = ['wall', 'floor', 'chair', 'table']
    semantic = np.repeat([0, 2, 2, 3], 50)
    instance = np.repeat([0, 2, 3, 4], 50)
    masks = np.stack([instance == each for each in (2, 4)])  # one chair is not found
    found = dict(
        pts_instance_mask=[masks],
        instance_labels=np.array([0, 1]),
        instance_scores=np.array([0.9, 0.8]),
        pts_semantic_mask=[semantic],
    )
    metric = UnifiedSegMetric(eval_mode=mode, min_region_size=10, metric_meta=dict(classes=names))
    truth = dict(pts_semantic_mask=semantic, pts_instance_mask=instance)
    metric.process({}, [dict(pred_pts_seg=found, eval_ann_info=truth)])
    logged = metric.evaluate(1)
    check_form(metric.document, logged)
    assert logged['mrec'] == pytest.approx(2 / 3 if mode == 'cat_agnostic' else (1 / 2 + 1) / 2)
    instances = [n for n in metric.document['numbers'] if n['protocol'] == 'scannet_instances']
    per_class = {number['class_name'] for number in instances} - {None}
    assert per_class == ({'object'} if mode == 'cat_agnostic' else {'chair', 'table'})


def test_occupancy_and_others_in_one_file(tmp_path):
    rng = np.random.default_rng(0)
    grids = [torch.from_numpy(rng.integers(0, 18, (8, 8, 4)).astype(np.uint8)) for _ in range(2)]
    masks = {name: torch.ones(8, 8, 4, dtype=torch.bool) for name in ('mask_camera', 'mask_lidar')}
    origins = np.zeros((1, 3))
    sample = dict(token='a', pred_occ=dict(semantics=grids[0]), gt_occ=dict(semantics=grids[1], **masks))
    documents, everything = [], {}
    for metric in (OccupancyMetric(), RayIoU(), map_metric()):
        if not isinstance(metric, BEVMapMetric):
            metric.process(None, [dict(sample, ray_origins=origins)])
        logged = metric.evaluate(2 if isinstance(metric, OccupancyMetric) else 1)
        check_form(metric.document, logged)
        documents.append(with_prefix(metric.document, metric.prefix))
        everything |= logged
    write_results(tmp_path / 'results.json', documents, config='c.py')
    document = json.loads((tmp_path / 'results.json').read_text())
    first, *_, last = document
    assert (first, last) == ('config', 'numbers')
    assert set(document['protocols']) == {'occ3d_miou', 'rayiou', 'bev_map_iou'}
    assert {k: v for k, v in everything.items() if math.isfinite(v)}.items() <= document['metrics'].items()


def test_a_prefix_is_in_the_names():
    number = Number('mIoU/no_mask', 12.5, 'mIoU', 'occ3d_miou', 'no_mask')
    document = results_document([number], dict(occ3d_miou='...'), 1, 1, ['car', 'free'])
    moved = with_prefix(document, 'night')
    assert moved['metrics'] == {'night/mIoU/no_mask': 12.5} and moved['numbers'][0]['name'] == 'night/mIoU/no_mask'
    assert merge_documents([document, moved])['metrics'].keys() == {'mIoU/no_mask', 'night/mIoU/no_mask'}
    assert with_prefix(document, None) == with_prefix(document, '') == document
