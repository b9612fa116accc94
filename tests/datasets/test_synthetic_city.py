"""The synthetic city: what it writes, read back with nuscenes-devkit and checked against independent geometry."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from occforge.datasets import occ3d
from occforge.datasets.synthetic_city import cameras, frames, generate, load_rig
from occforge.datasets.synthetic_city import generate as generate_function
from occforge.datasets.synthetic_city.labels import camera_rays
from occforge.datasets.synthetic_city.lidar import lidar_pose
from occforge.datasets.synthetic_city.objects import ANNOTATED
from occforge.datasets.synthetic_city.world import World
from occforge.errors import ConfigError, DataError

SIZE = (400, 225)
KEYFRAMES = 3


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp('city')
    generate(root, scenes=2, keyframes=KEYFRAMES, image_size=SIZE, seed=3, workers=2, progress=False)
    return root


@pytest.fixture(scope='module')
def nusc(city):
    from nuscenes import NuScenes

    return NuScenes('v1.0-trainval', str(city), verbose=False)


@pytest.fixture(scope='module')
def worlds(city):
    return [World(3, index, KEYFRAMES, right_hand=index == 0) for index in range(2)]


def pose_of(record):
    from pyquaternion import Quaternion

    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Quaternion(record['rotation']).rotation_matrix, record['translation']
    return pose


def lidar_of(nusc, sample):
    data = nusc.get('sample_data', sample['data']['LIDAR_TOP'])
    points = np.fromfile(Path(nusc.dataroot) / data['filename'], np.float32).reshape(-1, 5)
    lidarseg = np.fromfile(Path(nusc.dataroot) / nusc.get('lidarseg', data['token'])['filename'], np.uint8)
    return data, points, lidarseg


def labels_of(nusc, sample):
    scene = nusc.get('scene', sample['scene_token'])['name']
    with np.load(Path(nusc.dataroot) / 'gts' / scene / sample['token'] / 'labels.npz') as data:
        return {name: data[name] for name in data.files}


# ---- tables ---------------------------------------------------------------------------------------------------


def test_devkit_reads_the_tables(city, nusc):
    assert [s['name'] for s in nusc.scene] == ['scene-0001', 'scene-0003']  # first of nuScenes' train and val
    assert [log['location'] for log in nusc.log] == ['boston-seaport', 'singapore-onenorth']
    for scene in nusc.scene:
        token, count, before = scene['first_sample_token'], 0, 0
        while token:
            sample = nusc.get('sample', token)
            assert sample['timestamp'] > before and len(sample['data']) == 7
            token, count, before = sample['next'], count + 1, sample['timestamp']
        assert count == KEYFRAMES == scene['nbr_samples']
    for data in nusc.sample_data:
        path = city / data['filename']
        assert path.stat().st_size > 1000
        assert nusc.get('ego_pose', data['ego_pose_token'])['timestamp'] == data['timestamp']
    assert not (city / '.city').exists()
    assert json.loads((city / 'synthetic_city.json').read_text())['complete']


def test_twenty_sweeps_a_second(nusc):
    data = nusc.get('sample_data', nusc.sample[1]['data']['LIDAR_TOP'])
    for _ in range(10):
        before = nusc.get('sample_data', data['prev'])
        assert data['timestamp'] - before['timestamp'] == 50_000
        data = before
    assert data['is_key_frame'] and data['sample_token'] == nusc.sample[0]['token']


def test_cameras_have_their_own_times_and_intrinsics(nusc):
    rig = load_rig()
    sample = nusc.sample[0]
    for camera in rig.cameras:
        data = nusc.get('sample_data', sample['data'][camera.name])
        assert data['timestamp'] - sample['timestamp'] == round(camera.delay * 1e6)
        k = np.array(nusc.get('calibrated_sensor', data['calibrated_sensor_token'])['camera_intrinsic'])
        np.testing.assert_allclose(k[:2], camera.intrinsic[:2] / 4)
        assert (data['width'], data['height']) == SIZE


def test_lidarseg_statistics(nusc, capsys):
    nusc.list_lidarseg_categories()
    out = capsys.readouterr().out
    assert 'static.vegetation' in out and 'Calculated stats for 6 point clouds' in out
    seen = set()
    for sample in nusc.sample:
        _, points, lidarseg = lidar_of(nusc, sample)
        assert len(points) == len(lidarseg) > 20_000
        assert set(np.unique(points[:, 4])) <= set(range(32)) and points[:, 3].min() >= 0 and points[:, 3].max() <= 255
        assert points[:, 3].std() > 5
        seen |= set(occ3d.LIDARSEG_TO_OCC[np.unique(lidarseg)].tolist())
    assert seen == set(range(17))


def test_boxes_and_their_counts(nusc):
    from nuscenes.utils.geometry_utils import points_in_box

    categories, same, total = set(), 0, 0
    for sample in nusc.sample:
        data, points, _ = lidar_of(nusc, sample)
        _, boxes, _ = nusc.get_sample_data(data['token'])
        for box in boxes:
            record = nusc.get('sample_annotation', box.token)
            inside = points_in_box(box, points[:, :3].T.astype(np.float64)).sum()
            same += inside == record['num_lidar_pts']
            total += 1
            categories.add(record['category_name'])
            assert record['visibility_token'] in '1234'
    assert same >= 0.99 * total and total > 300
    assert categories <= set(ANNOTATED)
    wanted = (
        'car',
        'truck',
        'bus',
        'trailer',
        'construction',
        'pedestrian',
        'motorcycle',
        'bicycle',
        'cone',
        'barrier',
    )
    assert all(any(part in name for name in categories) for part in wanted), categories
    assert len({nusc.get('sample_annotation', a['token'])['visibility_token'] for a in nusc.sample_annotation}) == 4


def test_points_of_objects_lie_in_their_boxes(nusc):
    """Nearly every point with the label of an annotated class is inside some box of such a class."""
    from nuscenes.utils.geometry_utils import points_in_box

    things = [i for i in range(32) if 9 <= i <= 23 and i not in (13,)]
    for sample in nusc.sample[:2]:
        data, points, lidarseg = lidar_of(nusc, sample)
        _, boxes, _ = nusc.get_sample_data(data['token'])
        covered = np.zeros(len(points), bool)
        for box in boxes:
            covered |= points_in_box(box, points[:, :3].T.astype(np.float64), wlh_factor=1.05)
        near = np.linalg.norm(points[:, :2], axis=1) < 70
        assert covered[np.isin(lidarseg, things) & near].mean() > 0.98


def test_moving_agents_have_velocity(nusc):
    speeds = {}
    for record in nusc.sample_annotation:
        attributes = [nusc.get('attribute', token)['name'] for token in record['attribute_tokens']]
        velocity = np.linalg.norm(nusc.box_velocity(record['token'])[:2])
        for name in attributes:
            speeds.setdefault(name, []).append(velocity)
    assert np.nanmin(speeds['vehicle.moving']) > 0.1 and np.nanmax(speeds['vehicle.parked']) < 1e-6
    assert np.nanmedian(speeds['pedestrian.moving']) > 0.5


def test_map_layers(nusc):
    from nuscenes.map_expansion.map_api import NuScenesMap

    on_grass = []
    for sample in nusc.sample[::KEYFRAMES]:
        scene = nusc.get('scene', sample['scene_token'])
        location = nusc.get('log', scene['log_token'])['location']
        layers = NuScenesMap(str(nusc.dataroot), location)
        data, points, lidarseg = lidar_of(nusc, sample)
        pose = pose_of(nusc.get('ego_pose', data['ego_pose_token'])) @ pose_of(
            nusc.get('calibrated_sensor', data['calibrated_sensor_token'])
        )
        xy = (points[:, :3].astype(float) @ pose[:3, :3].T + pose[:3, 3])[:, :2]
        x, y = pose[:2, 3]
        mask = layers.get_map_mask((x, y, 60, 60), 0, ['drivable_area', 'walkway', 'lane'], (600, 600))
        cell = np.floor((xy - (x - 30, y - 30)) * 10).astype(int)
        inside = ((cell >= 0) & (cell < 600)).all(1)
        road = inside & (lidarseg == 24)
        assert mask[0][cell[road, 1], cell[road, 0]].mean() > 0.97
        grass = inside & (lidarseg == 27)
        on_grass.append(mask[0][cell[grass, 1], cell[grass, 0]])
        record = next(m for m in nusc.map if scene['log_token'] in m['log_tokens'])
        assert record['mask'].is_on_mask(xy[road, 0], xy[road, 1]).mean() > 0.97
        assert layers.layers_on_point(x, y)['drivable_area']
        for name in ('road_segment', 'lane', 'carpark_area', 'road_divider', 'walkway'):
            assert getattr(layers, name), name
    on_grass = np.concatenate(on_grass)  # of all scenes: near one junction there may be a few dozen points only
    # some of them stand on a kerb, half a cell of the mask from the road
    assert len(on_grass) > 100 and on_grass.mean() < 0.06


# ---- sensors against each other -----------------------------------------------------------------------------------


def carried_along(world, points, begin, end):
    """Points on moving agents (inside their boxes at one time), where they are at another time."""
    places, later = world.places(begin), world.places(end)
    points = points.copy()
    for number, (x, y, z, length, width, height, yaw) in enumerate(world.boxes(places)):
        if number < world.still:
            continue
        d = points - (x, y, z)
        c, s = np.cos(yaw), np.sin(yaw)
        u, v = c * d[:, 0] + s * d[:, 1], c * d[:, 1] - s * d[:, 0]
        inside = (np.abs(u) < length / 2 + 0.1) & (np.abs(v) < width / 2 + 0.1) & (np.abs(d[:, 2]) < height / 2 + 0.1)
        inside &= d[:, 2] > 0.05 - height / 2  # not the ground under it
        turn = later[number, 3] - places[number, 3]
        ahead = points[inside, :2] - places[number, :2]
        c, s = np.cos(turn), np.sin(turn)
        points[inside, 0] = later[number, 0] + c * ahead[:, 0] - s * ahead[:, 1]
        points[inside, 1] = later[number, 1] + s * ahead[:, 0] + c * ahead[:, 1]
        points[inside, 2] += later[number, 2] - places[number, 2]
    return points


def test_lidar_agrees_with_the_rendered_depth(nusc, worlds):
    """In every camera at its own time; cameras fire up to 43 ms before the LiDAR, so moving agents are followed."""
    rig, close, total, hidden = load_rig(), 0, 0, 0
    for index, world in enumerate(worlds):
        sample = nusc.sample[index * KEYFRAMES + 1]
        lidar, points, _ = lidar_of(nusc, sample)
        to_map = pose_of(nusc.get('ego_pose', lidar['ego_pose_token'])) @ pose_of(
            nusc.get('calibrated_sensor', lidar['calibrated_sensor_token'])
        )
        to_world = lidar_pose(rig.lidar, world.ego.pose(0.5))
        xyz = points[:, :3].astype(float) @ to_world[:3, :3].T + to_world[:3, 3]
        shift = to_map[:3, 3] - to_world[:3, 3]  # scenes lie side by side on the map
        for camera in rig.cameras:
            data = nusc.get('sample_data', sample['data'][camera.name])
            calibration = nusc.get('calibrated_sensor', data['calibrated_sensor_token'])
            pose = pose_of(nusc.get('ego_pose', data['ego_pose_token'])) @ pose_of(calibration)
            k = np.array(calibration['camera_intrinsic'])
            p = (carried_along(world, xyz, 0.5, 0.5 + camera.delay) + shift - pose[:3, 3]) @ pose[:3, :3]
            uv = p @ k.T
            uv = uv[:, :2] / uv[:, 2:]
            keep = (p[:, 2] > 1) & (uv >= 0).all(1) & (uv < SIZE).all(1)
            moment = world.at(0.5 + camera.delay)
            view = cameras.camera_pose(camera, moment.ego)
            np.testing.assert_allclose(view[:3, 3] + shift, pose[:3, 3], atol=1e-6)
            depth, _ = cameras.depth_at(moment, k, view, uv[keep])
            d = p[keep, 2]
            free = depth > d * 0.97 - 0.1  # else something stands before the point
            close += (np.abs(depth - d) < 0.01 * d)[free].sum()
            total += free.sum()
            hidden += (~free).sum()
    assert total > 10_000 and close >= 0.98 * total, (close / total, total)
    assert hidden < 0.15 * total


def cells_of_boxes(boxes, to_ego, names):
    """Flat index and class of every voxel that an annotated box reaches into (samples 0.1 m apart)."""
    for box in boxes:
        size = np.array(box.wlh)[[1, 0, 2]]
        axes = [np.linspace(-0.5, 0.5, int(np.ceil(edge / 0.1)) + 1) * edge for edge in size]
        points = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3) @ box.rotation_matrix.T + box.center
        cell, inside = cells_of(points @ to_ego[:3, :3].T + to_ego[:3, 3])
        yield cell[inside], occ3d.LIDARSEG_TO_OCC[names[box.name]]


def cells_of(points):
    """(N, 3) ego metres -> flat index of the voxel, and which points are inside the grid."""
    at = np.floor((points - occ3d.POINT_CLOUD_RANGE[:3]) / occ3d.VOXEL_SIZE[0]).astype(int)
    inside = ((at >= 0) & (at < occ3d.GRID_SIZE)).all(1)
    return np.ravel_multi_index(tuple(np.clip(at, 0, np.array(occ3d.GRID_SIZE) - 1).T), occ3d.GRID_SIZE), inside


def test_points_fall_into_voxels_of_their_class(nusc):
    """A voxel holds the classes of the sweep's points in it and of the annotated boxes that reach into it: under a
    car the sweep often hits the road alone."""
    agree, single, single_agree, total, hollow = 0, 0, 0, 0, 0
    mount = lidar_pose(load_rig().lidar, np.eye(4))
    for sample in nusc.sample:
        data, points, lidarseg = lidar_of(nusc, sample)
        label = labels_of(nusc, sample)['semantics'].reshape(-1)
        flat, inside = cells_of(points[:, :3].astype(float) @ mount[:3, :3].T + mount[:3, 3])
        flat, want = flat[inside], occ3d.LIDARSEG_TO_OCC[lidarseg[inside]]
        holds = np.zeros((label.size, 17), bool)
        holds[flat, want] = True
        _, boxes, _ = nusc.get_sample_data(data['token'])
        for cells, cls in cells_of_boxes(boxes, mount, nusc.lidarseg_name2idx_mapping):
            holds[cells, cls] = True
        alone, got = holds[flat].sum(1) == 1, label[flat]
        agree, total = agree + (want == got).sum(), total + len(want)
        single, single_agree = single + alone.sum(), single_agree + (want == got)[alone].sum()
        hollow += (got == occ3d.FREE).sum()
    assert single > 0.85 * total
    assert single_agree >= 0.99 * single, single_agree / single
    assert agree >= 0.95 * total, agree / total
    assert hollow <= 0.002 * total


def dense_scan(world, moment, sensor):
    """A look around from the LiDAR's place, a third of a degree apart: hits (N, 3) and their agents, -1 ground."""
    from occforge.datasets.synthetic_city import lidar

    pose = lidar.lidar_pose(sensor, moment.ego)
    azimuth = np.radians(np.arange(0, 360, 0.36))
    elevation = np.radians(np.concatenate([np.arange(-57, -14, 1.0), np.arange(-14, 18, 0.2), np.arange(18, 40, 1.0)]))
    rays = np.stack([
        np.outer(np.cos(elevation), np.cos(azimuth)), np.outer(np.cos(elevation), np.sin(azimuth)),
        np.repeat(np.sin(elevation)[:, None], len(azimuth), 1),
    ], -1).reshape(-1, 3)  # fmt: skip
    hits = moment.scene.cast(torch.from_numpy(pose[None, :3, 3].copy()), torch.from_numpy(rays), far=75.0)
    primitive = hits.primitive.numpy()
    keep = np.flatnonzero(primitive >= 0)
    owner = np.append(world.owner, -1)
    return pose[:3, 3] + rays[keep] * hits.distance.numpy()[keep, None], owner[primitive[keep]]


def test_points_agree_in_voxels_that_truly_hold_one_class(worlds):
    """As above, the classes of a voxel taken from its true surfaces (a dense scan) and not from a few points."""
    from occforge.datasets.synthetic_city import labels, lidar

    rig, world = load_rig(), worlds[0]
    moment, seen = world.at(0.5), labels.Seen(world)
    turn = lidar.sweep(world, moment, rig.lidar, np.random.default_rng(0))
    seen.add(turn.exact, turn.agents, moment)
    seen.close()
    label = labels.semantics(world, moment, seen)
    back = np.linalg.inv(moment.ego)

    def cells(points):
        return cells_of(points @ back[:3, :3].T + back[:3, 3])

    holds = np.zeros((label.size, 17), bool)
    dense, agents = dense_scan(world, moment, rig.lidar)
    ground = agents < 0
    classes = np.where(ground, 0, occ3d.LIDARSEG_TO_OCC[world.label[agents]])
    classes[ground] = occ3d.LIDARSEG_TO_OCC[world.layout.label_at(dense[ground, :2])]
    flat, inside = cells(dense)
    holds[flat[inside], classes[inside]] = True
    flat, inside = cells(turn.exact)
    want = occ3d.LIDARSEG_TO_OCC[turn.labels]
    holds[flat[inside], want[inside]] = True
    alone = inside & (holds[flat].sum(1) == 1)
    got = label.reshape(-1)[flat]
    assert (got != occ3d.FREE)[inside].mean() > 0.9995  # a hit without noise is always in a labelled voxel
    assert (got == want)[alone].mean() >= 0.99
    assert (got == want)[inside].mean() >= 0.95


# ---- masks --------------------------------------------------------------------------------------------------------


def cells_along(origins, targets, stop=None):
    """Independent traversal: cut each segment at all grid planes it crosses; the pieces' middles name the cells.

    A cell counts if a piece of more than 1e-12 of the segment (0.1 nm of 100 m) lies in it: what is merely touched, at
    an edge or a corner, does not. ``stop`` (X, Y, Z) bool: end at the first such cell. Yields flat indices of the
    cells, chunk by chunk.
    """
    lower, size, shape = np.array(occ3d.POINT_CLOUD_RANGE[:3]), occ3d.VOXEL_SIZE[0], np.array(occ3d.GRID_SIZE)
    for begin in range(0, len(targets), 8000):
        o, e = origins[begin : begin + 8000], targets[begin : begin + 8000]
        d = e - o
        cuts = [np.zeros((len(d), 1)), np.ones((len(d), 1))]
        for axis in range(3):
            planes = lower[axis] + size * np.arange(shape[axis] + 1)
            with np.errstate(divide='ignore', invalid='ignore'):
                t = (planes[None] - o[:, axis, None]) / d[:, axis, None]
            cuts.append(np.clip(np.nan_to_num(t, nan=0.0), 0, 1))
        t = np.sort(np.concatenate(cuts, 1), 1)
        middle, length = (t[:, 1:] + t[:, :-1]) / 2, np.diff(t, axis=1)
        ray, piece = np.nonzero(length > 1e-12)
        at = np.floor((o[ray] + middle[ray, piece, None] * d[ray] - lower) / size).astype(np.int64)
        inside = ((at >= 0) & (at < shape)).all(1)
        ray, flat = ray[inside], np.ravel_multi_index(tuple(at[inside].T), tuple(shape))
        if stop is not None:
            wall = stop.reshape(-1)[flat].astype(np.int64)
            total = np.cumsum(wall) - wall  # walls met before, over all rays; less those before this ray began
            first = np.searchsorted(ray, np.arange(len(d) + 1))[:-1]
            base = np.append(total, total[-1] if len(total) else 0)[np.minimum(first, len(total))]
            flat = flat[total - base[ray] == 0]
        yield flat


@pytest.mark.parametrize('number', [1, KEYFRAMES])
def test_masks_equal_an_independent_ray_cast(nusc, number):
    """Cell by cell, none excepted. Poses come from the written tables."""
    rig = load_rig()
    sample = nusc.sample[number]
    data = labels_of(nusc, sample)
    assert data['semantics'].shape == occ3d.GRID_SIZE and all(v.dtype == np.uint8 for v in data.values())
    lidar, points, _ = lidar_of(nusc, sample)
    mount = pose_of(nusc.get('calibrated_sensor', lidar['calibrated_sensor_token']))
    targets = points[:, :3].astype(float) @ mount[:3, :3].T + mount[:3, 3]
    mask = np.zeros(data['semantics'].size, bool)
    for flat in cells_along(np.broadcast_to(mount[:3, 3], targets.shape), targets):
        mask[flat] = True
    assert mask.sum() > 50_000
    assert (mask.reshape(occ3d.GRID_SIZE) != data['mask_lidar'].astype(bool)).sum() == 0

    ego = pose_of(nusc.get('ego_pose', lidar['ego_pose_token']))
    mask = np.zeros(data['semantics'].size, bool)
    for camera in rig.cameras:
        shot = nusc.get('sample_data', sample['data'][camera.name])
        motion = np.linalg.inv(ego) @ pose_of(nusc.get('ego_pose', shot['ego_pose_token']))
        pose = motion @ pose_of(nusc.get('calibrated_sensor', shot['calibrated_sensor_token']))
        rays = camera_rays(camera, rig.image_size, pose)
        origin = np.broadcast_to(pose[:3, 3], rays.shape)
        for flat in cells_along(origin, origin + 120 * rays, data['semantics'] != occ3d.FREE):
            mask[flat] = True
    assert mask.sum() > 50_000
    assert (mask.reshape(occ3d.GRID_SIZE) != data['mask_camera'].astype(bool)).sum() == 0


def test_every_class_is_near(nusc):
    counts = sum(np.bincount(labels_of(nusc, s)['semantics'].ravel(), minlength=18) for s in nusc.sample)
    assert (counts > 0).all(), dict(zip(occ3d.CLASS_NAMES, counts))


def test_things_of_one_class_differ_in_intensity(worlds):
    """A factor of each thing: classes overlap, and averaging a thing's points does not tell its class."""
    world = worlds[0]
    factors = world.reflectance[: len(world.owner)]
    cars = np.flatnonzero(world.label == occ3d.CLASS_NAMES.index('car'))
    own = [np.unique(factors[world.owner == car]) for car in cars]
    assert len(cars) > 3 and all(len(values) == 1 for values in own)
    assert np.log(np.concatenate(own)).std() > 0.2


def test_images_are_textured(city, nusc):
    import cv2

    for data in nusc.sample_data:
        if data['fileformat'] != 'jpg':
            continue
        image = cv2.imread(str(city / data['filename']))
        assert image.shape == (SIZE[1], SIZE[0], 3)
        assert image.std() > 12 and 20 < image.mean() < 225


# ---- determinism, resuming, options ---------------------------------------------------------------------------------


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(Path(root).rglob('*'))
        if path.is_file()
    }


TINY = dict(version='v1.0-mini', scenes=2, keyframes=2, image_size=(160, 90), camera_sweeps=1, progress=False)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp('tiny')
    generate(root, workers=1, **TINY)
    return root


def test_same_bytes_with_two_workers(tiny, tmp_path):
    generate(tmp_path, workers=2, **TINY)
    assert digest(tmp_path) == digest(tiny)


def test_goes_on_after_a_kill(tiny, tmp_path, monkeypatch):
    module = __import__('occforge.datasets.synthetic_city.generate', fromlist=['x'])
    real, calls = frames.write_frame, []

    def dies(job, frame):
        calls.append(frame)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(job, frame)

    with monkeypatch.context() as patch:
        patch.setattr(module, 'write_frame', dies)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path, workers=1, **TINY)
    assert not (tmp_path / 'v1.0-mini' / 'scene.json').exists()
    with pytest.raises(DataError, match='another city, field seed differs: found 0, asked for 5'):
        generate(tmp_path, seed=5, **TINY)
    swept = []
    monkeypatch.setattr(module, 'write_sweeps', lambda job: (swept.append(job), frames.write_sweeps(job)))
    generate(tmp_path, workers=1, **TINY)
    assert digest(tmp_path) == digest(tiny)
    before = digest(tmp_path)
    generate(tmp_path, workers=1, **TINY)  # complete: nothing to do
    assert digest(tmp_path) == before and len(swept) == 2


def alive(pid):
    """Whether a process still runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != 'linux', reason='/proc, and workers that end with their parent')
def test_goes_on_after_sigkill(tiny, tmp_path):
    """Killed among the sweeps, and again among the frames: the workers end, too, and the next call finishes the job."""
    code = f'from occforge.datasets.synthetic_city import generate; generate({str(tmp_path)!r}, workers=2, **{TINY!r})'

    for enough in (20, 60):  # files on disk, of 93 in the end; some half-written
        process = subprocess.Popen([sys.executable, '-c', code])
        while process.poll() is None and sum(path.is_file() for path in tmp_path.rglob('*')) < enough:
            time.sleep(0.005)
        workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and len(workers) == 2
        deadline = time.monotonic() + 60
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(alive, workers))
        assert not json.loads((tmp_path / 'synthetic_city.json').read_text())['complete']
    subprocess.run([sys.executable, '-c', code], check=True)
    assert digest(tmp_path) == digest(tiny)


def test_camera_sweeps_and_mini_names(tiny):
    from nuscenes import NuScenes

    nusc = NuScenes('v1.0-mini', str(tiny), verbose=False)
    assert [s['name'] for s in nusc.scene] == ['scene-0061', 'scene-0103']
    data = nusc.get('sample_data', nusc.sample[0]['data']['CAM_BACK'])
    between = nusc.get('sample_data', data['next'])
    assert not between['is_key_frame'] and between['filename'].startswith('sweeps/CAM_BACK/')
    assert between['timestamp'] - data['timestamp'] == 250_000
    assert nusc.get('sample_data', between['next'])['is_key_frame']


def test_other_rig_and_finer_labels(tmp_path):
    from nuscenes import NuScenes

    generate(
        tmp_path, scenes=1, keyframes=1, image_size=(160, 90), rig='four_cameras_80_beams', label_refine=2,
        workers=1, progress=False,
    )  # fmt: skip
    nusc = NuScenes('v1.0-trainval', str(tmp_path), verbose=False)
    sample = nusc.sample[0]
    assert set(sample['data']) == {'LIDAR_TOP', 'CAM_FRONT', 'CAM_LEFT', 'CAM_RIGHT', 'CAM_BACK'}
    _, points, _ = lidar_of(nusc, sample)
    assert points[:, 4].max() == 79
    folder = tmp_path / 'gts' / 'scene-0001' / sample['token']
    fine, coarse = np.load(folder / 'labels_2x.npz')['semantics'], np.load(folder / 'labels.npz')['semantics']
    assert fine.shape == (400, 400, 32)
    filled = (fine != occ3d.FREE).reshape(200, 2, 200, 2, 16, 2).any((1, 3, 5))
    both, either = (filled & (coarse != 17)).sum(), (filled | (coarse != 17)).sum()
    assert both > 0.85 * either


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(version='v1.0-medium'), ConfigError, r"version must be one of .* found 'v1.0-medium'"),
        (dict(scenes=0), ConfigError, 'scenes must be an integer of 1 or more, found 0'),
        (dict(image_size=(3200, 1800)), ConfigError, 'image_size must lie between'),
        (dict(image_size=(400, 400)), ConfigError, 'has not the shape'),
        (dict(split='3:4'), ConfigError, 'add up to 2 scenes'),
        (dict(version='v1.0-mini', scenes=12), ConfigError, r'v1.0-mini has 8 scenes in mini_train, 10 were asked for'),
        (dict(rig='no_such_rig'), DataError, 'no such rig file'),
        (dict(label_refine=3), ConfigError, 'label_refine must be 1, 2 or 4'),
    ],
)
def test_what_is_refused(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        generate(tmp_path / 'new', **{**dict(scenes=2, progress=False), **change})
    assert not (tmp_path / 'new').exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'samples').mkdir()
    with pytest.raises(DataError, match='holds samples/ of a dataset that is not a synthetic city'):
        generate(tmp_path, scenes=1, progress=False)


def test_bad_rig_files(tmp_path):
    good = json.loads((Path(generate_function.__code__.co_filename).parent / 'rigs' / 'nuscenes.json').read_text())
    path = tmp_path / 'rig.json'
    path.write_text('{')
    with pytest.raises(DataError, match='not a JSON file'):
        load_rig(path)
    for field, value, message in (
        ('rotation', [1, 1, 0, 0], 'cameras.CAM_FRONT.rotation: expected a unit quaternion'),
        ('intrinsic', [[1, 2], [3, 4]], 'cameras.CAM_FRONT.intrinsic: expected 3x3 finite numbers'),
        ('translation', None, 'cameras.CAM_FRONT.translation'),
    ):
        bad = json.loads(json.dumps(good))
        bad['cameras']['CAM_FRONT'][field] = value
        path.write_text(json.dumps(bad))
        with pytest.raises(DataError, match=message):
            load_rig(path)
    del good['lidar']['columns']
    path.write_text(json.dumps(good))
    with pytest.raises(DataError, match=r'field lidar\.columns is missing'):
        load_rig(path)
