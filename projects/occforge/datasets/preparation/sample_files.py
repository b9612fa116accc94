"""A data set of a few frames from sample files: an info pickle beside its images and point clouds."""

import os
import shutil
import warnings
from pathlib import Path

from ...errors import DataError
from ..info_files import load_infos, save_infos
from .occ_labels import DEFAULT_SETTINGS, LabelSettings, label_path, make_labels


def make_dataset(
    source: str | os.PathLike,
    out_dir: str | os.PathLike,
    info: str | os.PathLike | None = None,
    copy: bool = False,
    labels: bool = True,
    workers: int = 1,
    prefix: str = 'nuscenes',
    settings: LabelSettings = DEFAULT_SETTINGS,
) -> tuple[list[Path], dict[str, list[dict]]]:
    """Lay the files out as a nuScenes data root with info files and occupancy labels.

    ``samples/<channel>/`` gets links to (or copies of) the sensor files, ``gts/`` labels made by
    :mod:`.occ_labels` from the LiDAR points and the boxes. What the info file leaves out is derived: a camera's own ego
    pose from ``lidar2cam``, so that LiDAR points project as the file's author had it; image sizes from the files;
    frames without a scene token become scenes of their own.

    Args:
        source: folder with the info pickle (mmdet3d v2 or BEVDet layout) and the files, at any depth.
        out_dir: the new data root; files of an earlier run are replaced.
        info: the info file, where ``source`` holds several.
        copy: copy instead of linking.
        labels: make occupancy labels.
        workers, settings: see :func:`.occ_labels.make_labels`.
        prefix: info files are ``<prefix>_infos_{train,val}.pkl``; both list all frames.

    Returns:
        The info files' paths, and their items by split.

    Raises:
        DataError: no or several info files, or a file that an item names is not there or unreadable.
    """
    source, out_dir = Path(source), Path(out_dir)
    if not source.is_dir():
        raise DataError(f'{source}: no such folder')
    if info is None:
        candidates = sorted(source.glob('*.pkl'))
        if len(candidates) != 1:
            names = ', '.join(path.name for path in candidates) or 'none'
            raise DataError(f'{source}: expected one info file *.pkl, found {names}; name one with --info')
        info = candidates[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # frames that stand alone are what this is for
        metainfo, items = load_infos(info)
    if not items:
        raise DataError(f'{info}: lists no samples')
    files = {path.name: path for path in sorted(source.rglob('*')) if path.is_file()}
    for item in items:
        _place_files(item, files, source, out_dir, copy)
        item['scene_name'] = item.get('scene_name') or 'scene-' + item['scene_token'][:8]
        item.setdefault('prev', '')
        item.setdefault('next', '')
    if labels:
        make_labels(items, out_dir, out_dir / 'gts', settings, workers=workers)
        for item in items:
            item['occ_path'] = label_path('gts', item).as_posix()
    paths, data_lists = [], {}
    for split in ('train', 'val'):
        path = out_dir / f'{prefix}_infos_{split}.pkl'
        save_infos(path, metainfo, items)
        paths.append(path)
        data_lists[split] = items
    return paths, data_lists


def _place_files(item, files, source, out_dir, copy):
    from PIL import Image, UnidentifiedImageError

    def place(path, folder):
        name = os.path.basename(path)
        if name not in files:
            raise DataError(f'{source}: {name} of sample {item["token"]} is not in this folder')
        target = out_dir / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.exists():
            target.unlink()
        if copy:
            shutil.copyfile(files[name], target)
        else:
            target.symlink_to(files[name].resolve())
        return target

    points = item['lidar_points']
    points['lidar_path'] = place(points['lidar_path'], 'samples/LIDAR_TOP').name
    for camera, image in item.get('images', {}).items():
        target = place(image['img_path'], f'samples/{camera}')
        image['img_path'] = target.name
        try:
            with Image.open(target) as picture:
                image['width'], image['height'] = picture.size
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f'{target}: not a readable image ({error})') from error
    sweeps = []
    for sweep in item.get('lidar_sweeps', ()):
        if os.path.basename(sweep['lidar_points']['lidar_path']) in files:
            target = place(sweep['lidar_points']['lidar_path'], 'sweeps/LIDAR_TOP')
            sweep['lidar_points']['lidar_path'] = target.relative_to(out_dir).as_posix()
            sweeps.append(sweep)
    item['lidar_sweeps'] = sweeps
    if item.get('pts_semantic_mask_path'):
        if os.path.basename(item['pts_semantic_mask_path']) in files:
            target = place(item['pts_semantic_mask_path'], 'lidarseg/samples')
            item['pts_semantic_mask_path'] = target.relative_to(out_dir).as_posix()
        else:
            del item['pts_semantic_mask_path']
