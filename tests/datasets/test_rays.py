"""Rays with 2D labels: where they start and go, which are drawn, and every source that they can come from."""

import json

import numpy as np
import pytest
from mmdet3d.registry import DATASETS, TRANSFORMS
from occforge.datasets.info_files import load_infos
from occforge.datasets.label_maps import class_table, find_map, look_up, read_classes, read_depths
from occforge.datasets.rays import class_balance_weights, draw_weighted, ray_rows, sampling_weights
from occforge.errors import ConfigError, DataError
from PIL import Image

DATA = dict(input_size=(96, 192), resize=(-0.05, 0.05), rot=(-5.0, 5.0), flip=True)


def make(root, aux_frames=(), label_fraction=1.0, before=(), is_train=False, **fields):
    fields = dict(max_rays=100000, key_ego='lidar', class_balance=None) | fields
    pipeline = [
        dict(type='PrepareImageInputs', data_config=DATA, is_train=is_train),
        *before,
        dict(type='GenerateRays', **fields),
    ]
    return DATASETS.build(
        dict(
            type='NuScenesOccDataset',
            ann_file='nuscenes_infos_train.pkl',
            data_root=str(root),
            pipeline=pipeline,
            aux_frames=aux_frames,
            label_fraction=label_fraction,
        )
    )


# ------------------------------------------------------------------------------------------------- geometry, draws


def test_a_ray_times_its_depth_is_the_surface():
    rng = np.random.default_rng(0)
    cam2key = np.eye(4)
    cam2key[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cam2key[:3, 3] = rng.normal(size=3)
    intrinsics = np.array([[500.0, 0, 300], [0, 520, 200], [0, 0, 1]])
    points = rng.uniform([-5, -3, 4], [5, 3, 30], (20, 3))  # camera frame
    image = points @ intrinsics.T
    uv = image[:, :2] / image[:, 2:]
    rows = ray_rows(uv, points[:, 2], np.arange(20) % 17, cam2key, intrinsics)
    np.testing.assert_allclose(
        rows[:, 4:7] + rows[:, 2:3] * rows[:, 7:10], points @ cam2key[:3, :3].T + cam2key[:3, 3], atol=1e-4
    )
    np.testing.assert_allclose(np.linalg.norm(rows[:, 10:13], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows[:, 0], np.floor(uv[:, 0]))  # u is the column, v the row


def test_class_balance_knows_absent_classes():
    weights = class_balance_weights([100, 0, 1])
    np.testing.assert_allclose(weights, [1, 0, np.exp(0.005 * 99)])
    assert np.isfinite(class_balance_weights([0, 0])).all()
    assert np.isfinite(class_balance_weights([10**12, 1])).all()


def test_moving_things_of_other_frames_are_left_out_bicycles_too():
    label = np.array([2, 6, 4, 11, 255])
    weights = sampling_weights(label, np.array([True] * 5))
    np.testing.assert_allclose(weights, [0, 0, 0, 0.3, 0.3])
    np.testing.assert_allclose(sampling_weights(label, np.array([False] * 5)), 1)


def test_draws_follow_the_weights_without_replacement():
    rng = np.random.default_rng(0)
    weights = np.array([0, 1, 1, 8] * 50, dtype=float)
    counts = np.zeros(200)
    for _ in range(200):
        chosen = draw_weighted(weights, 20, rng)
        assert len(set(chosen.tolist())) == 20
        counts[chosen] += 1
    assert counts[::4].sum() == 0
    assert 5 < counts[3::4].sum() / counts[1::4].sum() < 9
    # fewer candidates than asked for: all of them (torch.multinomial fails there)
    np.testing.assert_array_equal(draw_weighted(np.array([0, 2.0, 1.0]), 5, rng), [1, 2])
    assert len(draw_weighted(np.zeros(4), 3, rng)) == 0
    assert len(draw_weighted(np.ones((1 << 24) + 5), 3, rng)) == 3  # more than torch.multinomial takes
    with pytest.raises(ValueError, match='finite'):
        draw_weighted([np.nan], 1, rng)


# --------------------------------------------------------------------------------------------------- on the city


def _surfaces(rays):
    return rays[:, 4:7] + rays[:, 2:3] * rays[:, 7:10]


def test_surfaces_are_the_lidars_points_in_the_key_frame(tiny_city):
    dataset = make(tiny_city)
    item = dataset[1]
    rays = item['rays']
    assert rays.shape[1] == 13 and len(rays) > 500 and rays.dtype == np.float32
    info = dataset.get_data_info(1)
    points = np.fromfile(info['lidar_path'], dtype=np.float32).reshape(-1, 5)[:, :3]
    lidar2ego = np.array(info['lidar_points']['lidar2ego'])
    ego = points @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    from scipy.spatial import cKDTree

    distance, index = cKDTree(ego).query(_surfaces(rays))
    assert distance.max() < 2e-3  # metres; the cameras' own poses have been accounted for
    raw = np.fromfile(info['pts_semantic_mask_path'], dtype=np.uint8)
    from occforge.datasets.occ3d import LIDARSEG_TO_OCC

    # depth and class of a point stay together, whatever else falls on its pixel
    assert (LIDARSEG_TO_OCC[raw[index]] == rays[:, 3]).mean() > 0.999


def test_rays_know_nothing_of_the_images_augmentation(tiny_city):
    plain, augmented = make(tiny_city)[0]['rays'], make(tiny_city, is_train=True)[0]['rays']
    np.testing.assert_array_equal(plain, augmented)


def test_of_points_on_a_pixel_the_nearest_stays(tiny_city):
    coarse, all_points = make(tiny_city, pixel_size=16)[0]['rays'], make(tiny_city, pixel_size=0)[0]['rays']
    assert len(coarse) < len(all_points)
    # cameras are told apart by their centres; in each square of a camera one ray, and it is the nearest
    for origin in np.unique(coarse[:, 4:7], axis=0):
        ours, theirs = (rays[(rays[:, 4:7] == origin).all(1)] for rays in (coarse, all_points))
        cells = [tuple(cell) for cell in (ours[:, :2] // 16).astype(int)]
        assert len(set(cells)) == len(cells)
        nearest = {}
        for cell, depth in zip((theirs[:, :2] // 16).astype(int), theirs[:, 2]):
            nearest[tuple(cell)] = min(depth, nearest.get(tuple(cell), np.inf))
        np.testing.assert_allclose(ours[:, 2], [nearest[cell] for cell in cells])


def test_auxiliary_frames_are_of_the_scene_and_stand_in_one_frame(tiny_city):
    dataset = make(tiny_city, aux_frames=[-1, 1], weight_adj=1.0, weight_dyn=1.0)
    assert [len(dataset.get_data_info(i)['aux_infos']) for i in range(3)] == [1, 2, 1]  # one scene of three frames
    alone, together = make(tiny_city)[1]['rays'], dataset[1]['rays']
    assert len(together) > 2.5 * len(alone)
    assert len(np.unique(together[:, 4:7], axis=0)) == 3 * len(np.unique(alone[:, 4:7], axis=0))
    # the road of the other frames is at the road's height
    road = together[:, 3] == 11
    heights = _surfaces(together)[road, 2]
    assert np.abs(heights - np.median(heights)).max() < 1.5
    static = make(tiny_city, aux_frames=[-1, 1])[1]['rays']
    moving = np.isin(static[:, 3], (2, 3, 4, 5, 6, 7, 9, 10))
    keys = {tuple(row) for row in np.unique(alone[:, 4:7], axis=0)}
    assert all(tuple(row) in keys for row in static[moving, 4:7])


def test_draws_depend_on_epoch_and_sample_alone(tiny_city):
    dataset = make(tiny_city, max_rays=300)
    first = dataset[0]['rays']
    assert len(first) == 300
    np.testing.assert_array_equal(first, dataset[0]['rays'])
    dataset.set_epoch(1)
    assert not np.array_equal(first, dataset[0]['rays'])
    dataset.set_epoch(0)
    dataset.set_seed(5)  # another run, or another rank that has a seed of its own
    assert not np.array_equal(first, dataset[0]['rays'])


def test_unlabelled_frames_give_depth_alone(tiny_city):
    labels = dict(type='LoadOccGTFromFile')
    item = make(tiny_city, label_fraction=0.0, before=[labels])[0]
    assert item['with_gt'] is False and (item['rays'][:, 3] == 255).all() and (item['rays'][:, 2] > 0).all()
    assert (item['voxel_semantics'] == 255).all() and not item['mask_lidar'].any()
    item = make(tiny_city, label_fraction=0.0, unlabelled_semantics=True)[0]
    assert (item['rays'][:, 3] < 17).all()
    flags = [make(tiny_city, label_fraction=share).is_labelled for share in (0.34, 0.67)]
    assert [sum(flag(i) for i in range(3)) for flag in flags] == [1, 2]


def test_the_key_ego_may_be_a_cameras(tiny_city):
    dataset = make(tiny_city, key_ego='first_camera')
    rays, info = dataset[0]['rays'], dataset.get_data_info(0)
    first = info['images'][dataset.camera_names[0]]
    assert np.isclose(rays[:, 4:7], np.array(first['cam2ego'])[:3, 3], atol=1e-4).all(1).any()
    with pytest.raises(ConfigError, match='CAM_ROOF'):
        make(tiny_city, key_ego='CAM_ROOF')[0]


def test_label_files_of_the_tool_give_what_the_points_give(tiny_city, tmp_path):
    import create_ray_labels

    info_file = tiny_city / 'nuscenes_infos_train.pkl'
    out = ['--out-dir', str(tmp_path), '--workers', '1']
    create_ray_labels.main([str(info_file), *out])
    name = load_infos(str(info_file))[1][0]['images']['CAM_FRONT']['img_path']
    depth = np.fromfile(tmp_path / 'depth_gt' / f'{name}.bin', dtype=np.float32).reshape(-1, 3)
    assert (depth[:, 2] > 0).all() and (depth[:, 0] < 400).all() and (depth[:, 1] < 225).all()
    files = dict(depth_dir=str(tmp_path / 'depth_gt'), semantic_dir=str(tmp_path / 'seg_gt_lidarseg'))
    read = make(tiny_city, depth='files', semantics='files', **files)[0]['rays']
    direct = make(tiny_city)[0]['rays']
    assert len(read) == len(direct)
    np.testing.assert_allclose(read[:, 2:], direct[:, 2:], atol=2e-3)
    # what is there is kept, and a file of another number of points is refused
    create_ray_labels.main([str(info_file), *out])
    seg = tmp_path / 'seg_gt_lidarseg' / f'{name}.bin'
    seg.write_bytes(seg.read_bytes()[12:])
    with pytest.raises(DataError, match='expected the'):
        make(tiny_city, depth='files', semantics='files', **files)[0]
    seg.unlink()
    with pytest.raises(DataError, match='create_ray_labels'):
        make(tiny_city, depth='files', semantics='files', **files)[0]


# ----------------------------------------------------------------------------------------------------- label maps


@pytest.fixture
def maps(tiny_city, tmp_path):
    """Folders of class maps (raw 7 left, 9 right, 3 at the top) and depth maps (10 m, top unknown) of all images."""
    for info in load_infos(str(tiny_city / 'nuscenes_infos_train.pkl'))[1]:
        for camera, image in info['images'].items():
            stem = image['img_path'].removesuffix('.jpg')
            raw = np.full((225, 400), 7, dtype=np.uint8)
            raw[:, 200:], raw[:20] = 9, 3
            (tmp_path / 'seg' / camera).mkdir(parents=True, exist_ok=True)
            (tmp_path / 'depth' / camera).mkdir(parents=True, exist_ok=True)
            Image.fromarray(raw).save(tmp_path / 'seg' / camera / f'{stem}.png')
            depth = np.full((225, 400), 10.0, dtype=np.float32)
            depth[:20] = np.inf
            np.savez(tmp_path / 'depth' / camera / f'{stem}.npz', depth=depth)
    return tmp_path


CLASSES = {'7': 'car', 9: 15}


def test_maps_of_a_segmentation_network_label_the_lidars_points(tiny_city, maps):
    rays = make(tiny_city, semantics='maps', semantic_dir=str(maps / 'seg'), class_map=CLASSES)[0]['rays']
    top, left = rays[:, 1] < 20, rays[:, 0] < 200
    np.testing.assert_array_equal(rays[:, 3], np.where(top, 255, np.where(left, 4, 15)))
    assert (rays[:, 2] > 0).all()


def test_maps_alone_give_rays_with_depth_or_class(tiny_city, maps):
    sources = dict(semantics='maps', semantic_dir=str(maps / 'seg'), class_map=CLASSES, pixels_per_image=500)
    rays = make(tiny_city, depth=None, **sources)[0]['rays']
    assert (rays[:, 2] == 0).all() and set(rays[:, 3]) == {4, 15} and len(rays) > 2000
    rays = make(tiny_city, depth='maps', depth_dir=str(maps / 'depth'), **sources)[0]['rays']
    assert (rays[:, 2] == 10).all() and (rays[:, 1] >= 20).all()
    rays = make(tiny_city, depth='maps', semantics=None, depth_dir=str(maps / 'depth'))[0]['rays']
    assert (rays[:, 3] == 255).all() and (rays[:, 2] == 10).all()


def test_formats_of_maps(tmp_path):
    raw = np.array([[0, 5], [16, 200]], dtype=np.uint16)
    np.save(tmp_path / 'a.jpg.npy', raw)
    path = find_map(tmp_path, 'CAM', 'x/y/a.jpg')
    np.testing.assert_array_equal(read_classes(path, (4, 4)), [[0, 5], [16, 255]])  # a half of the image's size
    np.testing.assert_array_equal(look_up(raw, np.array([[3.9, 0.1], [0.0, 2.0]]), (4, 4)), [5, 16])
    Image.fromarray((raw * 256).astype(np.uint16)).save(tmp_path / 'd.png')
    np.testing.assert_allclose(read_depths(tmp_path / 'd.png', (2, 2)), raw)
    table = tmp_path / 'classes.json'
    table.write_text(json.dumps({'200': 'vegetation'}))
    np.testing.assert_array_equal(read_classes(path, (2, 2), class_table(table)), [[255, 255], [255, 16]])
    np.savez(tmp_path / 'two.npz', a=raw, b=raw)
    for name, message in (('two.npz', 'one array'), ('d.png', 'fraction')):
        with pytest.raises(DataError, match=message):
            read_classes(tmp_path / name, (3, 3))
    with pytest.raises(DataError, match='integers'):
        np.save(tmp_path / 'f.npy', raw.astype(np.float32))
        read_classes(tmp_path / 'f.npy', (2, 2))
    with pytest.raises(DataError, match='no label map'):
        find_map(tmp_path, 'CAM', 'b.jpg')
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / 'rgb.png')
    with pytest.raises(DataError, match='one channel'):
        read_classes(tmp_path / 'rgb.png', (2, 2))
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG')
    with pytest.raises(DataError, match='cannot be read'):
        read_depths(tmp_path / 'broken.png', (2, 2))
    for mapping in ({'x': 1}, {1: 'tree'}, {1: 17}, {}, {1: True}):
        with pytest.raises(ConfigError):
            class_table(mapping)


@pytest.mark.parametrize(
    'fields',
    [
        dict(depth='lidar', semantics='files'),
        dict(depth=None, semantics=None),
        dict(semantics='maps'),
        dict(class_balance='all'),
        dict(max_rays=0),
        dict(dynamic_classes=[17]),
        dict(min_depth=5, max_depth=2),
    ],
)
def test_fields_that_do_not_go_together(fields):
    with pytest.raises(ConfigError):
        TRANSFORMS.build(dict(type='GenerateRays', **fields))


# ------------------------------------------------------------------------------------- labelled and unlabelled


class _Frames:
    def __init__(self, flags):
        self.flags = flags

    def is_labelled(self, index):
        return self.flags[index]

    def __len__(self):
        return len(self.flags)


def test_batches_mix_labelled_and_unlabelled_frames_the_same_on_any_number_of_processes():
    from types import SimpleNamespace

    from occforge.datasets import LabelMixBatchSampler

    dataset = _Frames([index % 10 == 9 for index in range(40)])
    sampler = SimpleNamespace(dataset=dataset, seed=3, epoch=0)
    one = LabelMixBatchSampler(sampler, 4, labelled=2, rank_and_world=(0, 1))
    batches = list(one)
    assert len(batches) == len(one) == 18
    for batch in batches:
        assert [dataset.flags[index] for index in batch] == [True, True, False, False]
    assert len({index for batch in batches for index in batch[2:]}) == 36  # every unlabelled frame once
    halves = [list(LabelMixBatchSampler(sampler, 2, labelled=1, rank_and_world=(rank, 2))) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves)] == [sorted(batch) for batch in batches]
    sampler.epoch = 1
    assert list(one) != batches
    for flags, labelled in (([True] * 4, 1), ([False] * 4, 1), ([True, False] * 2, 2)):
        with pytest.raises(ConfigError):
            LabelMixBatchSampler(SimpleNamespace(dataset=_Frames(flags), seed=0, epoch=0), 2, labelled)


def test_labelled_frames_alone(tiny_city):
    from occforge.datasets import LabelledFrames

    part = LabelledFrames(make(tiny_city, label_fraction=0.34))
    assert len(part) == 1 and part[0]['with_gt'] is True
    with pytest.raises(ConfigError, match='none'):
        LabelledFrames(make(tiny_city, label_fraction=0.0))


def test_depths_of_the_older_frames_are_those_of_their_own_clouds(tiny_city):
    pipeline = [
        dict(type='PrepareImageInputs', data_config=dict(input_size=(96, 192)), num_adjacent=1),
        dict(type='LoadLidarPoints'),
        dict(type='PointToMultiViewDepth', grid_config=dict(depth=(1.0, 45.0, 1.0)), downsample=8, num_adjacent=1),
    ]
    fields = dict(
        type='NuScenesOccDataset',
        ann_file='nuscenes_infos_train.pkl',
        data_root=str(tiny_city),
        pipeline=pipeline,
    )
    dataset = DATASETS.build(dict(fields, num_adjacent=1))
    first, second = dataset[0], dataset[1]
    assert second['adjacent_depth'].shape == (1, 6, 12, 24)
    np.testing.assert_allclose(second['adjacent_depth'][0], first['sparse_depth'], atol=1e-5)
    np.testing.assert_allclose(first['adjacent_depth'][0], first['sparse_depth'])  # a scene's start repeats itself
    assert not np.array_equal(second['sparse_depth'], first['sparse_depth'])
    with pytest.raises(ConfigError, match='num_adjacent'):
        DATASETS.build(dict(fields, num_adjacent=1, pipeline=[dict(pipeline[0], num_adjacent=0), *pipeline[1:]]))[1]
