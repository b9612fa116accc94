"""LiDAR points and 3D boxes drawn over camera images.

Frames: points and boxes in the LiDAR frame; ``lidar2cam`` (4, 4) maps it to the camera (x right, y down, z forward;
metres; it includes the car's motion between the two shutters), ``cam2img`` (3, 3) to pixels.
"""

import cv2
import numpy as np

from occforge.datasets import occ3d

NEAR = 0.3
"""Metres before the camera at which lines are cut."""

# a box's corners in its own frame, in half sizes: the four at the front (+x) first, then the four at the back
_BOX_CORNERS = np.array(
    [(1, 1, -1), (1, -1, -1), (1, -1, 1), (1, 1, 1), (-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, 1)], np.float64
)
BOX_EDGES = [(4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7), (0, 1), (1, 2), (2, 3), (3, 0)]
_BOX_FRONT = [0, 1, 2, 3]


def _to_camera(points, lidar2cam):
    matrix = np.asarray(lidar2cam, np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f'lidar2cam: expected shape (4, 4), found {matrix.shape}')
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _to_pixels(points, cam2img):
    matrix = np.asarray(cam2img, np.float64)[:3, :3]
    if matrix.shape != (3, 3):
        raise ValueError(f'cam2img: expected shape (3, 3), found {matrix.shape}')
    pixels = points @ matrix.T
    return pixels[..., :2] / pixels[..., 2:3]


def depth_colours(depth, low=1.0, high=60.0) -> np.ndarray:
    """(P,) metres -> (P, 3) RGB uint8: warm is near, cool is far; equal steps are equal ratios of distance."""
    share = np.log(np.clip(depth, low, high) / low) / np.log(high / low)
    index = np.uint8(np.round(255 * (0.96 - 0.88 * share)))
    return cv2.applyColorMap(index[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]


def draw_points_on_image(image, points, lidar2cam, cam2img, radius=None, max_depth=60.0) -> np.ndarray:
    """LiDAR points as discs coloured by depth, near ones on top.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        points: (P, >= 3), columns x, y, z of the LiDAR frame, metres. Points that are not finite are left out.
        lidar2cam: (4, 4); cam2img: (3, 3), of this image's size.
        radius: of the discs in pixels; default by the image's width.
        max_depth: metres at which the colour scale ends.

    Returns:
        (H, W, 3) uint8.
    """
    image = np.array(image)
    height, width = image.shape[:2]
    points = np.asarray(points)[:, :3].astype(np.float64)
    seen = _to_camera(points[np.isfinite(points).all(1)], lidar2cam)
    seen = seen[seen[:, 2] > NEAR]
    pixels = _to_pixels(seen, cam2img)
    inside = (pixels >= 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    pixels, depth = pixels[inside], seen[inside, 2]
    order = np.argsort(-depth)
    radius = max(0.8, width / 640) if radius is None else radius
    for (x, y), colour in zip(
        np.round(pixels[order] * 16).astype(int).tolist(), depth_colours(depth[order], high=max_depth).tolist()
    ):
        cv2.circle(image, (x, y), round(radius * 16), colour, -1, cv2.LINE_AA, shift=4)
    return image


def box_corners(boxes) -> np.ndarray:
    """(M, 7+) boxes (x, y, z of the middle, dx, dy, dz, yaw) -> (M, 8, 3) corners, the four at the front first."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.size == 0:
        return np.zeros((0, 8, 3))
    if boxes.ndim != 2 or boxes.shape[1] < 7:
        raise ValueError(f'boxes: expected shape (M, 7 or more), found {boxes.shape}')
    corners = _BOX_CORNERS * boxes[:, None, 3:6] / 2
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y = corners[..., 0], corners[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos, corners[..., 2]], -1) + boxes[:, None, :3]


def draw_boxes_on_image(image, boxes, lidar2cam, cam2img, labels=None, names=None, width=None) -> np.ndarray:
    """3D boxes as wire frames; the face that the object moves with is tinted.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        boxes: (M, 7+) x, y, z (gravity centre), dx, dy, dz, yaw in the LiDAR frame, metres and radians.
        lidar2cam: (4, 4); cam2img: (3, 3), of this image's size.
        labels: (M,) class numbers into ``names``; None: all alike. -1 is drawn in grey.
        names: class names; those that Occ3D has take its colours. Default: Occ3D's own.
        width: of the lines in pixels; default by the image's width.

    Returns:
        (H, W, 3) uint8.
    """
    image = np.array(image)
    corners = box_corners(boxes)
    names = occ3d.CLASS_NAMES if names is None else names
    width = max(1, round(image.shape[1] / 640)) if width is None else width
    seen = _to_camera(corners, lidar2cam)
    for index in np.argsort(-seen[..., 2].mean(1)):  # far to near
        box = seen[index]
        if (box[:, 2] <= NEAR).all():
            continue
        colour = class_colour(None if labels is None else int(labels[index]), names)
        if (box[_BOX_FRONT, 2] > NEAR).all():
            face = np.round(_to_pixels(box[_BOX_FRONT], cam2img)).clip(-20000, 20000).astype(np.int32)
            x, y, w, h = cv2.boundingRect(face)
            left, top = max(x, 0), max(y, 0)
            right, bottom = min(x + w, image.shape[1]), min(y + h, image.shape[0])
            if left < right and top < bottom:
                part = image[top:bottom, left:right]
                tinted = part.copy()
                cv2.fillConvexPoly(tinted, face - (left, top), colour, cv2.LINE_AA)
                cv2.addWeighted(tinted, 0.38, part, 0.62, 0, dst=part)
        for first, last in BOX_EDGES:
            _draw_line(image, box[first], box[last], cam2img, colour, width)
        bottom_middle = box[[0, 1, 4, 5]].mean(0)
        _draw_line(image, bottom_middle, box[[0, 1]].mean(0), cam2img, colour, width)
    return image


def class_colour(label, names):
    """RGB of a class: Occ3D's colour where Occ3D has that name, dark ones lifted; green without a label, else grey."""
    if label is None:
        return 64, 255, 120
    if not 0 <= label < len(names) or names[label] not in occ3d.CLASS_NAMES:
        return 200, 200, 200
    colour = occ3d.PALETTE[occ3d.CLASS_NAMES.index(names[label])].astype(float)
    return tuple((colour + (255 - colour) * max(0.0, 0.45 - colour.max() / 600)).tolist())  # dark ones lifted


def _draw_line(image, start, end, cam2img, colour, width) -> None:
    """A line between two camera-frame points, cut where it comes nearer than NEAR."""
    if start[2] < NEAR and end[2] < NEAR:
        return
    if start[2] < NEAR or end[2] < NEAR:
        share = (NEAR - start[2]) / (end[2] - start[2])
        cut = start + share * (end - start)
        start, end = (cut, end) if start[2] < NEAR else (start, cut)
    pixels = _to_pixels(np.stack([start, end]), cam2img)
    # cv2's fixed point overflows far outside; clipLine works on whole pixels, which is fine for what is cut anyway
    limit = 1 << 14
    if np.abs(pixels).max() > limit:
        height, width_px = image.shape[:2]
        pixels = _clip(pixels, -width_px, -height, 2 * width_px, 2 * height)
        if pixels is None:
            return
    (x0, y0), (x1, y1) = np.round(pixels * 16).astype(int).tolist()
    cv2.line(image, (x0, y0), (x1, y1), colour, width, cv2.LINE_AA, shift=4)


def _clip(line, left, top, right, bottom):
    """Liang and Barsky: the part of the segment (2, 2) inside the rectangle, or None."""
    start, step = line[0], line[1] - line[0]
    low, high = 0.0, 1.0
    for change, room in ((-step[0], start[0] - left), (step[0], right - start[0]),
                         (-step[1], start[1] - top), (step[1], bottom - start[1])):  # fmt: skip
        if change == 0:
            if room < 0:
                return None
        elif change < 0:
            low = max(low, room / change)
        else:
            high = min(high, room / change)
    if low > high:
        return None
    return np.stack([start + low * step, start + high * step])


def draw_points_on_images(images: dict, points, cameras: dict, **options) -> dict:
    """:func:`draw_points_on_image` over a rig.

    Args:
        images: camera name -> (H, W, 3) uint8 RGB.
        points: (P, >= 3), LiDAR frame.
        cameras: camera name -> dict with ``lidar2cam`` and ``cam2img``, as in info files.
        **options: passed on.
    """
    return {
        name: draw_points_on_image(image, points, **_matrices(cameras, name), **options)
        for name, image in images.items()
    }


def draw_boxes_on_images(images: dict, boxes, cameras: dict, **options) -> dict:
    """:func:`draw_boxes_on_image` over a rig; arguments as in :func:`draw_points_on_images`."""
    return {
        name: draw_boxes_on_image(image, boxes, **_matrices(cameras, name), **options) for name, image in images.items()
    }


def _matrices(cameras, name):
    if name not in cameras:
        raise ValueError(f'cameras: no entry for {name}, found {sorted(cameras)}')
    return {key: cameras[name][key] for key in ('lidar2cam', 'cam2img')}
