"""Writes the city: plans the scenes, runs the writers in parallel, and ends with the tables."""

import concurrent.futures
import json
import multiprocessing
import os
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from occforge.errors import ConfigError, DataError
from occforge.fileio import atomic_write, remove_leftovers
from occforge.processes import end_with_parent

from .frames import Job, world_of, write_frame, write_sweeps
from .layout import MARGIN
from .rig import Rig, load_rig
from .tables import scene_part, token, write_tables
from .world import KEYFRAME_STEP

# traffic keeps right in Boston, left in Singapore
LOCATIONS = (
    'boston-seaport',
    'singapore-onenorth',
    'boston-seaport',
    'singapore-hollandvillage',
    'boston-seaport',
    'singapore-queenstown',
)
SPLITS = {'v1.0-trainval': ('train', 'val'), 'v1.0-mini': ('mini_train', 'mini_val'), 'v1.0-test': ('test', None)}
MARKER = 'synthetic_city.json'  # in the root: what the folder was made from, and whether it is complete


def generate(
    root,
    version='v1.0-trainval',
    scenes=10,
    keyframes=20,
    seed=0,
    workers=2,
    image_size=(800, 450),
    rig=None,
    split=None,
    camera_sweeps=0,
    label_refine=1,
    progress=True,
) -> Path:
    """Write a synthetic city as a nuScenes dataset with lidarseg, map expansion and Occ3D labels.

    The same arguments give the same bytes, whatever the number of workers. A run that was killed goes on where it
    stopped when it is called again with the same arguments; a complete city is left as it is.

    Args:
        root: folder to write into; made if absent.
        version: 'v1.0-trainval', 'v1.0-mini' (up to 8 + 2 scenes) or 'v1.0-test'.
        scenes: number of scenes, named after nuScenes' own splits.
        keyframes: key frames of a scene, 2 Hz; 20 Hz LiDAR sweeps lie between them.
        seed: of the city, 0 or more.
        workers: processes; 0 and 1 work in this process.
        image_size: (width, height), at most 1600 x 900; the aspect ratio of the rig's images.
        rig: path of a rig file, or the name of a shipped one; None: nuScenes' (see :func:`.rig.load_rig`).
        split: (train, val) numbers of scenes, or 'TRAIN:VAL'; they add up to ``scenes``. None: one fifth is held out.
        camera_sweeps: camera images between two key frames, unlabelled.
        label_refine: 2 or 4: also write ``labels_2x.npz`` / ``labels_4x.npz`` with finer voxels (semantics only).
        progress: show a bar.

    Returns:
        The root as a path.

    Raises:
        ConfigError: for a field out of range. DataError: for a bad rig file, or a root that holds something else.
    """
    root = Path(root)
    rig = load_rig(rig)
    image_size = _check_size(image_size, rig)
    for name, value, low in (
        ('scenes', scenes, 1),
        ('keyframes', keyframes, 1),
        ('seed', seed, 0),
        ('workers', workers, 0),
        ('camera_sweeps', camera_sweeps, 0),
    ):
        if not isinstance(value, (int, np.integer)) or value < low:
            raise ConfigError(f'synthetic city: {name} must be an integer of {low} or more, found {value!r}')
    if keyframes > 80:
        raise ConfigError(f'synthetic city: keyframes must be at most 80 (40 s), found {keyframes}')
    if label_refine not in (1, 2, 4):
        raise ConfigError(f'synthetic city: label_refine must be 1, 2 or 4, found {label_refine!r}')
    names = _scene_names(version, scenes, split)
    asked = {
        'format': 1,
        'version': version,
        'scenes': names,
        'keyframes': int(keyframes),
        'seed': int(seed),
        'image_size': list(image_size),
        'rig': rig_fields(rig),
        'camera_sweeps': int(camera_sweeps),
        'label_refine': int(label_refine),
    }
    if _claim_root(root, asked):
        return root
    jobs, places = _plan(root, asked, rig, image_size)
    centres, edges = _tiles(jobs, places)
    total = sum(2 + job.keyframes for job in jobs)
    with tqdm(total=total, unit='step', disable=not progress, desc='city', smoothing=0.05) as bar:
        records = _run(jobs, centres, workers, bar)
        write_tables(jobs, [r[0] for r in records], [p[0] for p in places], [r[1] for r in records], edges)
    for folder in (path for path in root.rglob('*') if path.is_dir()):
        remove_leftovers(folder)  # of a killed call that this one has gone on from
    os.sync()  # the frames were written without waiting for the disk
    with atomic_write(root / MARKER, 'w') as file:
        json.dump({**asked, 'complete': True}, file, indent=1)
    shutil.rmtree(root / '.city')
    return root


def rig_fields(rig: Rig):
    """The rig as plain lists, for comparing."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        if hasattr(value, '_asdict'):
            return {k: plain(v) for k, v in value._asdict().items()}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(rig)


def _check_size(image_size, rig):
    try:
        w, h = (int(v) for v in image_size)
    except (TypeError, ValueError):
        raise ConfigError(f'synthetic city: image_size must be (width, height), found {image_size!r}') from None
    if not (32 <= w <= 1600 and 32 <= h <= 1600):
        raise ConfigError(f'synthetic city: image_size must lie between 32 and 1600 pixels a side, found {w}x{h}')
    stretch = (w / rig.image_size[0]) / (h / rig.image_size[1])
    if not 0.97 < stretch < 1.03:
        want = '{}x{}'.format(*rig.image_size)
        raise ConfigError(f"synthetic city: image_size {w}x{h} has not the shape of the rig's images ({want})")
    return w, h


def _scene_names(version, scenes, split):
    from nuscenes.utils import splits

    if version not in SPLITS:
        raise ConfigError(f'synthetic city: version must be one of {", ".join(SPLITS)}, found {version!r}')
    train_name, val_name = SPLITS[version]
    if split is None:
        val = max(1, round(scenes / 5)) if scenes > 1 and val_name else 0
        split = (scenes - val, val)
    else:
        try:
            split = tuple(int(v) for v in (split.split(':') if isinstance(split, str) else split))
        except (TypeError, ValueError):
            split = ()
        if len(split) != 2 or min(split) < 0 or sum(split) != scenes:
            raise ConfigError(f'synthetic city: split must be TRAIN:VAL numbers that add up to {scenes} scenes')
    if split[1] and val_name is None:
        raise ConfigError(f'synthetic city: {version} has no held-out scenes, found split {split[0]}:{split[1]}')
    names = []
    for name, number in zip((train_name, val_name), split):
        known = getattr(splits, name) if name else []
        if number > len(known):
            raise ConfigError(f'synthetic city: {version} has {len(known)} scenes in {name}, {number} were asked for')
        names += known[:number]
    return names


def _claim_root(root, asked) -> bool:
    """Check that the folder is ours to write into; True if the very city is complete already."""
    marker = root / MARKER
    if marker.exists():
        try:
            found = json.loads(marker.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise DataError(f'{marker}: not a JSON file; delete the folder {root} to start anew') from None
        for name, value in asked.items():
            if found.get(name) != value:
                pair = '' if name == 'rig' else f': found {found.get(name)}, asked for {value}'
                raise DataError(
                    f'{marker}: the folder holds another city, field {name} differs{pair}; '
                    'choose another folder or delete this one'
                )
        return bool(found.get('complete'))
    for folder in ('samples', 'sweeps', asked['version']):
        if (root / folder).exists():
            raise DataError(f'{root}: holds {folder}/ of a dataset that is not a synthetic city; choose another folder')
    with atomic_write(marker, 'w') as file:
        json.dump({**asked, 'complete': False}, file, indent=1)
    return False


def _plan(root, asked, rig, image_size):
    """Jobs and, per scene, (location, number of its tile there)."""
    jobs, places, used = [], [], {}
    for index, name in enumerate(asked['scenes']):
        location = LOCATIONS[index % len(LOCATIONS)]
        key = f'{asked["seed"]} {name}'
        frames = range(asked['keyframes'])
        jobs.append(
            Job(
                str(root),
                asked['version'],
                asked['seed'],
                index,
                asked['keyframes'],
                location.startswith('boston'),
                name,
                token(f'{key} scene'),
                f'n{900 + index:03d}-2031-01-01-10-{index % 60:02d}-00+0800',
                1_925_000_000_000_000 + index * 600_000_000,
                image_size,
                rig,
                asked['camera_sweeps'],
                asked['label_refine'],
                tuple(token(f'{key} sample {k}') for k in frames),
                tuple(token(f'{key} lidar {k}') for k in frames),
            )
        )
        places.append((location, used.setdefault(location, 0)))
        used[location] += 1
    return jobs, places


def _run(jobs, shifts, workers, bar) -> list:
    """Sweeps of each scene, then its frames, then its records; returns the records of all scenes.

    A worker keeps to the scene whose world it has built; once all scenes are begun, it helps with another's frames.
    """
    if workers <= 1:
        out = []
        for job, shift in zip(jobs, shifts):
            write_sweeps(job)
            bar.update(2)
            for frame in range(job.keyframes):
                write_frame(job, frame)
                bar.update(1)
            out.append(scene_records(job, shift))
        return out
    method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
    pools = [
        concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context(method), initializer=end_with_parent, initargs=(os.getpid(),)
        )
        for _ in range(workers)
    ]
    ready = [[(write_sweeps, job)] for job in jobs]  # steps that can be taken now, by scene
    left, out = [job.keyframes for job in jobs], [None] * len(jobs)
    waiting, idle = {}, list(range(workers))
    new = iter(range(len(jobs)))
    scene = [next(new, 0) for _ in range(workers)]  # of each worker

    def next_scene(worker):
        if ready[scene[worker]]:
            return scene[worker]
        return next(new, max(range(len(jobs)), key=lambda number: len(ready[number])))

    try:
        while None in out:
            for worker in tuple(idle):
                number = scene[worker] = next_scene(worker)
                if ready[number]:
                    work, *arguments = ready[number].pop(0)
                    waiting[pools[worker].submit(work, *arguments)] = worker, number, work
                    idle.remove(worker)
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                worker, number, work = waiting.pop(future)
                idle.append(worker)
                result = future.result()
                if work is write_sweeps:
                    bar.update(2)
                    ready[number] = [(write_frame, jobs[number], frame) for frame in range(jobs[number].keyframes)]
                elif work is write_frame:
                    bar.update(1)
                    left[number] -= 1
                    if left[number] == 0:
                        ready[number] = [(scene_records, jobs[number], shifts[number])]
                else:
                    out[number] = result
    except BrokenProcessPool:
        raise RuntimeError(
            'a worker of the synthetic city died (killed, or out of memory); run the same command again to go on'
        ) from None
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown(wait=True)
    return out


def _tiles(jobs, places):
    """Where the scenes lie on their maps, side by side: centres (per scene) and edges (per location), metres."""
    reach = 6.2 * 1.2 * (jobs[0].keyframes - 1) * KEYFRAME_STEP
    pitch = float(np.ceil((2 * MARGIN + reach + 20) / 50) * 50)
    edges = {}
    for location, number in places:
        edges[location] = (max((number + 1) * pitch, edges.get(location, (0, 0))[0]), pitch)
    return [((number + 0.5) * pitch, pitch / 2) for _, number in places], edges


def scene_records(job, centre):
    """What the tables need of a scene: its records, and its map polygons with their window and shift."""
    world = world_of(job.seed, job.index, job.keyframes, job.right_hand)
    layout = world.layout
    shift = np.round(np.array(centre) - layout.lower - layout.extent / 2, 3)
    part = scene_part(world, job, shift, describe(world))
    return part, (layout.map, shift, layout.lower, layout.lower + layout.extent)


def describe(world) -> str:
    """A line about a scene, in nuScenes' manner."""
    number = {}
    for agent in world.agents:
        group = agent.model.category.split('.')[0]
        number[group] = number.get(group, 0) + 1
    turn = {'straight': 'straight on', 'left': 'turn left', 'right': 'turn right'}[world.layout.turn]
    weather = 'overcast' if world.light.clouds > 0.5 else 'sunny'
    return (
        f'Synthetic city, {turn}, {"T-junction" if world.layout.tee else "junction"}, {weather}, '
        f'{number.get("vehicle", 0)} vehicles, {number.get("human", 0)} people'
    )
