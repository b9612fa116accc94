"""Pictures of a test, of every task."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import HOOKS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes, PointData
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData
from occforge.apis import Boxes, Instances, Map, Occupancy, PredictionVisHook
from occforge.datasets import occ3d
from occforge.errors import DataError
from occforge.visualization import read_image, write_png

CAMERAS = ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT']


class DataSet:
    metainfo = dict(classes=('car', 'pedestrian'))

    def __init__(self, *infos):
        self.infos = infos

    def __len__(self):
        return len(self.infos)

    def get_data_info(self, number):
        return self.infos[number]


def test_the_hook(tmp_path):
    images = {}
    for name in CAMERAS:
        write_png(tmp_path / f'{name}.png', np.zeros((9, 16, 3), np.uint8))
        images[name] = dict(img_path=str(tmp_path / f'{name}.png'))
    dataset = DataSet(*(dict(token=f't{i}', scene_name='scene-0001', images=images) for i in range(3)))
    rng, samples = np.random.default_rng(0), []
    for number in (2, 0, 1):  # samplers have orders of their own
        grid = torch.from_numpy(rng.integers(0, 18, occ3d.GRID_SIZE).astype(np.uint8))
        # a place that is not the sample's own does not count
        sample = Det3DDataSample(metainfo=dict(token=f't{number}', sample_idx=1))
        sample.pred_occ, sample.gt_occ = BaseDataElement(semantics=grid), BaseDataElement(
            semantics=grid, mask_camera=torch.ones(occ3d.GRID_SIZE, dtype=torch.bool))  # fmt: skip
        samples.append(sample)
    hook = HOOKS.build(dict(type='PredictionVisHook', out_dir=str(tmp_path / 'out'), max_samples=2, mask='camera'))
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=dataset), cfg=Config(), model=torch.nn.Identity()
    )  # fmt: skip
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, dict(inputs={}), samples[:1])
    hook.after_test_iter(runner, 1, dict(inputs={}), samples[1:])
    files = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert files == ['scene-0001_t0.png', 'scene-0001_t2.png']
    assert read_image(tmp_path / 'out' / files[0]).shape[1] == 1920
    with pytest.raises(DataError, match="neither 'token' nor 'sample_idx'"):
        hook.before_test_epoch(runner)
        hook.after_test_iter(runner, 0, dict(inputs={}), [Det3DDataSample()])


def test_its_former_name():
    assert HOOKS.get('OccupancyVisHook') is PredictionVisHook


@pytest.mark.parametrize('options, message', [(dict(mask='radar'), 'mask'), (dict(every=0), 'every')])
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        HOOKS.build(dict(type='PredictionVisHook', out_dir='x', **options))


def sample_and_info():
    """Two tasks in one sample: a box and a map."""
    box = LiDARInstance3DBoxes(torch.tensor([[10.0, 0, 0, 4, 2, 2, 0]]))
    sample = Det3DDataSample(metainfo=dict(sample_idx=0))
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=box, scores_3d=torch.tensor([0.9]), labels_3d=torch.tensor([0])
    )  # fmt: skip
    sample.pred_masks_bev = BaseDataElement(probs=torch.zeros(2, 6, 8))
    sample.gt_masks_bev = BaseDataElement(masks=torch.ones(2, 6, 8, dtype=torch.uint8))
    truth = LiDARInstance3DBoxes(torch.tensor([[-10.0, 0, 0, 4, 2, 2, 0]]))
    info = dict(token='t0', eval_ann_info=dict(gt_bboxes_3d=truth, gt_labels_3d=np.array([1])))
    return sample, info


def test_truth_beside_the_prediction(tmp_path):
    sample, info = sample_and_info()
    model = torch.nn.Module()
    model.map_head = torch.nn.Module()
    model.map_head.classes = ('drivable_area', 'divider')
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=DataSet(info)), cfg=Config(), model=model)
    hook = HOOKS.build(dict(type='PredictionVisHook', out_dir=str(tmp_path)))
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, dict(inputs={}), [sample])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['t0_boxes.png', 't0_map.png']
    boxes = read_image(tmp_path / 't0_boxes.png') != 255  # from above, +x up
    middle, left, right = 400, boxes[:, :800], boxes[:, 812:]
    assert left[middle + 10 :].any() and right[40 : middle - 10].any()
    assert not left[40 : middle - 10].any() and not right[middle + 10 :].any()
    drawn = read_image(tmp_path / 't0_map.png')[40:]  # below the names
    assert (drawn[:, 300] == (106, 61, 154)).all() and (drawn[:, -100] == 255).all()


def test_true_instances_beside_the_found_ones():
    points = np.random.default_rng(0).random((400, 3)).astype(np.float32)
    found = PointData(
        pts_instance_mask=[np.ones((1, 400), bool)], instance_labels=torch.tensor([0]),
        instance_scores=torch.tensor([0.9]), points=torch.from_numpy(points),
    )  # fmt: skip
    sample = Det3DDataSample(metainfo=dict(sample_idx=0), pred_pts_seg=found)
    sample.eval_ann_info = dict(lidar_idx='r0', pts_instance_mask=np.arange(400) % 4 - 1)  # none, wall, floor, a thing
    from occforge.apis.results import Setting, results_of, scene_of

    scene = scene_of(DataSet({}), 0, {}, sample)
    assert scene.name == 'r0' and set(scene.truth['instances']) == {-1, 0}
    assert (scene.truth['instances'] == 0).sum() == 100
    results = results_of(sample, Setting(), scene)
    picture = results['instances'].picture(scene)
    assert picture.shape[1] > 2 * 900
    bare = scene_of(DataSet({}), 0, {}, sample, with_labels=False)
    assert bare.truth is None and results['instances'].picture(bare).shape[1] < 1000
    assert [Boxes.task, Instances.task, Map.task, Occupancy.task] == ['boxes', 'instances', 'map', 'occupancy']
