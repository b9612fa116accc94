"""The transforms on data of which the right answer is known."""

import numpy as np
import pytest
import torch
from fake_nuscenes import LIDAR_TO_EGO, camera_to_ego, ego_pose, write_world
from occforge.datasets import occ3d
from occforge.datasets.nuscenes_occupancy import CAMERA_NAMES
from occforge.datasets.transforms import (
    BEVAug,
    EgoPointsRangeFilter,
    FuseAdjacentPoints,
    LoadLidarPoints,
    LoadLidarSegLabels,
    LoadOccGTFromFile,
    PackOccInputs,
    PointsLidarToEgo,
    PointToMultiViewDepth,
    PrepareImageInputs,
    ThinPoints,
)
from occforge.datasets.transforms.depth import depth_map
from occforge.datasets.transforms.images import (
    ImageAugmentation,
    augment_image,
    augmentation_matrices,
    draw_augmentation,
    photometric_table,
)
from occforge.errors import ConfigError, DataError
from PIL import Image

DATA_CONFIG = dict(
    input_size=(64, 160), src_size=(90, 160), resize=(-0.06, 0.11), rot=(-5.4, 5.4), flip=True, crop_h=(0.0, 0.0)
)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp('world')
    return root, write_world(root, scenes=1, frames=3)


def sample(world, frame=2, adjacent=2, seed=0):
    """Results as the dataset hands them to the first transform."""
    import copy

    root, infos = world
    infos = copy.deepcopy(infos)
    for info in infos:
        info['lidar_path'] = str(root / 'samples/LIDAR_TOP' / info['lidar_points']['lidar_path'])
        info['occ_path'] = str(root / info['occ_path'])
        info['pts_semantic_mask_path'] = str(root / info['pts_semantic_mask_path'])
        for name, image in info['images'].items():
            image['img_path'] = str(root / 'samples' / name / image['img_path'])
    results = infos[frame]
    others = [infos[frame - k] if frame >= k else dict(results, is_repeat=True) for k in range(1, adjacent + 1)]
    results.update(
        adjacent=others, camera_names=CAMERA_NAMES, rng=np.random.default_rng(seed), sample_seed=seed, test_mode=False
    )
    return results


# ------------------------------------------------------------------------------------------------------- images
@pytest.mark.parametrize('seed', range(4))
def test_pixels_land_where_the_matrices_say(seed):
    rng = np.random.default_rng(seed)
    canvas = np.zeros((225, 400, 3), np.uint8)
    u, v = int(rng.integers(150, 250)), int(rng.integers(130, 200))
    canvas[v - 2 : v + 3, u - 2 : u + 3] = 255
    config = dict(DATA_CONFIG, input_size=(140, 300), resize=(-0.05, 0.2), rot=(-15, 15))
    augmentation = draw_augmentation((400, 225), config, rng)
    image = np.asarray(augment_image(Image.fromarray(canvas), augmentation)).astype(float).mean(-1)
    rot, tran = augmentation_matrices(augmentation)
    expected = rot @ (u, v) + tran
    rows, columns = np.indices(image.shape)
    found = np.array([(columns * image).sum(), (rows * image).sum()]) / image.sum()
    assert image.shape == (140, 300)
    assert np.abs(found - expected).max() < 1.5, (found, expected)


def test_official_sizes_of_the_test_view():
    """Worked out by hand: 1600 x 900 at 0.88 is 1408 x 792, whose lowest 512 rows stay."""
    augmentation = draw_augmentation((1600, 900), dict(input_size=(512, 1408)))
    assert augmentation.resize_dims == (1408, 792) and augmentation.crop == (0, 280, 1408, 792)
    rot, tran = augmentation_matrices(augmentation)
    assert np.allclose(rot, 0.88 * np.eye(2)) and np.allclose(tran, (0, -280))


def test_matrices_by_hand():
    """Scale 0.5, crop at (10, 20), mirror in a width of 100: u' = 100 - (0.5 u - 10), v' = 0.5 v - 20."""
    rot, tran = augmentation_matrices(ImageAugmentation(0.5, (120, 80), (10, 20, 110, 70), True, 0.0))
    assert np.allclose(rot @ (40, 60) + tran, (100 - (20 - 10), 30 - 20))


def test_images_of_several_frames(world):
    results = PrepareImageInputs(DATA_CONFIG, is_train=True, num_adjacent=1)(sample(world))
    assert results['imgs'].shape == (2, 6, 64, 160, 3) and results['imgs'].dtype == np.uint8
    assert results['sensor2ego'].shape == (2, 6, 4, 4) and results['sensor2ego'].dtype == np.float64
    # a camera's frames share the draw, cameras do not
    assert np.array_equal(results['post_rots'][0], results['post_rots'][1])
    assert len({tuple(m.ravel()) for m in results['post_rots'][0]}) == 6
    for t, n in ((0, 2), (1, 5)):
        assert np.allclose(results['ego2global_cameras'][t, n], ego_pose(0, 2 - t, 0.02 * n))
        assert np.allclose(results['sensor2ego'][t, n], camera_to_ego(CAMERA_NAMES[n]))
    assert not np.array_equal(results['imgs'][0], results['imgs'][1])


def test_photometric_augmentation(world):
    table = np.array(photometric_table(dict(contrast=(0.5, 0.5), brightness=(2, 2)), np.random.default_rng(0)))
    gray = table.reshape(3, 256)
    assert (gray == gray[0]).all() and gray[0, [0, 128, 200]].tolist() == [128, 255, 255]  # 2 (128 + (v - 128) / 2)
    plain = photometric_table({}, np.random.default_rng(0))
    assert plain == list(range(256)) * 3
    config = dict(DATA_CONFIG, photometric=dict(channel_gain=(0.5, 1.5)))
    results = PrepareImageInputs(config, is_train=True)(sample(world))
    before = PrepareImageInputs(dict(config, photometric=None), is_train=True)(sample(world))
    # geometry's first draw is the same; then each camera has gains of its own
    ratio = results['imgs'][0, 0].mean((0, 1)) / before['imgs'][0, 0].mean((0, 1))
    assert len({round(value, 2) for value in ratio}) == 3
    test = PrepareImageInputs(config)(sample(world))['imgs']
    assert np.array_equal(test, PrepareImageInputs(DATA_CONFIG)(sample(world))['imgs'])


def test_the_test_view_draws_nothing(world):
    first, second = (PrepareImageInputs(DATA_CONFIG)(sample(world, seed=seed))['imgs'] for seed in (1, 2))
    assert np.array_equal(first, second)
    image = Image.open(sample(world)['images']['CAM_FRONT']['img_path'])
    assert np.array_equal(first[0, 1], np.asarray(image)[-64:])


def test_a_repeated_frame_equals_the_key_frame(world):
    results = PrepareImageInputs(DATA_CONFIG, is_train=True, num_adjacent=1)(sample(world, frame=0))
    assert np.array_equal(results['imgs'][0], results['imgs'][1])


def test_image_errors_name_file_and_field(world, tmp_path):
    def errors(change, **config):
        results = sample(world)
        change(results['images'])
        with pytest.raises((DataError, ConfigError)) as error:
            PrepareImageInputs(dict(DATA_CONFIG, **config))(results)
        return str(error.value)

    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(b'no image at all')
    assert str(bad) in errors(lambda images: images['CAM_BACK'].update(img_path=str(bad)))
    assert 'src_size' in errors(lambda images: None, src_size=(900, 1600))
    assert 'images.CAM_BACK' in errors(lambda images: images.pop('CAM_BACK'))
    with pytest.raises(ConfigError, match='resise'):
        PrepareImageInputs(dict(input_size=(1, 1), resise=(0, 1)))
    with pytest.raises(ConfigError, match='num_adjacent=3'):
        PrepareImageInputs(DATA_CONFIG, num_adjacent=3)(sample(world))


# ------------------------------------------------------------------------------------------------------- points
def test_fused_clouds_agree_on_a_resting_world(tmp_path):
    infos = write_world(tmp_path, scenes=1, frames=3, points=1)
    world_points = np.array([[605.0, 1610.0, 2.0], [590.0, 1590.0, 1.0]])
    for frame, info in enumerate(infos):
        to_lidar = np.linalg.inv(ego_pose(0, frame) @ LIDAR_TO_EGO)
        seen = world_points @ to_lidar[:3, :3].T + to_lidar[:3, 3]
        cloud = np.concatenate([seen, np.full((2, 2), frame)], axis=1).astype(np.float32)
        cloud.tofile(tmp_path / 'samples/LIDAR_TOP' / info['lidar_points']['lidar_path'])
    results = sample((tmp_path, infos))
    for step in (LoadLidarPoints(), FuseAdjacentPoints(num_adjacent=2), PointsLidarToEgo()):
        results = step(results)
    points = results['points'].reshape(3, 2, 5)
    assert np.allclose(points[..., :3], points[:1, :, :3], atol=1e-3)
    assert np.array_equal(points[:, 0, 3], (2, 1, 0))
    to_ego = np.linalg.inv(ego_pose(0, 2))
    assert np.allclose(points[0, :, :3], world_points @ to_ego[:3, :3].T + to_ego[:3, 3], atol=1e-3)
    assert len(results['key_points']) == 2 and np.allclose(results['key_points'][:, 3], 2)


def test_sweeps_between_key_frames(world):
    whole = FuseAdjacentPoints(2, with_time=True)(LoadLidarPoints()(sample(world, frame=2)))['points']
    results = LoadLidarPoints()(sample(world, frame=2))
    # the previous key frames once more, as the sweeps of the current one
    results['lidar_sweeps'] = [
        dict(
            lidar_points=dict(info['lidar_points'], lidar_path=info['lidar_path']),
            ego2global=info['ego2global'],
            timestamp=info['timestamp'],
        )
        for info in results['adjacent'][:2]
    ]
    points = FuseAdjacentPoints(0, sweeps=(0, 1, 7), with_time=True)(results)['points']
    assert np.array_equal(points, whole)
    with pytest.raises(ConfigError, match='sweeps'):
        FuseAdjacentPoints(0, sweeps=(-1,))


def test_missing_frames_are_left_out_unless_asked_for(world):
    counts = [
        len(FuseAdjacentPoints(2, repeat_missing=repeat)(LoadLidarPoints()(sample(world, frame=1)))['points'])
        for repeat in (False, True)
    ]
    assert counts == [800, 1200]
    with pytest.raises(ConfigError, match='num_adjacent=7'):
        FuseAdjacentPoints()(LoadLidarPoints()(sample(world)))


def test_mmdet3d_loader_serves_as_well(world):
    from mmdet3d.datasets.transforms import LoadPointsFromFile

    results = sample(world)
    results['lidar_points']['lidar_path'] = results['lidar_path']
    loaded = PointsLidarToEgo()(LoadPointsFromFile(coord_type='LIDAR', load_dim=5, use_dim=5)(results))['points']
    assert np.array_equal(loaded, PointsLidarToEgo()(LoadLidarPoints()(sample(world)))['points'])


def test_thinning(world):
    def thinned(seed=0, token='a', **options):
        results = dict(sample(world, seed=seed), token=token)
        results['points'] = np.tile(np.arange(32, dtype=np.float32)[:, None], (100, 5))
        return ThinPoints(**options)(results)['points'][:, 4]

    rings = thinned()
    assert (np.bincount(rings.astype(int), minlength=32)[17:] == 100).all()
    assert 0.1 < (rings <= 16).sum() / 1700 < 0.3
    assert np.array_equal(rings, thinned(seed=5)) and not np.array_equal(rings, thinned(token='b'))
    assert np.array_equal(thinned(3, is_train=True), thinned(3, 'b', is_train=True))
    assert not np.array_equal(thinned(3, is_train=True), thinned(4, is_train=True))
    assert len(thinned(keep_probability=1)) == 3200


def test_range_filter_keeps_its_bounds():
    step = EgoPointsRangeFilter()
    inside = np.array([[39.998, -39.998, 5.398, 0, 0], [-39.998, 0, -0.998, 0, 0]], np.float32)
    outside = np.array([[40, 0, 0, 0, 0], [0, -39.9995, 0, 0, 0], [0, 0, 5.4, 0, 0], [0, 0, -1, 0, 0]], np.float32)
    for _ in range(1000):
        points = step(dict(points=np.concatenate([inside, outside])))['points']
    assert np.array_equal(points, inside)
    with pytest.raises(ConfigError, match='point_cloud_range'):
        EgoPointsRangeFilter((0, 0, 0, 1, 1, 0))


def test_point_errors(tmp_path, world):
    def error(data, **options):
        path = tmp_path / 'cloud.bin'
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            LoadLidarPoints(**options)(dict(lidar_path=str(path)))
        assert str(path) in str(caught.value)
        return str(caught.value)

    nan = np.full((3, 5), np.nan, np.float32)
    assert '0 bytes' in error(b'')
    assert 'no multiple of 20' in error(bytes(23))
    assert '3 of 3 points' in error(nan.tobytes())
    assert '3 of 3 points' in error(nan.tobytes(), nonfinite='drop')
    nan[0] = 1
    assert '2 of 3 points' in error(nan.tobytes())
    assert len(LoadLidarPoints(nonfinite='drop')(dict(lidar_path=str(tmp_path / 'cloud.bin')))['points']) == 1


# -------------------------------------------------------------------------------------------------------- depth
def test_projected_points_hit_their_pixels(tmp_path):
    """A white spot is painted where a point of the LiDAR is seen; after all augmentation the map's pixel is on it."""
    infos = write_world(tmp_path, scenes=1, frames=1, points=1)
    config = dict(DATA_CONFIG, input_size=(180, 320), src_size=(225, 400), resize=(-0.05, 0.15), rot=(-10, 10))
    lidar2global = ego_pose(0, 0) @ LIDAR_TO_EGO
    cloud = []
    for n, name in enumerate(CAMERA_NAMES):
        cam2img = np.array([[300.0, 0, 200], [0, 300, 112], [0, 0, 1]])
        infos[0]['images'][name]['cam2img'] = cam2img.tolist()
        pixel, depth = (190 + 5 * n, 120 + 3 * n), 8.0 + n
        in_camera = np.append(np.linalg.inv(cam2img) @ (depth * np.array([*pixel, 1])), 1)
        in_lidar = np.linalg.inv(lidar2global) @ ego_pose(0, 0, 0.02 * n) @ camera_to_ego(name) @ in_camera
        cloud.append([*in_lidar[:3], 0, 0])
        canvas = np.zeros((225, 400, 3), np.uint8)
        canvas[pixel[1] - 2 : pixel[1] + 3, pixel[0] - 2 : pixel[0] + 3] = 255
        Image.fromarray(canvas).save(tmp_path / 'samples' / name / 'spot.png')
        infos[0]['images'][name]['img_path'] = 'spot.png'
    np.array(cloud, np.float32).tofile(tmp_path / 'samples/LIDAR_TOP' / infos[0]['lidar_points']['lidar_path'])
    for seed in range(3):
        results = sample((tmp_path, infos), frame=0, adjacent=0, seed=seed)
        for step in (
            LoadLidarPoints(),
            PrepareImageInputs(config, is_train=True),
            PointToMultiViewDepth(dict(depth=(1.0, 45.0, 0.5))),
        ):
            results = step(results)
        for n in range(6):
            depth, image = results['sparse_depth'][n], results['imgs'][0, n].astype(float).mean(-1)
            rows, columns = np.nonzero(np.abs(depth - (8 + n)) < 0.01)
            assert len(rows) == 1
            y, x = np.indices(image.shape)
            centre = np.array([(x * image).sum(), (y * image).sum()]) / image.sum()
            assert np.abs(centre - (columns[0], rows[0])).max() < 2


def test_small_maps_are_the_pooled_large_ones(world):
    def maps(downsample):
        results = sample(world)
        for step in (
            LoadLidarPoints(),
            LoadLidarSegLabels(),
            FuseAdjacentPoints(2),
            PrepareImageInputs(DATA_CONFIG, is_train=True),
            PointToMultiViewDepth(dict(depth=(1.0, 45.0, 0.5)), downsample, with_segs=True),
        ):
            results = step(results)
        return results['sparse_depth'], results['segs']

    full, classes = maps(1)
    small, small_classes = maps(16)
    assert small.shape == (6, 4, 10) and (full > 0).sum() > 100
    blocks = np.where(full > 0, full, np.inf).reshape(6, 4, 16, 10, 16).swapaxes(2, 3).reshape(6, 4, 10, 256)
    assert np.array_equal(np.where(np.isinf(blocks.min(-1)), 0, blocks.min(-1)), small)
    of_nearest = np.take_along_axis(
        classes.reshape(6, 4, 16, 10, 16).swapaxes(2, 3).reshape(6, 4, 10, 256), blocks.argmin(-1)[..., None], -1
    )[..., 0]
    assert np.array_equal(np.where(small > 0, of_nearest, 17), small_classes)
    assert ((classes == 17) == (full == 0)).all()


def test_nearest_point_wins_in_any_order():
    uvd = np.array([[3.4, 2.4, 9], [2.6, 1.6, 5], [3, 2, 30], [-0.6, 0, 5], [7.5, 0, 5], [0, 0, 0.5], [0, 0, 45]])
    uvd = uvd.astype(np.float32)
    for order in (slice(None), slice(None, None, -1)):
        out = depth_map(uvd[order], (4, 8), (1, 45))
        assert out[2, 3] == 5 and (out > 0).sum() == 1
    assert depth_map(np.zeros((0, 3), np.float32), (4, 8), (1, 45)).sum() == 0


def test_depth_needs_what_comes_before(world):
    depth = PointToMultiViewDepth(dict(depth=(1, 45, 0.5)), downsample=48)
    with pytest.raises(ConfigError, match='PrepareImageInputs'):
        depth(LoadLidarPoints()(sample(world)))
    with pytest.raises(ConfigError, match='no multiple of 48'):
        depth(PrepareImageInputs(DATA_CONFIG)(LoadLidarPoints()(sample(world))))
    with pytest.raises(ConfigError, match='LoadLidarSegLabels'):
        results = PrepareImageInputs(DATA_CONFIG)(LoadLidarPoints()(sample(world)))
        PointToMultiViewDepth(dict(depth=(1, 45, 0.5)), with_segs=True)(results)


# -------------------------------------------------------------------------------------------- labels and flips
FLIPS = dict(rot_lim=(0.0, 0.0), scale_lim=(1.0, 1.0), flip_dx_ratio=0.5, flip_dy_ratio=0.5)


def test_labels_flip_in_either_order_and_with_the_points(world):
    kinds = set()
    low = np.array(occ3d.POINT_CLOUD_RANGE[:3])
    for seed in range(12):
        cell = np.random.default_rng(seed).integers(0, occ3d.GRID_SIZE, (50, 3))
        points = ((cell + 0.5) * 0.4 + low).astype(np.float32)
        before = sample(world, seed=seed)
        before.update(points=np.pad(points, ((0, 0), (0, 2))), points_frame='ego')
        after = dict(before, rng=np.random.default_rng(seed))
        before = BEVAug(FLIPS, is_train=True)(LoadOccGTFromFile()(before))
        after = LoadOccGTFromFile()(BEVAug(FLIPS, is_train=True)(after))
        plain = occ3d.read_labels(before['occ_path'])
        moved = np.floor((before['points'][:, :3] - low) / 0.4).astype(int)
        for name in ('semantics', 'mask_lidar', 'mask_camera'):
            key = 'voxel_semantics' if name == 'semantics' else name
            assert np.array_equal(before[key], after[key])
            assert np.array_equal(before[key][tuple(moved.T)], getattr(plain, name)[tuple(cell.T)])
        kinds.add((before['flip_dx'], before['flip_dy']))
        assert np.allclose(np.diag(before['bda']), [1 - 2 * before['flip_dx'], 1 - 2 * before['flip_dy'], 1])
    assert len(kinds) == 4


@pytest.mark.parametrize('labels_first', [True, False])
def test_labels_turn_and_flip_with_the_points(world, labels_first):
    config = dict(FLIPS, rot_lim=(-22.5, 22.5))
    low, interval = np.array(occ3d.POINT_CLOUD_RANGE[:3]), 0.4
    for seed in range(6):
        cell = np.random.default_rng(seed).integers(0, occ3d.GRID_SIZE, (4000, 3))
        points = ((cell + 0.5) * interval + low).astype(np.float32)
        results = sample(world, seed=seed)
        results.update(points=np.pad(points, ((0, 0), (0, 2))), points_frame='ego')
        steps = [LoadOccGTFromFile(), BEVAug(config, is_train=True)]
        for step in steps if labels_first else steps[::-1]:
            results = step(results)
        assert results['rotate_bda'] != 0
        plain = occ3d.read_labels(results['occ_path'])
        place = (results['points'][:, :3] - low) / interval
        moved = np.floor(place).astype(int)
        inside = ((moved >= 0) & (moved < occ3d.GRID_SIZE)).all(axis=1)
        for name in ('semantics', 'mask_lidar', 'mask_camera'):
            found = results['voxel_semantics' if name == 'semantics' else name][tuple(moved[inside].T)]
            expected = getattr(plain, name)[tuple(cell[inside].T)]
            # the centre of a turned cell lies in the cell that took its label, but for those near a cell's side
            central = (np.abs(place[inside][:, :2] % 1 - 0.5) < 0.2).all(axis=1)
            assert central.any() and np.array_equal(found[central], expected[central])
        corner = results['voxel_semantics'][0, 0]
        assert (corner == 255).all() and not results['mask_camera'][0, 0].any()  # came from outside


@pytest.mark.parametrize('labels_first', [True, False])
def test_labels_cannot_be_scaled(world, labels_first):
    steps = [LoadOccGTFromFile(), BEVAug(dict(FLIPS, scale_lim=(0.95, 1.05)), is_train=True)]
    results = sample(world)
    with pytest.raises(ConfigError, match='scale_lim'):
        for step in steps if labels_first else steps[::-1]:
            results = step(results)
    results = sample(world)
    for step in (LoadOccGTFromFile(), BEVAug(dict(FLIPS, scale_lim=(0.95, 1.05)))):  # at test: the identity
        results = step(results)
    assert np.array_equal(results['bda'], np.eye(3))


def test_bev_augmentation_wants_ego_points(world):
    with pytest.raises(ConfigError, match='PointsLidarToEgo'):
        BEVAug(FLIPS, is_train=True)(LoadLidarPoints()(sample(world)))
    with pytest.raises(ConfigError, match='flip_dz'):
        BEVAug(dict(flip_dz=1))


# ------------------------------------------------------------------------------------------------------ packing
def test_packed_sample(world):
    results = sample(world)
    for step in (
        PrepareImageInputs(DATA_CONFIG, is_train=True, num_adjacent=1),
        LoadOccGTFromFile(),
        LoadLidarPoints(),
        LoadLidarSegLabels(),
        FuseAdjacentPoints(1),
        ThinPoints(is_train=True),
        PointsLidarToEgo(),
        EgoPointsRangeFilter(),
        BEVAug(FLIPS, is_train=True),
        PointToMultiViewDepth(dict(depth=(1.0, 45.0, 0.5)), 16, with_segs=True),
        PackOccInputs(),
    ):
        results = step(results)
    inputs, data_sample = results['inputs'], results['data_samples']
    shapes = {key: tuple(value.shape) for key, value in inputs.items() if key != 'points'}
    assert shapes == dict(
        imgs=(2, 6, 64, 160, 3),
        sensor2ego=(2, 6, 4, 4),
        ego2global=(2, 6, 4, 4),
        intrins=(2, 6, 3, 3),
        post_rots=(2, 6, 3, 3),
        post_trans=(2, 6, 3),
        bda=(3, 3),
        sparse_depth=(6, 4, 10),
        segs=(6, 4, 10),
        sample_seed=(),
    )
    assert inputs['sensor2ego'].dtype == inputs['ego2global'].dtype == torch.float64
    assert inputs['points'].shape[1] == 5 and inputs['points'].dtype == torch.float32
    assert data_sample.gt_occ.semantics.dtype == torch.uint8 and data_sample.gt_occ.mask_camera.dtype == torch.bool
    assert data_sample.token == 'token02' and len(data_sample.img_path) == 6
    assert data_sample.cam_names == list(CAMERA_NAMES)


def test_lidar_only_and_camera_only_pack_what_they_have(world):
    lidar = PackOccInputs()(PointsLidarToEgo()(LoadLidarPoints()(sample(world))))
    assert set(lidar['inputs']) == {'points', 'bda', 'sample_seed'} and 'gt_occ' not in lidar['data_samples']
    camera = PackOccInputs()(PrepareImageInputs(DATA_CONFIG)(sample(world)))
    assert 'points' not in camera['inputs'] and 'imgs' in camera['inputs']


def test_lidarseg_errors(world, tmp_path):
    def error(labels):
        path = tmp_path / 'labels.bin'
        np.asarray(labels, np.uint8).tofile(path)
        results = dict(LoadLidarPoints()(sample(world)), pts_semantic_mask_path=str(path))
        with pytest.raises(DataError) as caught:
            LoadLidarSegLabels()(results)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert '399 labels, expected 400' in error(np.zeros(399))
    assert 'label 99, expected 0..31' in error(np.full(400, 99))
    assert '0 bytes' in error([])
