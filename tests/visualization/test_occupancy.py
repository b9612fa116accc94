"""Pictures of label grids: geometry checked by where colours land, and against a brute-force ray march."""

import numpy as np
import pytest
from occforge.datasets import occ3d
from occforge.visualization import Camera, draw_occupancy_perspective, draw_occupancy_top

FREE = occ3d.FREE


def empty():
    return np.full(occ3d.GRID_SIZE, FREE, np.uint8)


def test_top_puts_forward_up_and_left_left():
    grid = empty()
    grid[190:, 100, 2] = 4  # far ahead, a little left of the middle
    grid[100, 190:, 2] = 16  # far left
    picture = draw_occupancy_top(grid, size=200, ego=False).astype(int)
    car = np.argwhere(np.abs(picture - picture[5, 99]).sum(-1) == 0)
    assert (picture != 255).any(-1).sum() == 20
    assert car[:, 0].max() < 10 and set(car[:, 1]) == {99}
    green = np.argwhere((picture[..., 1] > picture[..., 0] + 30) & (picture[..., 1] > picture[..., 2] + 30))
    assert green[:, 1].max() < 10 and set(green[:, 0]) == {99}


def test_top_shows_the_highest_voxel():
    grid = empty()
    grid[50, 50, 0], grid[50, 50, 9] = 11, 4
    red, green, blue = draw_occupancy_top(grid, size=200, ego=False)[149, 149].astype(int)
    assert red > green > blue  # car's orange, not the road's cyan


def test_mask_fades_hides_or_shows():
    grid = empty()
    grid[100:110, 100:110, 3] = 4
    mask = np.zeros_like(grid, bool)
    draw = {how: draw_occupancy_top(grid, mask, size=200, ego=False, unseen=how) for how in ('fade', 'hide', 'show')}
    assert (draw['hide'] == 255).all()
    assert draw['show'].min() < 50 < 150 < draw['fade'].min()
    with pytest.raises(ValueError, match='unseen'):
        draw_occupancy_top(grid, mask, unseen='blink')


@pytest.mark.parametrize('draw', [draw_occupancy_top, draw_occupancy_perspective])
def test_wrong_grids_are_refused(draw):
    with pytest.raises(ValueError, match=r'semantics.*\(X, Y, Z\)'):
        draw(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r'semantics.*0..17.*18'):
        draw(np.full((4, 4, 4), 18))
    with pytest.raises(ValueError, match='mask'):
        draw(empty(), np.zeros((2, 2, 2)))
    assert draw(np.full((4, 4, 4), 255)).ndim == 3  # unknown voxels are not drawn


def march(grid, camera, lower, voxel, free):
    """Class first hit by the ray through each pixel's middle, by tiny steps."""
    width, height = camera.size
    axes, focal = camera.axes(), camera.size[0] / 2 / np.tan(np.radians(camera.fov) / 2)
    u, v = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays = np.stack([u, v, np.full_like(u, focal)], -1) @ axes
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    hit = np.full((height, width), free)
    for distance in np.arange(0, 40, 0.02):
        cell = np.floor((np.asarray(camera.eye) + rays * distance - lower) / voxel).astype(int)
        inside = ((cell >= 0) & (cell < grid.shape)).all(-1) & (hit == free)
        hit[inside] = grid[tuple(cell[inside].T)]
    return hit


@pytest.mark.parametrize('eye', [(-9.0, 3.0, 7.0), (6.0, -12.0, 4.0), (1.0, 2.0, 15.0), (0.3, 0.2, 2.9)])
def test_painting_order_agrees_with_ray_marching(eye):
    rng = np.random.default_rng(3)
    # colours in seven directions of RGB space, which shading leaves alone
    palette = np.array([[200 * ((i + 1) >> bit & 1) for bit in range(3)] for i in range(7)] + [[255, 255, 255]])
    free = 7
    grid = np.where(rng.random((12, 12, 6)) < 0.25, rng.integers(0, free, (12, 12, 6)), free).astype(np.uint8)
    grid[5:8, 5:8, 3:] = free  # room for an eye inside the grid
    camera = Camera(eye=eye, target=(0.0, 0.5, 1.0), fov=70, size=(120, 90))
    picture = draw_occupancy_perspective(
        grid,
        camera=camera,
        palette=palette,
        point_cloud_range=(-6, -6, 0, 6, 6, 6),
        ego=False,
        supersample=1,
        background=(0, 0, 0),
    )
    expected = march(grid, camera, np.array([-6.0, -6.0, 0.0]), 1.0, free)
    directions = palette[:free] / np.linalg.norm(palette[:free], axis=1, keepdims=True)
    found = np.where(picture.any(-1), (picture @ directions.T).argmax(-1), free)
    assert (found == expected).mean() > 0.87  # the outlines are a pixel wide
    inner = np.ones_like(expected, bool)  # away from edges; slivers of edge-on faces remain
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inner &= np.roll(expected, (dy, dx), (0, 1)) == expected
    assert (found == expected)[inner].mean() > 0.995


def test_perspective_edge_cases():
    assert draw_occupancy_perspective(empty(), ego=False, camera=Camera(size=(64, 32))).shape == (32, 64, 3)
    full = np.zeros((5, 5, 5), np.uint8)
    assert draw_occupancy_perspective(full, camera=Camera(eye=(0, 0, 1), target=(1, 0, 1), size=(16, 16))).any()
    straight_down = Camera(eye=(0, 0, 60), target=(0, 0, 0), size=(32, 32))
    assert draw_occupancy_perspective(empty(), camera=straight_down).shape == (32, 32, 3)
    with pytest.raises(ValueError, match='eye and target'):
        draw_occupancy_perspective(empty(), camera=Camera(eye=(1, 1, 1), target=(1, 1, 1)))
