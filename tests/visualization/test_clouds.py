import numpy as np
import pytest
from occforge.visualization import (
    Camera,
    camera_around,
    draw_depth,
    draw_map,
    draw_point_cloud,
    draw_points_top,
    instance_colours,
    instance_palette,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)
AHEAD = Camera(eye=(0, 0, 0), target=(1, 0, 0), fov=90.0, size=(200, 100))  # focal length 100 pixels


def places(picture, colour):
    return np.argwhere((picture == colour).all(-1))


def test_a_point_lands_where_the_pinhole_says():
    picture = draw_point_cloud([[10, 2, -1]], RED, camera=AHEAD, radius=0)
    # 2 m to the left of 10 m: 20 pixels left of the middle; 1 m down: 10 pixels below
    assert places(picture, RED).tolist() == [[60, 80]]


def test_the_nearer_point_hides_the_farther_whatever_the_order():
    points, colours = [[5, 0, 0], [10, 0, 0]], [RED, GREEN]
    for order in ([0, 1], [1, 0]):
        picture = draw_point_cloud(np.take(points, order, 0), np.take(colours, order, 0), camera=AHEAD, radius=0.5)
        assert picture[50, 100].tolist() == list(RED)  # not shaded: the nearest point
        assert len(places(picture, RED)) == 21**2  # 0.5 m at 5 m: 10 pixels each way


def test_points_behind_the_camera_and_not_finite_ones_are_left_out():
    points = [[-5, 0, 0], [np.nan, 0, 0], [5, 100, 0]]
    picture = draw_point_cloud(points, RED, camera=AHEAD)
    assert (picture == picture[0, 0]).all()
    assert draw_point_cloud(np.zeros((0, 3)), RED, camera=AHEAD).shape == (100, 200, 3)


def test_the_camera_around_a_scene_sees_all_of_it():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (500, 3)) * (8, 2, 1.5) + (100, -50, 3)
    camera = camera_around(points, (300, 200))
    seen = (points - camera.eye) @ camera.axes().T
    focal = 150 / np.tan(np.deg2rad(camera.fov) / 2)
    pixels = seen[:, :2] / seen[:, 2:] * focal
    assert (seen[:, 2] > 0).all() and (np.abs(pixels) <= (150, 100)).all()
    assert np.abs(pixels).max(0).max() > 60  # and does not look at it from far away


def test_from_above_x_is_up_and_y_is_left():
    area = (-10, -10, -1, 10, 10, 3)
    picture = draw_points_top([[9.5, 9.5, 0], [30, 0, 0]], point_cloud_range=area, size=40)
    assert np.argwhere((picture != WHITE).any(-1)).tolist() == [[1, 1]]
    box = [[5, 0, 0, 4, 2, 1, 0]]
    drawn = np.argwhere((draw_points_top(None, box, [0], ['car'], point_cloud_range=area, size=400) != WHITE).any(-1))
    # 3..7 m ahead, 1 m to each side, at 20 pixels a metre
    np.testing.assert_allclose(drawn.min(0), [60, 180], atol=1)
    np.testing.assert_allclose(drawn.max(0), [140, 220], atol=1)
    stroke = draw_points_top(None, box, [0], ['car'], point_cloud_range=area, size=400)[:, 200]
    rows = np.flatnonzero((stroke != WHITE).any(-1))
    assert 80 in rows and 120 not in rows  # the stroke goes from the middle to the front


def test_map_masks_by_class():
    masks = np.zeros((2, 4, 6))
    masks[0] = 0.9
    masks[1, 3, 0] = 0.6  # ahead on the right
    masks[1, 0, 5] = 0.4  # below the threshold
    picture = draw_map(masks, ['drivable_area', 'divider'], size=4)
    assert picture.shape == (4, 6, 3)
    assert places(picture, (106, 61, 154)).tolist() == [[0, 5]]
    assert len(places(picture, (166, 206, 227))) == 23
    with pytest.raises(ValueError, match=r'expected shape \(1, X, Y\)'):
        draw_map(masks, ['one'])


def test_depth_over_an_image():
    image = np.full((2, 3, 3), 7, np.uint8)
    depth = np.array([[0, np.nan, 1], [60, 2000, np.inf]])
    picture = draw_depth(depth, image)
    same = (picture == 7).all(-1)
    assert same.tolist() == [[True, True, False], [False, False, True]]
    assert picture[0, 2, 0] > picture[0, 2, 2] and (picture[1, 0] == picture[1, 1]).all()  # near is warm; far is cut
    with pytest.raises(ValueError, match='expected'):
        draw_depth(depth, image[:1])


def test_instances_have_colours_of_their_own_and_the_best_is_seen():
    assert len({tuple(colour) for colour in instance_palette(60).tolist()}) == 60
    masks = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
    palette = instance_palette(2)
    by_score = instance_colours(masks, [0.9, 0.5])
    assert (by_score[1] == palette[0]).all() and (by_score[2] == palette[1]).all()
    assert (instance_colours(masks)[1] == palette[1]).all()
    assert (by_score[3] == (196, 200, 206)).all()
    assert instance_colours(np.zeros((0, 5), bool)).shape == (5, 3)
