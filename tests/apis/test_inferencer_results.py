"""Each task's answer in mmdet3d's forms: read, saved in every form it has, drawn."""

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes, PointData
from mmengine.structures import BaseDataElement, InstanceData
from occforge.apis import Prediction, Result, Scene, Setting, register_result
from occforge.apis.results import RESULTS, results_of
from occforge.errors import ConfigError, DataError
from occforge.evaluation.prediction_files import read_prediction
from occforge.visualization import read_image

SMALL = Setting(('car', 'tree', 'free'), np.array([(255, 0, 0), (0, 200, 0), (255, 255, 255)]), (-4, -4, 0, 4, 4, 2))


def predict(setting=SMALL, scene=None, **fields):
    sample = Det3DDataSample()
    for name, value in fields.items():
        setattr(sample, name, value)
    scene = scene or Scene('abc')
    return Prediction(scene, results_of(sample, setting, scene), sample)


def read_ply(path):
    """(vertices as a structured array, faces (F, 4) or None) of a binary PLY."""
    types = dict(float='<f4', uchar='u1', int='<i4')
    head, _, body = path.read_bytes().partition(b'end_header\n')
    lines = [line.split() for line in head.decode().splitlines()]
    assert lines[:2] == [['ply'], ['format', 'binary_little_endian', '1.0']]
    counts = {line[1]: int(line[2]) for line in lines if line[0] == 'element'}
    kind = np.dtype([(line[2], types[line[1]]) for line in lines if line[0] == 'property' and line[1] != 'list'])
    vertices = np.frombuffer(body, kind, counts['vertex'])
    if 'face' not in counts:
        assert len(body) == vertices.nbytes
        return vertices, None
    rows = np.frombuffer(body[vertices.nbytes :], [('count', 'u1'), ('vertices', '<i4', 4)])
    assert len(rows) == counts['face'] and (rows['count'] == 4).all()
    return vertices, rows['vertices']


def test_occupancy(tmp_path):
    semantics = torch.full((4, 4, 2), 2)
    semantics[1, 2, 0] = 0  # one voxel: x -2..0, y 0..2, z 0..1
    prediction = predict(pred_occ=BaseDataElement(semantics=semantics))
    assert prediction.occupancy.semantics.dtype == np.uint8
    paths = prediction.save(tmp_path, ['npz', 'ply', 'png', 'html'])
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        f'occupancy/abc.{suffix}' for suffix in ('npz', 'ply', 'png', 'html')
    ]
    np.testing.assert_array_equal(read_prediction(paths[0]), semantics.numpy())  # what tools/eval_occ.py reads
    vertices, faces = read_ply(paths[1])
    assert len(faces) == 6 and len(vertices) == 24
    places = np.stack([vertices[axis] for axis in 'xyz'], -1)
    np.testing.assert_allclose([places.min(0), places.max(0)], [[-2, 0, 0], [0, 2, 1]])
    assert set(vertices['label']) == {0} and set(vertices['red']) == {255} and set(vertices['green']) == {0}
    for face in faces:  # seen from outside they go round counterclockwise
        normal = np.cross(places[face[1]] - places[face[0]], places[face[2]] - places[face[1]])
        assert normal @ (places[face].mean(0) - (-1, 1, 0.5)) > 0
    assert read_image(paths[2]).shape[1] == 1920
    assert b'tree' in paths[3].read_bytes()


def test_boxes(tmp_path):
    boxes = LiDARInstance3DBoxes(
        torch.tensor([[3.0, 1, -1, 2, 1, 1, 0, 5, 6], [1, 1, 0, 1, 1, 1, 1, 0, 0]]), box_dim=9
    )  # mmdet3d's z is that of the bottom
    found = InstanceData(bboxes_3d=boxes, scores_3d=torch.tensor([0.9, 0.1]), labels_3d=torch.tensor([0, 1]))
    prediction = predict(pred_instances_3d=found)
    np.testing.assert_allclose(prediction.boxes.boxes[0], [3, 1, -0.5, 2, 1, 1, 0, 5, 6])
    npz, ply, png, _ = prediction.save(tmp_path, ['npz', 'ply', 'png', 'html'])
    with np.load(npz, allow_pickle=False) as saved:
        assert saved['class_names'].tolist() == ['car', 'tree', 'free'] and saved['labels'].tolist() == [0, 1]
        np.testing.assert_allclose(saved['scores'], [0.9, 0.1])
    vertices, faces = read_ply(ply)  # only the likely one
    assert len(vertices) == 8 and len(faces) == 6
    np.testing.assert_allclose([vertices['z'].min(), vertices['z'].max()], [-1, 0])
    # every edge of a closed box belongs to two faces, once in each direction
    edges = [tuple(map(int, (face[i], face[(i + 1) % 4]))) for face in faces for i in range(4)]
    assert len(set(edges)) == 24 and {(b, a) for a, b in edges} == set(edges)
    picture = read_image(png)
    assert (picture[:400] != 255).any() and not (picture[420:] != 255).any()  # ahead, nothing behind


def test_map(tmp_path):
    masks = torch.zeros(2, 6, 8)
    masks[0] = 1
    setting = Setting(map_classes=('drivable_area', 'divider'), map_range=(-3, -4, 3, 4))
    prediction = predict(setting, pred_masks_bev=BaseDataElement(probs=masks))
    npz, png = prediction.save(tmp_path, ['npz', 'png', 'ply', 'html'])  # it has no 3D forms
    with np.load(npz, allow_pickle=False) as saved:
        assert saved['masks'].shape == (2, 6, 8) and saved['point_cloud_range'].tolist() == [-3, -4, -5, 3, 4, 3]
    assert (read_image(png)[:, 220:] == (166, 206, 227)).all()  # right of the legend
    with pytest.raises(ConfigError, match='map has no 3D form'):
        prediction.save(tmp_path, ['ply'])


def test_instances(tmp_path):
    masks = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    found = PointData(
        pts_instance_mask=[masks.numpy()],
        pts_semantic_mask=[np.array([0, 0, 1, 1])],
        instance_labels=torch.tensor([0, 1, 1]),
        instance_scores=torch.tensor([0.9, 0.8, 0.01]),
    )
    points = torch.tensor([[0.0, 0, 0, 9, 9, 9], [1, 0, 0, 9, 9, 9], [1, 1, 0, 9, 9, 9], [0, 1, 1, 9, 9, 9]])
    prediction = predict(scene=Scene('room', inputs=dict(points=points)), pred_pts_seg=found)
    instances = prediction.instances
    np.testing.assert_array_equal(instances.points, points[:, :3])
    npz, ply = prediction.save(tmp_path, ['npz', 'ply', 'png', 'html'])[:2]
    with np.load(npz, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved['masks'], masks)
        assert saved['semantics'].tolist() == [0, 0, 1, 1]
    vertices, faces = read_ply(ply)
    assert faces is None and vertices['instance'].tolist() == [0, 0, 1, 2]
    colours = np.stack([vertices[name] for name in ('red', 'green', 'blue')], -1)
    assert (colours[0] == colours[1]).all() and (colours[1] != colours[2]).any()
    assert colours[3].tolist() == [196, 200, 206]  # its score is too low to be drawn
    # where as many points are not known there is nothing to draw
    bare = predict(scene=Scene('room', inputs=dict(points=points[:3])), pred_pts_seg=found)
    assert bare.save(tmp_path, ['npz'])
    with pytest.raises(DataError, match='points are not known'):
        bare.save(tmp_path, ['png'])


def test_tasks_of_a_package_of_ones_own(tmp_path):
    with pytest.raises(DataError, match=r"sample abc: the model predicts \['pred_speed'\], known tasks are occupancy"):
        predict(pred_speed=BaseDataElement(value=3.0))

    @register_result
    class Speed(Result):
        task = 'speed'

        def __init__(self, value):
            self.value = value

        @classmethod
        def from_sample(cls, sample, setting, scene):
            return cls(sample.pred_speed.value) if 'pred_speed' in sample else None

        def arrays(self):
            return dict(value=np.array(self.value))

        def picture(self, scene):
            return np.zeros((2, 2, 3), np.uint8)

    try:
        prediction = predict(pred_speed=BaseDataElement(value=3.0))
        (path,) = prediction.save(tmp_path)
        with np.load(path) as saved:
            assert saved['value'] == 3
    finally:
        del RESULTS['speed']


def test_mistakes():
    prediction = predict(pred_occ=BaseDataElement(semantics=torch.zeros(2, 2, 2)))
    with pytest.raises(AttributeError, match="'boxes': this prediction has occupancy"):
        _ = prediction.boxes
    with pytest.raises(ConfigError, match=r"formats: expected some of npz, ply, png, html, found \['jpg'\]"):
        prediction.save('.', ['jpg'])
    with pytest.raises(ConfigError, match='expected a name ending in'):
        prediction.occupancy.save('a.txt', prediction.scene)
