"""Points in perspective and from above, rendered depth, instances in colours of their own."""

import cv2
import numpy as np

from .canvas import BACKGROUND, blank
from .occupancy import Camera
from .sensors import BOX_EDGES, NEAR, box_corners, class_colour, depth_colours

NO_INSTANCE = (196, 200, 206)
"""RGB of points that belong to no instance."""


def instance_palette(count: int) -> np.ndarray:
    """(count, 3) RGB uint8: neighbours in number differ clearly (hues in golden-ratio steps, three brightnesses)."""
    index = np.arange(count)
    hue = (index * 0.618034) % 1.0 * 179
    value = np.array([235, 190, 150])[index % 3]
    hsv = np.stack([hue, np.full(count, 200), value], -1).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] if count else np.zeros((0, 3), np.uint8)


def instance_colours(masks, scores=None, numbers=None) -> np.ndarray:
    """(P, 3) RGB uint8 of points by instance; where masks overlap the one with the highest score is seen.

    Args:
        masks: (M, P) bool.
        scores: (M,); None: a later mask covers an earlier one.
        numbers: (M,) of the instances, 0 or more: one with the same number has the same colour at any time. None: their
            places among the masks.
    """
    masks = np.asarray(masks).astype(bool)
    if masks.ndim != 2:
        raise ValueError(f'masks: expected shape (M, P), found {masks.shape}')
    colours = np.tile(np.uint8(NO_INSTANCE), (masks.shape[1], 1))
    numbers = np.arange(len(masks)) if numbers is None else np.asarray(numbers)
    palette = instance_palette(int(numbers.max(initial=-1)) + 1)
    order = range(len(masks)) if scores is None else np.argsort(np.asarray(scores), kind='stable')
    for index in order:
        colours[masks[index]] = palette[numbers[index]]
    return colours


def camera_around(points, size=(960, 640)) -> Camera:
    """A camera that sees all points from a corner above: for rooms and other scenes without a car in the middle."""
    points = np.asarray(points, np.float64)[:, :3]
    points = points[np.isfinite(points).all(1)]
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(3), np.ones(3))
    middle = (low + high) / 2
    radius = max(float(np.linalg.norm(high - low)) / 2, 0.1)
    fov = 50.0
    narrow = np.arctan(np.tan(np.deg2rad(fov) / 2) * min(1.0, size[1] / size[0]))
    away = np.array([-0.62, -0.50, 0.60])
    return Camera(tuple(middle + away / np.linalg.norm(away) * radius / np.sin(narrow)), tuple(middle), fov, size)


def draw_point_cloud(points, colours, *, camera=None, radius=None, boxes=None, box_colours=(32, 36, 42),
                     background=BACKGROUND) -> np.ndarray:  # fmt: skip
    """Points in perspective, the nearer hiding the farther, and boxes as wire frames over them.

    Args:
        points: (P, >= 3) metres; those that are not finite are left out.
        colours: (P, 3) RGB 0..255, or one colour.
        camera: a :class:`~occforge.visualization.Camera`; default :func:`camera_around`.
        radius: of a point in metres (default: a 250th of the scene's diagonal).
        boxes: (M, 7+) x, y, z of the middle, dx, dy, dz, yaw, or None; ``box_colours`` (M, 3) or one.
        background: RGB.

    Returns:
        (height, width, 3) uint8 of ``camera.size``.
    """
    points = np.asarray(points, np.float64)[:, :3]
    colours = np.broadcast_to(np.asarray(colours), points.shape)
    camera = camera or camera_around(points)
    width, height = camera.size
    canvas = blank(height, width, background)
    finite = np.isfinite(points).all(1)
    points, colours = points[finite], colours[finite].astype(np.uint8)
    if radius is None:
        radius = max(float(np.linalg.norm(np.ptp(points, axis=0))) / 250, 0.005) if len(points) else 0.01
    axes, eye = camera.axes(), np.asarray(camera.eye, np.float64)
    focal = width / 2 / np.tan(np.deg2rad(camera.fov) / 2)
    seen = (points - eye) @ axes.T
    pixels = seen[:, :2] / np.maximum(seen[:, 2:], 1e-9) * focal + (width / 2, height / 2)
    inside = (seen[:, 2] > NEAR) & (pixels > -50).all(1) & (pixels[:, 0] < width + 50) & (pixels[:, 1] < height + 50)
    pixels, depth, colours = np.floor(pixels[inside]).astype(int), seen[inside, 2], colours[inside]
    order = np.argsort(-depth)
    pixels, depth, colours = pixels[order], depth[order], colours[order]
    reach = np.clip(np.rint(radius * focal / depth), 0, 25).astype(int)
    shade = 1 - 0.25 * (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9) if len(depth) else depth
    colours = (colours * shade[:, None]).astype(np.uint8)
    # squares, far to near: in numpy's assignment the last of several values for one pixel stays
    pieces = []
    for half in np.unique(reach):
        chosen = np.flatnonzero(reach == half)
        step = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * 2), -1).reshape(-1, 2)
        pieces.append((np.repeat(chosen, len(step)), (pixels[chosen, None] + step).reshape(-1, 2)))
    if pieces:
        owner, place = (np.concatenate(part) for part in zip(*pieces))
        order = np.argsort(owner, kind='stable')
        owner, place = owner[order], place[order]
        inside = (place >= 0).all(1) & (place[:, 0] < width) & (place[:, 1] < height)
        canvas[place[inside, 1], place[inside, 0]] = colours[owner[inside]]
    if boxes is not None and len(boxes):
        corners = box_corners(boxes)
        shades = np.broadcast_to(np.asarray(box_colours), (len(corners), 3)).tolist()
        seen = (corners - eye) @ axes.T
        pixels = seen[..., :2] / np.maximum(seen[..., 2:], 1e-9) * focal + (width / 2, height / 2)
        for number in np.flatnonzero((seen[..., 2] > NEAR).all(1)):
            for first, last in BOX_EDGES:
                ends = np.rint(pixels[number, [first, last]].clip(-20000, 20000)).astype(int)
                cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), shades[number], 1, cv2.LINE_AA)
    return canvas


def draw_points_top(points, boxes=None, labels=None, names=None, *, point_cloud_range, size=800,
                    picture=None) -> np.ndarray:  # fmt: skip
    """Points and boxes from above; up is +x, left is +y.

    Args:
        points: (P, >= 3) metres, or None.
        boxes: (M, 7+) in the points' frame, or None; ``labels`` (M,) index ``names`` as in ``draw_boxes_on_image``.
        point_cloud_range: (x0, y0, z0, x1, y1, z1) of the picture; z does not matter.
        size: height of the picture in pixels; the width follows.
        picture: (size, W, 3) to draw over, for instance :func:`draw_map`'s; default white.

    Returns:
        (H, W, 3) uint8.
    """
    x0, y0, _, x1, y1, _ = (float(value) for value in point_cloud_range)
    width = max(1, round(size * (y1 - y0) / (x1 - x0)))
    canvas = blank(size, width, (255, 255, 255)) if picture is None else np.array(picture)
    size, width = canvas.shape[:2]

    def pixels(places):
        return np.stack([(y1 - places[..., 1]) / (y1 - y0) * width, (x1 - places[..., 0]) / (x1 - x0) * size], -1)

    if points is not None:
        places = np.floor(pixels(np.asarray(points, np.float64))).astype(int)
        inside = (places >= 0).all(1) & (places[:, 0] < width) & (places[:, 1] < size)
        canvas[places[inside, 1], places[inside, 0]] = (150, 154, 160)
    if boxes is not None and len(boxes):
        names = () if names is None else names
        corners = pixels(box_corners(boxes)[:, [0, 1, 5, 4]][..., :2])  # front left, front right, back right, back left
        for number, corner in enumerate(corners):
            colour = class_colour(None if labels is None else int(labels[number]), names)
            colour = tuple(round(0.75 * value) for value in colour)  # darker, for the white ground
            corner = np.rint(corner.clip(-20000, 20000) * 16).astype(np.int32)
            cv2.polylines(canvas, [corner], True, colour, max(1, size // 500), cv2.LINE_AA, shift=4)
            middle, front = corner.mean(0), corner[:2].mean(0)  # a stroke to where it faces
            ends = np.rint([middle, front]).astype(int).tolist()
            cv2.line(canvas, *ends, colour, max(1, size // 500), cv2.LINE_AA, shift=4)
    return canvas


MAP_COLOURS = {
    'drivable_area': (166, 206, 227),
    'ped_crossing': (251, 154, 153),
    'walkway': (178, 223, 138),
    'stop_line': (227, 26, 28),
    'carpark_area': (253, 191, 111),
    'divider': (106, 61, 154),
    'road_divider': (106, 61, 154),
    'lane_divider': (202, 178, 214),
}


def map_colours(names) -> list:
    """RGB of map classes: those of MAP_COLOURS, others by their place."""
    return [MAP_COLOURS.get(name, tuple(spare)) for name, spare in zip(names, instance_palette(len(names)).tolist())]


def draw_map(masks, names, *, size=800, threshold=0.5) -> np.ndarray:
    """Map masks from above; where they overlap the class later in ``names`` is seen. Up is +x, left is +y.

    Args:
        masks: (classes, X, Y) bool or probabilities; x forward, y to the left.
        names: of the classes.
        size: height of the picture in pixels; the width follows.
        threshold: probability from which a cell belongs to the class.

    Returns:
        (H, W, 3) uint8.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or len(masks) != len(names):
        raise ValueError(f'masks: expected shape ({len(names)}, X, Y), found {masks.shape}')
    masks = masks if masks.dtype == bool else masks >= threshold
    picture = blank(*masks.shape[1:], (255, 255, 255))
    for mask, colour in zip(masks, map_colours(names)):
        picture[mask] = colour
    width = max(1, round(size * masks.shape[2] / masks.shape[1]))
    return cv2.resize(picture[::-1, ::-1], (width, size), interpolation=cv2.INTER_NEAREST)


def draw_depth(depth, image=None, max_depth=60.0) -> np.ndarray:
    """A depth map in the colours of ``depth_colours``; pixels without depth (0 or not finite) show the image.

    Args:
        depth: (H, W) metres.
        image: (H, W, 3) uint8 RGB, or None: black.
        max_depth: metres at which the colour scale ends.

    Returns:
        (H, W, 3) uint8.
    """
    depth = np.asarray(depth, np.float64)
    if depth.ndim != 2 or (image is not None and np.shape(image) != (*depth.shape, 3)):
        raise ValueError(f'depth: expected (H, W) as the image {np.shape(image)}, found {depth.shape}')
    picture = blank(*depth.shape, (0, 0, 0)) if image is None else np.array(image)
    known = np.isfinite(depth) & (depth > 0)
    picture[known] = depth_colours(depth[known], high=max_depth) if known.any() else 0
    return picture
