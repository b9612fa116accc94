"""What a camera sees of a volume, against places that can be worked out by hand."""

import cv2
import fly_through
import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import BaseDataElement
from occforge.errors import ConfigError
from occforge.models.heads import NerfHead
from occforge.visualization import RenderedViewsHook
from occforge.visualization.rendering import camera_rays, colour_view, fly_path, view_labels, view_volume
from PIL import Image

FRONT = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.0], [0, 0, 0, 1]])  # looks along x, 1 m above 0
CAM2IMG = np.array([[60.0, 0, 60], [0, 60, 40], [0, 0, 1]])
SIZE = (80, 120)


@pytest.fixture
def world():
    """Road below z = -0.2 m, a wall of class 15 from x = 10 m on its left half (y > 0)."""
    grid = np.full((200, 200, 16), 17, dtype=np.uint8)
    grid[:, :, :2] = 11
    grid[125:, 100:] = 15
    return grid


def test_rays_go_through_the_middles_of_pixels():
    origins, directions, shape = camera_rays(FRONT, CAM2IMG, SIZE, stride=4)
    assert shape == (20, 30) and directions.shape == (600, 3)
    torch.testing.assert_close(directions[:, 0], torch.ones(600))  # one metre along the camera's axis
    torch.testing.assert_close(directions[0], torch.tensor([1.0, (60 - 2) / 60, (40 - 2) / 60]))
    assert bool((origins == torch.tensor([0.0, 0.0, 1.0])).all())


def test_a_wall_and_a_road_are_where_they_are(world):
    depth, classes = view_labels(world, FRONT, CAM2IMG, SIZE)
    assert depth.shape == SIZE and classes.dtype == np.uint8
    assert (classes[35, 10:55] == 15).all()
    np.testing.assert_allclose(depth[35, 10:55], 10.0, atol=1e-4)  # along the axis, the same at every column
    assert classes[35, 100] == 17 and depth[35, 100] == 0  # sky on the right
    row = 70  # below the horizon: the road at 1.2 m below the camera
    assert classes[row, 100] == 11
    assert depth[row, 100] == pytest.approx(1.2 * 60 / (row + 0.5 - 40), rel=1e-3)


def test_rendered_densities_show_the_same(world):
    head = NerfHead(alpha_init=0.5, step_size=0.25)
    density = torch.where(torch.from_numpy(world) == 17, -12.0, 12.0)
    semantic = 8 * torch.nn.functional.one_hot(torch.from_numpy(world).long().clamp(max=16), 17).float()
    truth, found = (
        view_labels(world, FRONT, CAM2IMG, SIZE, 4),
        view_volume(head, density, semantic, FRONT, CAM2IMG, SIZE, 4),
    )
    near = (truth[0] < 20) & (truth[0] > 0)
    assert (truth[1] == found[1])[near].mean() > 0.95
    assert np.median(np.abs(truth[0] - found[0])[near]) < 0.4
    pictures = colour_view(*found)
    assert [picture.shape for picture in pictures] == [(20, 30, 3)] * 2 and pictures[0].dtype == np.uint8


@pytest.mark.parametrize('rendered', [True, False])
def test_the_hook_draws_images_rendered_views_and_truth(world, tmp_path, rendered):
    names, paths = ['CAM_FRONT', 'CAM_BACK'], []
    for name in names:
        paths.append(str(tmp_path / f'{name}.jpg'))
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(paths[-1])
    occupancy = BaseDataElement(semantics=torch.from_numpy(world))
    sample = Det3DDataSample(
        pred_occ=occupancy,
        gt_occ=occupancy.clone(),
        metainfo=dict(img_path=paths, cam_names=names, scene_name='scene-0001', token='abc'),
    )
    head = None
    if rendered:
        head = NerfHead(alpha_init=0.5, step_size=1.0)
        density = torch.where(torch.from_numpy(world) == 17, -12.0, 12.0)
        sample.pred_volume = BaseDataElement(density=density, semantic=torch.zeros(*world.shape, 17))
    inputs = dict(
        sensor2ego=torch.from_numpy(FRONT).repeat(1, 2, 1, 1), intrins=torch.from_numpy(CAM2IMG).repeat(1, 2, 1, 1)
    )
    picture = RenderedViewsHook(tmp_path, stride=4).draw(sample, inputs, head)
    height = round(300 * 80 / 120) + 4
    assert picture.shape == (24 + 5 * height, 90 + 2 * 304, 3)
    # rendered and true classes of the wall have the same colour where the volume is the labels
    if not rendered:
        rows = [24 + k * height + height // 3 for k in (1, 3)]
        np.testing.assert_array_equal(picture[rows[0], 90:390], picture[rows[1], 90:390])
    with pytest.raises(ConfigError, match='stride'):
        RenderedViewsHook(tmp_path, stride=0)


def test_a_flight_is_a_strip_or_a_video(world, tmp_path):
    for pose in fly_path(7):
        rotation = pose[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1) and rotation[2, 1] < 0  # the image's down is down
    np.savez_compressed(tmp_path / 'labels.npz', semantics=world)
    files = [str(tmp_path / 'labels.npz')]
    assert fly_through.main([*files, '--out', str(tmp_path / 'a.png'), '--frames', '3', '--size', '96x54']) == 0
    strip = np.asarray(Image.open(tmp_path / 'a.png'))
    assert strip.shape[:2] == (54, 288) and len(np.unique(strip.reshape(-1, 3), axis=0)) > 20
    assert fly_through.main([*files, '--out', str(tmp_path / 'a.mp4'), '--frames', '4', '--size', '96x54']) == 0
    video = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    (tmp_path / 'b.npz').write_bytes(b'no')
    with pytest.raises(SystemExit) as stop:
        fly_through.main([str(tmp_path / 'b.npz'), '--out', str(tmp_path / 'a.png')])
    assert stop.value.code == 2
    with pytest.raises(SystemExit):
        fly_through.main([*files, '--out', 'a.gif'])
