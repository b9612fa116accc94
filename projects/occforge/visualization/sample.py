"""Pictures that sum up one sample: images, prediction and truth; or images with points, boxes and labels."""

from dataclasses import replace

import numpy as np

from occforge.datasets import occ3d

from .canvas import FAINT, INK, Pen, blank, fit, paste
from .occupancy import Camera, check_grid, draw_occupancy_perspective, draw_occupancy_top
from .sensors import class_colour, depth_colours, draw_boxes_on_images, draw_points_on_images

CAMERA_ROWS = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
MARGIN, GAP, TITLE, LEGEND = 24, 12, 60, 292
RIGHT = (0, 150, 90)
WRONG_CLASS, MISSED, INVENTED = (255, 170, 0), (60, 110, 230), (215, 40, 50)


def sample_iou(pred, target, num_classes: int, mask=None) -> tuple:
    """IoU of each class of one sample, and its voxel counts in the truth.

    Args:
        pred, target: (X, Y, Z) class numbers; 255 in ``target`` is not counted.
        num_classes: classes including free (the last).
        mask: (X, Y, Z) bool: only these voxels count.

    Returns:
        iou: (num_classes,) float, NaN where a class is in neither; count: (num_classes,) int64.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    keep = target < num_classes
    if mask is not None:
        keep &= np.asarray(mask).astype(bool)
    cells = target[keep].astype(np.int64) * num_classes + pred[keep]
    matrix = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    hit, count = np.diag(matrix), matrix.sum(1)
    union = count + matrix.sum(0) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan), count


def draw_errors_top(pred, target, free: int, mask=None, size=300) -> np.ndarray:
    """Where the prediction fails, from above: (H, W, 3). Of the voxels in a column the worst decides.

    Green: all occupied voxels right; orange: occupied but another class; blue: missed; red: invented.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    known = target != 255
    if mask is not None:
        known &= np.asarray(mask).astype(bool)
    occupied, guessed = (target != free) & known, (pred != free) & known
    picture = np.full((*pred.shape[:2], 3), 255, np.uint8)
    for where, colour in (
        (occupied & (pred == target), RIGHT),
        (occupied & guessed & (pred != target), WRONG_CLASS),
        (guessed & ~occupied, INVENTED),
        (occupied & ~guessed, MISSED),
    ):
        picture[where.any(-1)] = colour
    return fit(picture[::-1, ::-1], round(size * pred.shape[1] / pred.shape[0]), size, (255, 255, 255))


def arrange_cameras(names) -> list:
    """Rows of camera names as they sit on the car: nuScenes' rig in two rows of three, another rig as it is given."""
    names = list(names)
    if set(names) <= {name for row in CAMERA_ROWS for name in row}:
        return [row for row in ([n for n in row if n in names] for row in CAMERA_ROWS) if row]
    columns = 3 if len(names) != 4 else 4
    return [names[i : i + columns] for i in range(0, len(names), columns)]


def draw_camera_grid(images: dict, width: int, gap: int = GAP) -> np.ndarray:
    """The images of a rig as one picture of that width, each with its name. ``images``: name -> (H, W, 3) uint8 RGB."""
    rows = arrange_cameras(images)
    columns = max(len(row) for row in rows)
    cell = (width - gap * (columns - 1)) // columns
    aspect = np.median([image.shape[0] / image.shape[1] for image in images.values()])
    height = round(cell * aspect)
    canvas = blank(len(rows) * (height + gap) - gap, width)
    places = {}
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            places[name] = j * (cell + gap), i * (height + gap)
            paste(canvas, fit(images[name], cell, height), *places[name])
    with Pen(canvas) as pen:
        for name, (x, y) in places.items():
            pen.tag(x + 8, y + 8, name)
    return canvas


def side_by_side(pictures: dict, gap: int = GAP) -> np.ndarray:
    """Pictures of one height in a row, each with its name. ``pictures``: name -> (H, W, 3) uint8 RGB."""
    height = max(picture.shape[0] for picture in pictures.values())
    canvas = blank(height, sum(picture.shape[1] + gap for picture in pictures.values()) - gap)
    places, x = {}, 0
    for name, picture in pictures.items():
        paste(canvas, picture, x, 0)
        places[name] = x
        x += picture.shape[1] + gap
    with Pen(canvas) as pen:
        for name, x in places.items():
            pen.tag(x + 8, 8, name)
    return canvas


def draw_occupancy_sample(
    pred, target=None, images=None, mask=None, *, title='', mask_name='', camera=None, class_names=None, palette=None,
    point_cloud_range=occ3d.POINT_CLOUD_RANGE, width=1920,
):  # fmt: skip
    """One PNG's worth of a sample.

    Args:
        pred: (X, Y, Z) predicted class numbers; the last class is free.
        target: (X, Y, Z) true ones (255: not known), or None.
        images: camera name -> (H, W, 3) uint8 RGB, or None.
        mask: (X, Y, Z) bool: the voxels that count. Outside, truth and prediction are drawn pale from above and left
            out in perspective.
        title: headline; ``mask_name`` is named in it.
        camera: a :class:`~occforge.visualization.Camera`, the same for prediction and truth; its size is set here.
        class_names, palette: names and RGB colours of the classes; default Occ3D's.
        point_cloud_range: of the grid, ego metres.
        width: of the picture, pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    names = list(occ3d.CLASS_NAMES if class_names is None else class_names)
    palette = np.asarray(occ3d.PALETTE if palette is None else palette)[:, :3]
    if len(names) != len(palette):
        raise ValueError(f'palette: expected {len(names)} colours, one a class, found {len(palette)}')
    free = len(names) - 1
    pred = check_grid('pred', pred, len(names))
    if target is not None:
        check_grid('target', target, len(names), pred.shape)
        target = np.asarray(target)
    left = width - 2 * MARGIN - LEGEND - 2 * GAP
    grids = [('Prediction', pred)] if target is None else [('Truth', target), ('Prediction', pred)]
    top_height = round(left * 0.29)
    top_width = round(top_height * pred.shape[1] / pred.shape[0])
    view = replace(camera or Camera(), size=(left - top_width - GAP, top_height))
    pieces = []  # (picture, x, y, label)
    y = MARGIN + TITLE
    if images:
        grid = draw_camera_grid(images, left)
        pieces.append((grid, MARGIN, y, None))
        y += grid.shape[0] + 2 * GAP
    options = dict(palette=palette, point_cloud_range=point_cloud_range)
    errors_y = max(y, MARGIN + TITLE + 34 + 30 * len(names) + 2 * GAP)
    for label, grid in grids:
        top = draw_occupancy_top(grid, mask, size=top_height, **options)
        perspective = draw_occupancy_perspective(grid, mask, camera=view, **options)
        pieces.append((top, MARGIN, y, f'{label}, from above'))
        pieces.append((perspective, MARGIN + top_width + GAP, y, label))
        y += top_height + GAP
    height = max(y - GAP + MARGIN, errors_y + (LEGEND + 120 if target is not None else 0))
    canvas = blank(height, width)
    for picture, x, y, _ in pieces:
        paste(canvas, picture, x, y)
    legend_x, legend_y = width - MARGIN - LEGEND, MARGIN + TITLE
    errors = None
    if target is not None:
        errors = draw_errors_top(pred, target, free, mask, LEGEND)
        paste(canvas, errors, legend_x, errors_y + 30)
    with Pen(canvas) as pen:
        pen.text(MARGIN, MARGIN + 4, title or 'Occupancy', 28)
        if mask is not None:
            note = f'only voxels of the {mask_name} mask count' if mask_name else 'only voxels of the mask count'
            pen.text(width - MARGIN, MARGIN + 12, note, 18, FAINT, 'ra')
        for picture, x, y, label in pieces:
            if label:
                pen.box(x, y, picture.shape[1], picture.shape[0], outline=(205, 208, 212))
                pen.tag(x + 8, y + 8, label)
        _draw_legend(pen, legend_x, legend_y, names, palette, pred, target, mask)
        if errors is not None:
            x, y = legend_x, errors_y + 30
            pen.box(x, y, errors.shape[1], errors.shape[0], outline=(205, 208, 212))
            pen.text(x, errors_y, 'Where they differ', 18)
            for i, (text, colour) in enumerate(
                (('right', RIGHT), ('wrong class', WRONG_CLASS), ('missed', MISSED), ('invented', INVENTED))
            ):
                tx, ty = legend_x + (i % 2) * 146, y + errors.shape[0] + 14 + (i // 2) * 28
                pen.box(tx, ty, 18, 18, colour, radius=3)
                pen.text(tx + 26, ty + 9, text, 16, anchor='lm')
    return canvas


def _draw_legend(pen, x, y, names, palette, pred, target, mask) -> None:
    """Class colours with this sample's IoU as number and bar; without a truth only colours and voxel counts."""
    free = len(names) - 1
    if target is None:
        count = np.bincount(pred.ravel(), minlength=len(names))
        pen.text(x, y, 'class', 16, FAINT)
        pen.text(x + LEGEND, y, 'voxels', 16, FAINT, 'ra')
    else:
        iou, count = sample_iou(pred, target, len(names), mask)
        mean = np.nanmean(iou[:free]) if np.isfinite(iou[:free]).any() else np.nan
        pen.text(x, y, 'class', 16, FAINT)
        pen.text(x + LEGEND, y, 'IoU, this sample', 16, FAINT, 'ra')
    y += 32
    for index, name in enumerate(names[:free]):
        pen.box(x, y, 20, 20, tuple(int(c) for c in palette[index]), (150, 152, 156), 3)
        if target is None:
            pen.text(x + 30, y + 10, name, 17, INK if count[index] else FAINT, 'lm')
            pen.text(x + LEGEND, y + 10, f'{count[index]:,}', 17, INK if count[index] else FAINT, 'rm')
        else:
            known = np.isfinite(iou[index])
            if known:
                bar = x + 30, y + 19, max(1, round((LEGEND - 30) * float(iou[index]))), 3
                pen.box(x + 30, y + 19, LEGEND - 30, 3, (228, 230, 232))
                pen.box(*bar, (70, 120, 190))
            pen.text(x + 30, y + 8, name, 17, INK if known else FAINT, 'lm')
            pen.text(x + LEGEND, y + 8, f'{100 * iou[index]:.1f}' if known else '-', 17, INK if known else FAINT, 'rm')
        y += 30
    if target is not None:
        pen.text(x, y + 12, 'mean', 18, anchor='lm')
        pen.text(x + LEGEND, y + 12, f'{100 * mean:.1f}' if np.isfinite(mean) else '-', 18, anchor='rm')


def draw_sensor_sample(
    images,
    cameras,
    points=None,
    boxes=None,
    labels=None,
    names=None,
    *,
    occupancy=None,
    mask=None,
    below=None,
    title='',
    width=1920,
):
    """The images of a sample with its LiDAR points and boxes on them, and its occupancy labels below.

    Args:
        images: camera name -> (H, W, 3) uint8 RGB.
        cameras: camera name -> dict with ``lidar2cam`` (4, 4) and ``cam2img`` (3, 3), as in info files.
        points: (P, >= 3) in the LiDAR frame, or None.
        boxes: (M, 7+) gravity-centre boxes in the LiDAR frame, or None; ``labels`` (M,) index ``names``.
        occupancy: (X, Y, Z) class numbers of Occ3D, or None.
        mask: (X, Y, Z) bool: labels outside are drawn pale from above and left out in perspective. None: all count.
        below: (H, W, 3) a further picture under the images, or None; a wider one is made to fit.
        title: headline.
        width: of the picture, pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if points is not None:
        images = draw_points_on_images(images, points, cameras)
    if boxes is not None:
        images = draw_boxes_on_images(images, boxes, cameras, labels=labels, names=names)
    inner = width - 2 * MARGIN
    parts = [draw_camera_grid(images, inner)]
    if occupancy is not None:
        height = round(inner * 0.27)
        top = draw_occupancy_top(occupancy, mask, size=height)
        view = draw_occupancy_perspective(occupancy, mask, camera=Camera(size=(inner - top.shape[1] - GAP, height)))
        row = blank(height, inner)
        paste(row, top, 0, 0)
        paste(row, view, top.shape[1] + GAP, 0)
        parts.append(row)
    if below is not None:
        room = min(inner, below.shape[1])
        parts.append(fit(below, room, round(below.shape[0] * room / below.shape[1])))
    head, foot = MARGIN + TITLE, 44
    canvas = blank(head + sum(part.shape[0] + GAP for part in parts) + foot, width)
    y = head
    for part in parts:
        paste(canvas, part, MARGIN, y)
        y += part.shape[0] + GAP
    bar_width = 260
    if points is not None:
        depth = np.geomspace(1, 60, bar_width)
        bar = np.repeat(depth_colours(depth)[None], 14, axis=0)
        paste(canvas, bar, MARGIN + 34, y + 8)
    with Pen(canvas) as pen:
        pen.text(MARGIN, MARGIN + 4, title, 28)
        x = MARGIN
        if points is not None:
            pen.text(x, y + 15, '1 m', 15, FAINT, 'lm')
            pen.text(x + 34 + bar_width + 8, y + 15, '60 m', 15, FAINT, 'lm')
            x += bar_width + 110
        if boxes is not None and labels is not None and names is not None:
            for label in sorted({int(label) for label in labels if 0 <= label < len(names)}):
                colour = tuple(int(c) for c in class_colour(label, names))
                pen.box(x, y + 7, 16, 16, colour, radius=3)
                x += 22 + pen.text(x + 22, y + 15, names[label], 15, anchor='lm') + 18
    return canvas
