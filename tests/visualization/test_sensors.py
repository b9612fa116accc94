"""Points and boxes over images."""

import numpy as np
import pytest
from occforge.visualization import box_corners, draw_boxes_on_image, draw_points_on_image, draw_points_on_images
from occforge.visualization.sensors import depth_colours

# the LiDAR looks along +x, the camera sits in the same place: x right = -y, y down = -z, z forward = +x
LIDAR2CAM = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
CAM2IMG = np.array([[100, 0, 80], [0, 100, 50], [0, 0, 1]], float)


def black():
    return np.zeros((100, 160, 3), np.uint8)


def test_points_land_where_they_project():
    points = np.array([[10, 2, 1, 0, 0], [-5, 0, 0, 0, 0], [np.nan, 0, 0, 0, 0], [10, 300, 0, 0, 0]], np.float32)
    picture = draw_points_on_image(black(), points, LIDAR2CAM, CAM2IMG, radius=2)
    rows, columns = np.nonzero(picture.any(-1))
    assert rows.mean() == pytest.approx(40, abs=0.5) and columns.mean() == pytest.approx(60, abs=0.5)
    assert len(rows) < 40  # one disc: what is behind, unknown or outside leaves no trace


def test_near_points_cover_far_ones():
    points = np.array([[5, 0, 0], [50, 0, 0]], float)
    picture = draw_points_on_image(black(), points, LIDAR2CAM, CAM2IMG, radius=2)
    assert (picture[50, 80] == depth_colours(np.array([5.0]))[0]).all()


def test_corners_by_hand():
    # 4 long, 2 wide, 1 high, turned by 90 degrees: the front looks to +y
    corners = box_corners([[10, 0, 0.5, 4, 2, 1, np.pi / 2]])[0]
    assert np.allclose(sorted(corners[:4].round(6).tolist()), [[9, 2, 0], [9, 2, 1], [11, 2, 0], [11, 2, 1]])
    assert np.allclose(corners[4:, 1], -2)
    assert box_corners(np.zeros((0, 7))).shape == (0, 8, 3)
    with pytest.raises(ValueError, match='boxes'):
        box_corners(np.zeros((2, 5)))


def test_boxes_are_drawn_and_heading_is_tinted():
    image = np.full((100, 160, 3), 100, np.uint8)
    box = [[10, 0, 0, 2, 4, 3, np.pi]]  # its front looks back at the camera
    picture = draw_boxes_on_image(image, box, LIDAR2CAM, CAM2IMG, labels=[0], names=['car'])
    assert (image == 100).all()
    assert (picture[45, 70] != 100).any()  # inside the front face
    assert (picture[10, 10] == 100).all()
    away = draw_boxes_on_image(image, [[10, 0, 0, 2, 4, 3, 0]], LIDAR2CAM, CAM2IMG)
    assert (away != 100).any() and not np.array_equal(away, picture)


@pytest.mark.parametrize(
    'box', [[0, 0, 0, 4, 4, 4, 0.3], [-9, 0, 0, 1, 1, 1, 0], [0.4, 0, 0, 8, 3, 2, 0], [1e5, 9e4, 0, 9, 9, 9, 1]]
)
def test_boxes_around_and_behind_the_camera(box):
    picture = draw_boxes_on_image(black(), [box], LIDAR2CAM, CAM2IMG, labels=[-1])
    assert picture.any() == (box[0] in (0, 0.4))


def test_missing_camera_is_named():
    with pytest.raises(ValueError, match='CAM_BACK'):
        draw_points_on_images({'CAM_BACK': black()}, np.zeros((0, 3)), {'CAM_FRONT': {}})
    with pytest.raises(ValueError, match='lidar2cam'):
        draw_points_on_image(black(), np.zeros((1, 3)), np.eye(3), CAM2IMG)
