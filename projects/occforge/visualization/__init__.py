"""Pictures without a display: label grids, points and boxes over images, one summary picture a sample.

Everything draws into RGB uint8 arrays with numpy, cv2 and PIL; :func:`write_png` saves them.
:func:`write_occupancy_page` makes an interactive page of one file.
"""

from importlib.util import find_spec

from .canvas import read_image, write_png
from .clouds import (
    camera_around,
    draw_depth,
    draw_map,
    draw_point_cloud,
    draw_points_top,
    instance_colours,
    instance_palette,
)
from .growing_map import GrowingMap
from .occupancy import Camera, draw_occupancy_perspective, draw_occupancy_top
from .ply import box_mesh, voxel_mesh, write_ply
from .sample import draw_camera_grid, draw_occupancy_sample, draw_sensor_sample, side_by_side
from .sensors import (
    box_corners,
    draw_boxes_on_image,
    draw_boxes_on_images,
    draw_points_on_image,
    draw_points_on_images,
)
from .viewer import Layer, box_layer, occupancy_page, write_occupancy_page

__all__ = [
    'Camera',
    'GrowingMap',
    'Layer',
    'box_corners',
    'box_layer',
    'box_mesh',
    'camera_around',
    'draw_boxes_on_image',
    'draw_boxes_on_images',
    'draw_camera_grid',
    'draw_depth',
    'draw_map',
    'draw_occupancy_perspective',
    'draw_occupancy_sample',
    'draw_occupancy_top',
    'draw_point_cloud',
    'draw_points_on_image',
    'draw_points_on_images',
    'draw_points_top',
    'draw_sensor_sample',
    'instance_colours',
    'instance_palette',
    'occupancy_page',
    'read_image',
    'side_by_side',
    'voxel_mesh',
    'write_occupancy_page',
    'write_ply',
    'write_png',
]

if find_spec('mmengine') is not None:
    from .rendering import RenderedViewsHook

    __all__ += ['RenderedViewsHook']
