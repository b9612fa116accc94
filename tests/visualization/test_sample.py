"""The picture of one sample, and the PNG file."""

import ast
from pathlib import Path

import numpy as np
import occforge.visualization as visualization
import pytest
from occforge.datasets import occ3d
from occforge.errors import DataError
from occforge.visualization import draw_camera_grid, draw_occupancy_sample, read_image, write_png
from occforge.visualization.sample import arrange_cameras, draw_errors_top, sample_iou

CAMERAS = ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT']


def grid(seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(occ3d.GRID_SIZE) < 0.02, rng.integers(0, 17, occ3d.GRID_SIZE), 17).astype(np.uint8)


def test_iou_by_hand():
    target = np.array([0, 0, 1, 2, 2, 255]).reshape(1, 2, 3)
    pred = np.array([0, 1, 1, 2, 2, 0]).reshape(1, 2, 3)
    iou, count = sample_iou(pred, target, 4)
    assert iou[:3].tolist() == [0.5, 0.5, 1.0] and np.isnan(iou[3])
    assert count.tolist() == [2, 1, 2, 0]
    iou, _ = sample_iou(pred, target, 4, mask=np.array([1, 0, 1, 1, 1, 1]).reshape(1, 2, 3))
    assert iou[:3].tolist() == [1.0, 1.0, 1.0]


def test_errors_are_coloured_by_kind():
    target = np.full((2, 2, 1), 3)
    pred = target.copy()
    target[0, 0], pred[0, 0] = 1, 1
    target[0, 1], pred[0, 1] = 1, 2
    target[1, 0], pred[1, 0] = 1, 3
    target[1, 1], pred[1, 1] = 3, 1
    picture = draw_errors_top(pred, target, free=3, size=20)
    assert len({tuple(picture[y, x]) for y in (4, 15) for x in (4, 15)}) == 4


def test_picture_has_all_parts():
    images = {name: np.full((45, 80, 3), 40 * i, np.uint8) for i, name in enumerate(CAMERAS)}
    small = draw_occupancy_sample(grid(0), width=1200)
    both = draw_occupancy_sample(grid(0), grid(1), width=1200)
    full = draw_occupancy_sample(
        grid(0), grid(1), images, np.ones(occ3d.GRID_SIZE, bool), mask_name='camera', width=1200
    )
    assert small.shape[1] == both.shape[1] == full.shape[1] == 1200
    assert small.shape[0] < both.shape[0] <= full.shape[0]
    assert np.array_equal(both, draw_occupancy_sample(grid(0), grid(1), width=1200))
    with pytest.raises(ValueError, match='target'):
        draw_occupancy_sample(grid(0), grid(1)[:-1])


def test_cameras_sit_as_on_the_car():
    assert arrange_cameras(reversed(CAMERAS)) == [CAMERAS[:3], CAMERAS[3:]]
    assert arrange_cameras(['CAM_BACK', 'CAM_FRONT']) == [['CAM_FRONT'], ['CAM_BACK']]
    assert arrange_cameras(['a', 'b', 'c', 'd']) == [['a', 'b', 'c', 'd']]
    images = {name: np.zeros((9, 16, 3), np.uint8) for name in CAMERAS}
    assert draw_camera_grid(images, 324).shape[1] == 324


def test_png_round_trip_and_bad_images(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    write_png(tmp_path / 'new' / 'a.png', picture)
    assert np.array_equal(read_image(tmp_path / 'new' / 'a.png'), picture)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['a.png']
    with pytest.raises(ValueError, match='picture'):
        write_png(tmp_path / 'b.png', picture[..., 0])
    (tmp_path / 'half.png').write_bytes((tmp_path / 'new' / 'a.png').read_bytes()[:40])
    with pytest.raises(DataError, match=r'half\.png'):
        read_image(tmp_path / 'half.png')


def test_pictures_side_by_side():
    left, right = np.zeros((80, 90, 3), np.uint8), np.full((60, 70, 3), 255, np.uint8)
    row = visualization.side_by_side(dict(a=left, b=right), gap=10)
    assert row.shape == (80, 170, 3) and not row[50:, :90].any() and (row[50:60, 100:] == 255).all()


def test_nothing_needs_a_display():
    """cv2.imshow kills a process without a display; matplotlib and open3d are slow or absent."""
    for path in Path(visualization.__file__).parent.glob('*.py'):
        tree = ast.parse(path.read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        modules = {a.name.split('.')[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not names & {'imshow', 'waitKey', 'namedWindow'} and not modules & {'matplotlib', 'open3d'}, path
