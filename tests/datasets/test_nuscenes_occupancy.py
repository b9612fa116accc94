"""The dataset: order, adjacency, seeds, and what bad samples do."""

import copy
import gc
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_nuscenes import write_infos, write_world
from mmengine.dataset import DefaultSampler, pseudo_collate
from occforge.datasets import NuScenesOccDataset, OccCBGSDataset, occ3d
from occforge.datasets.fine_labels import CellCounts
from occforge.datasets.nuscenes_occupancy import Visit
from occforge.datasets.transforms.formatting import in_own_classes
from occforge.engine.memory import host_memory
from occforge.engine.worker_watch import watch_workers
from occforge.errors import ConfigError, DataError
from torch.utils.data import DataLoader

PIPELINE = [
    dict(type='PrepareImageInputs', data_config=dict(input_size=(32, 80), flip=True, rot=(-5, 5)), is_train=True,
         num_adjacent=1),
    dict(type='LoadOccGTFromFile'),
    dict(type='LoadLidarPoints'),
    dict(type='LoadLidarSegLabels'),
    dict(type='FuseAdjacentPoints', num_adjacent=2),
    dict(type='ThinPoints', is_train=True),
    dict(type='PointsLidarToEgo'),
    dict(type='EgoPointsRangeFilter'),
    dict(type='BEVAug', bda_aug_conf=dict(flip_dx_ratio=0.5, flip_dy_ratio=0.5), is_train=True),
    dict(type='PointToMultiViewDepth', grid_config=dict(depth=(1.0, 45.0, 0.5)), downsample=16, with_segs=True),
    dict(type='PackOccInputs'),
]  # fmt: skip


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp('world')
    write_world(root)
    return root


def dataset(root, **options):
    options = dict(dict(pipeline=PIPELINE, num_adjacent=2), **options)
    return NuScenesOccDataset('nuscenes_infos_val.pkl', data_root=str(root), **options)


def same(a, b):
    """Whether two packed samples are equal in every tensor."""
    pairs = [(a['inputs'][key], b['inputs'][key]) for key in a['inputs']]
    pairs += [(a['data_samples'].gt_occ.semantics, b['data_samples'].gt_occ.semantics)]
    return a['inputs'].keys() == b['inputs'].keys() and all(torch.equal(x, y) for x, y in pairs)


# --------------------------------------------------------------------------------------------- infos and order
def test_sorted_by_time_with_scenes_in_one_piece(tmp_path):
    infos = write_world(tmp_path, scenes=2, frames=3)
    for k, info in enumerate(infos):
        info['timestamp'] = 10 + (k % 3) * 0.5 + (0.25 if k >= 3 else 0)  # two cars at once
    write_infos(tmp_path, infos[::-1])
    data = dataset(tmp_path)
    assert [data.get_data_info(i)['token'] for i in range(6)] == [f'token{s}{f}' for s in (0, 1) for f in range(3)]


def test_adjacent_frames_stay_in_the_scene(world):
    data = dataset(world)
    tokens = [[info['token'] for info in data.get_data_info(i)['adjacent']] for i in range(8)]
    assert tokens[:4] == [
        ['token00', 'token00'],
        ['token00', 'token01'],
        ['token01', 'token00'],
        ['token02', 'token01'],
    ]
    assert tokens[4:6] == [['token10', 'token10'], ['token10', 'token11']]
    assert data.get_data_info(5)['adjacent'][1]['is_repeat'] and 'is_repeat' not in data.get_data_info(6)['adjacent'][1]


def test_chosen_earlier_frames(world):
    """``num_adjacent=(2,)``: the last but one; a scene's oldest frame where it does not reach so far back."""
    read = dict(type='PrepareImageInputs', data_config=dict(input_size=(32, 80)), num_adjacent=(2,))
    data = dataset(world, pipeline=[read])
    for index, other in ((0, 0), (1, 0), (2, 0), (3, 1), (5, 4)):
        images = data[index]['imgs']
        assert len(images) == 2 and np.array_equal(images[1], data[other]['imgs'][0])
        assert np.array_equal(data[index]['ego2global_cameras'][1], data[other]['ego2global_cameras'][0])
    with pytest.raises(ConfigError, match=r'num_adjacent=\(3,\), the dataset gives 2'):
        dataset(world, pipeline=[dict(read, num_adjacent=(3,))])[0]


def test_classes_at_another_resolution_than_depths(world):
    steps = [dict(step) for step in PIPELINE[:4]]
    depth = dict(type='PointToMultiViewDepth', grid_config=dict(depth=(1.0, 45.0, 0.5)), with_segs=True)
    mixed = dataset(world, pipeline=[*steps, dict(depth, downsample=16, seg_downsample=8)])[1]
    coarse = dataset(world, pipeline=[*steps, dict(depth, downsample=16)])[1]
    fine = dataset(world, pipeline=[*steps, dict(depth, downsample=8)])[1]
    assert np.array_equal(mixed['sparse_depth'], coarse['sparse_depth'])
    assert np.array_equal(mixed['segs'], fine['segs']) and (fine['segs'] != 17).any()


def test_load_interval_and_subsets(world):
    data = dataset(world, load_interval=3)
    assert [data.get_data_info(i)['token'] for i in range(len(data))] == ['token00', 'token03', 'token12']
    part = dataset(world).get_subset([4, 5])
    assert len(part) == 2 and len(part.skipped) == 0 and part[1]['data_samples'].token == 'token11'
    part.set_epoch(3)
    assert len(dataset(world, indices=3)) == 3


def test_a_share_of_the_scenes(tmp_path):
    write_world(tmp_path, scenes=5, frames=2)
    for share, scenes in ((0.6, '024'), (0.4, '04'), (0.01, '0'), (1, '01234')):
        data = dataset(tmp_path, scene_fraction=share)
        assert [data.get_data_info(i)['token'] for i in range(len(data))] == [
            f'token{s}{f}' for s in scenes for f in '01'
        ]
    assert dataset(tmp_path, scene_fraction=0.6).get_data_info(3)['adjacent'][0]['token'] == 'token20'


def test_paths_come_from_the_data_root(world, monkeypatch, tmp_path):
    relative = os.path.relpath(world)
    data = dataset(relative)
    monkeypatch.chdir(tmp_path)
    info = data.get_data_info(0)
    assert info['lidar_path'] == str(world / 'samples/LIDAR_TOP/token00.pcd.bin') == info['lidar_points']['lidar_path']
    assert info['images']['CAM_BACK']['img_path'] == str(world / 'samples/CAM_BACK/token00.jpg')
    assert info['occ_path'] == str(world / 'gts/scene-0000/token00/labels.npz')
    assert data[0]['data_samples'].occ_path == info['occ_path']


def test_annotations_are_one_buffer_and_classes_known(world):
    data = dataset(world)
    assert isinstance(data.data_bytes, np.ndarray) and data.data_list == []
    assert data.metainfo['classes'] == occ3d.CLASS_NAMES
    again = pickle.loads(pickle.dumps(data))
    assert same(again[3], data[3])


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel tells the shares of a page on Linux alone')
def test_workers_share_the_annotations(tmp_path):
    """8 workers, 3 epochs, every one of 100,000 annotations read in each: memory grows by less than 0.3 of one copy."""

    def growth(count):
        # many small objects: reading one writes its reference count, and so copies its page if it is a Python object
        numbers = np.random.default_rng(0).random((count, 120))
        infos = [
            dict(
                token=f't{i}',
                timestamp=float(i),
                scene_token='s',
                numbers=numbers[i].tolist(),
            )
            for i in range(count)
        ]
        write_infos(tmp_path, infos)
        data = dataset(tmp_path, pipeline=[], modality=dict(use_camera=False, use_lidar=False), num_adjacent=1)
        del infos, numbers
        gc.collect()
        before = host_memory()
        loader = DataLoader(
            data, batch_size=500, shuffle=True, num_workers=8, persistent_workers=True, collate_fn=len,
            multiprocessing_context='fork',
        )  # fmt: skip
        watch_workers(loader)  # as the runner does
        for _ in range(3):
            assert sum(loader) == count
        return host_memory() - before, data.data_bytes.nbytes / 2**20

    workers, _ = growth(4000)  # what eight workers need for themselves
    total, copy = growth(100_000)
    assert copy > 100
    assert total - workers < 0.3 * copy, (total, workers, copy)


def test_arguments_are_checked(world):
    for wrong, word in (
        (dict(tolerance='lax'), 'tolerance'),
        (dict(load_interval=0), 'load_interval'),
        (dict(scene_fraction=0), 'scene_fraction'),
        (dict(modality=dict(use_sonar=True)), 'use_sonar'),
    ):
        with pytest.raises(ConfigError, match=word):
            dataset(world, **wrong)
    with pytest.raises(DataError, match='nothing_here'):
        NuScenesOccDataset('nothing_here.pkl', data_root=str(world))


# ------------------------------------------------------------------------------------------------------- seeds
def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(world):
    data = dataset(world)
    first = data[2]
    data[5], data[0]
    assert same(first, data[2])
    data.set_epoch(1)
    assert not same(first, data[2])
    data.set_epoch(0)
    assert same(first, data[2])
    data.set_seed(7)
    assert not same(first, data[2])
    fixed = dataset(world, seed=3)
    fixed.set_seed(9)
    assert same(fixed[2], dataset(world, seed=3)[2])
    seeds = {int(data[i]['inputs']['sample_seed']) for i in range(8)}
    assert len(seeds) == 8 and min(seeds) >= 0


def test_test_data_do_not_change_with_the_epoch(world):
    data = dataset(world, test_mode=True)
    first = data[2]
    data.set_epoch(5)
    assert same(first, data[2])


@pytest.mark.parametrize('workers', [1, 2])
def test_the_epoch_reaches_persistent_workers(world, workers):
    data, plain = copy.deepcopy(dataset(world)), dataset(world)  # mmengine's Runner copies data sets
    loader = DataLoader(
        data,
        batch_size=2,
        sampler=DefaultSampler(data, shuffle=False),
        num_workers=workers,
        persistent_workers=True,
        collate_fn=pseudo_collate,
    )
    for epoch in (0, 1):
        data.set_epoch(epoch)
        plain.set_epoch(epoch)
        for k, batch in enumerate(loader):
            for j in range(2):
                one = plain[2 * k + j]
                for key, values in batch['inputs'].items():
                    assert torch.equal(values[j], one['inputs'][key]), (epoch, key)


# --------------------------------------------------------------------------------------------------- sequences
def test_frames_know_their_sequence(world):
    data = dataset(world, sequences_split_num=2)
    assert data.sequence_groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    infos = [data.get_data_info(index) for index in range(8)]
    assert [info['sequence_group_idx'] for info in infos] == data.sequence_groups.tolist()
    assert [info['start_of_sequence'] for info in infos] == [True, False] * 4
    assert [info['end_of_sequence'] for info in infos] == [False, True] * 4
    assert [info['prev_token'] for info in infos[:4]] == ['', 'token00', '', 'token02']
    assert np.array_equal(infos[2]['curr_to_prev_ego_rt'], np.eye(4))
    # a point that stands still
    before, now = (np.array(infos[index]['ego2global']) for index in (2, 3))
    place = np.array([610.0, 1590.0, 2.0, 1.0])
    moved = infos[3]['curr_to_prev_ego_rt'] @ np.linalg.inv(now) @ place
    np.testing.assert_allclose(moved, np.linalg.inv(before) @ place, atol=1e-6)
    meta = data[3]['data_samples'].metainfo
    assert meta['prev_token'] == 'token02' and meta['sequence_group_idx'] == 1 and not meta['start_of_sequence']
    assert 'sequence_visit' not in meta and data[Visit(3, 2)]['data_samples'].sequence_visit == 2
    # whole scenes; parts of the data; no sequences
    assert dataset(world, sequences_split_num=1).sequence_groups.tolist() == [0] * 4 + [1] * 4
    assert dataset(world, sequences_split_num=1, indices=5).sequence_groups.tolist() == [0] * 4 + [1]
    assert data.get_subset([2, 3]).sequence_groups.tolist() == [1, 1]
    assert dataset(world).sequence_groups is None and 'start_of_sequence' not in dataset(world).get_data_info(0)
    for wrong in (0, 'some', 1.5):
        with pytest.raises(ConfigError, match='sequences_split_num'):
            dataset(world, sequences_split_num=wrong)


def test_visits_of_a_frame_differ(world):
    data = dataset(world)
    first, second = data[Visit(2, 0)], data[Visit(2, 1)]
    assert first['data_samples'].token == second['data_samples'].token == 'token02'
    assert same(first, data[Visit(2, 0)]) and not same(first, second)


def test_class_balanced_sampling(tmp_path):
    infos = write_world(tmp_path, scenes=1, frames=4)
    boxes = {0: (0,), 1: (0, 0), 2: (0, 7), 3: ()}
    for index, labels in boxes.items():
        infos[index]['instances'] = [dict(bbox_label_3d=label, bbox_3d_isvalid=True) for label in labels]
    infos[3]['instances'] = [dict(bbox_label_3d=-1, bbox_3d_isvalid=True), dict(bbox_label_3d=3, bbox_3d_isvalid=False)]
    write_infos(tmp_path, infos)
    data = dataset(tmp_path)
    assert [data.get_cat_ids(index) for index in range(4)] == [[0], [0], [0, 7], []]
    balanced = OccCBGSDataset(data)
    assert len(balanced) == 4 and (balanced.sample_indices[2:] == 2).all()  # the one frame with class 7, twice
    assert set(balanced.sample_indices[:2]) <= {0, 1, 2}
    assert balanced[3]['data_samples'].token == balanced.get_data_info(2)['token'] == 'token02'
    for info in infos:
        info['instances'] = []
    write_infos(tmp_path, infos)
    with pytest.raises(ConfigError, match='none of the 4 samples'):
        OccCBGSDataset(dataset(tmp_path))


# ------------------------------------------------------------------------------------------------- bad samples
def _cut(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def _rewrite_labels(path, **changes):
    arrays = dict(occ3d.read_npz(str(path), ('semantics', 'mask_lidar', 'mask_camera')))
    arrays.update(changes)
    np.savez_compressed(path, **arrays)


def _set_points(path, count, value):
    points = np.fromfile(path, np.float32)
    points[:count] = value
    points.tofile(path)


NAN_POSE = np.full((4, 4), np.nan).tolist()
BAD = 6  # third frame of the second scene: its cloud is also fused into the fourth frame's
# kind -> (damage(root, infos), words that the message must have)
CORRUPTIONS = dict(
    truncated_jpeg=(lambda root, infos: _cut(root / 'samples/CAM_FRONT/token12.jpg', 0.5), ('CAM_FRONT', 'image')),
    empty_points=(
        lambda root, infos: (root / 'samples/LIDAR_TOP/token12.pcd.bin').write_bytes(b''),
        ('token12.pcd.bin', '0 bytes'),
    ),
    indivisible_points=(
        lambda root, infos: _cut(root / 'samples/LIDAR_TOP/token12.pcd.bin', 0.501),
        ('token12.pcd.bin', 'multiple of 20'),
    ),
    missing_points=(
        lambda root, infos: (root / 'samples/LIDAR_TOP/token12.pcd.bin').unlink(),
        ('token12.pcd.bin', 'No such file'),
    ),
    nan_points=(
        lambda root, infos: _set_points(root / 'samples/LIDAR_TOP/token12.pcd.bin', 50, np.nan),
        ('token12.pcd.bin', '10 of 400'),
    ),
    all_nan_points=(
        lambda root, infos: _set_points(root / 'samples/LIDAR_TOP/token12.pcd.bin', None, np.nan),
        ('token12.pcd.bin', '400 of 400'),
    ),
    lidarseg_length=(
        lambda root, infos: _cut(root / 'lidarseg/v1.0-mini/token12_lidarseg.bin', 0.5),
        ('token12_lidarseg.bin', '200 labels, expected 400'),
    ),
    nan_pose=(lambda root, infos: infos[BAD].update(ego2global=NAN_POSE), ('token12', 'ego2global', 'NaN')),
    nan_camera_pose=(
        lambda root, infos: infos[BAD]['images']['CAM_BACK'].update(ego2global=NAN_POSE),
        ('token12', 'images.CAM_BACK.ego2global', 'NaN'),
    ),
    singular_intrinsics=(
        lambda root, infos: infos[BAD]['images']['CAM_BACK'].update(cam2img=np.zeros((3, 3)).tolist()),
        ('token12', 'images.CAM_BACK.cam2img', 'singular'),
    ),
    missing_camera=(
        lambda root, infos: infos[BAD]['images'].pop('CAM_FRONT'),
        ('token12', 'images.CAM_FRONT', 'missing'),
    ),
    missing_image=(
        lambda root, infos: (root / 'samples/CAM_FRONT/token12.jpg').unlink(),
        ('CAM_FRONT/token12.jpg', 'No such file'),
    ),
    missing_labels=(
        lambda root, infos: (root / 'gts/scene-0001/token12/labels.npz').unlink(),
        ('token12/labels.npz', 'missing'),
    ),
    truncated_labels=(
        lambda root, infos: _cut(root / 'gts/scene-0001/token12/labels.npz', 0.6),
        ('token12/labels.npz', 'truncated'),
    ),
    wrong_shape=(
        lambda root, infos: _rewrite_labels(
            root / 'gts/scene-0001/token12/labels.npz', semantics=np.zeros((200, 200, 8), np.uint8)
        ),
        ('token12/labels.npz', 'semantics', '(200, 200, 8)', '(200, 200, 16)'),
    ),
    unknown_label=(
        lambda root, infos: _rewrite_labels(
            root / 'gts/scene-0001/token12/labels.npz', semantics=np.full(occ3d.GRID_SIZE, 42, np.uint8)
        ),
        ('token12/labels.npz', 'semantics', '42', '0..17'),
    ),
)


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_a_corrupt_sample_is_one_error_or_is_skipped(tmp_path, kind):
    infos = write_world(tmp_path)
    damage, words = CORRUPTIONS[kind]
    damage(tmp_path, infos)
    write_infos(tmp_path, infos)

    strict = dataset(tmp_path)
    for index in range(BAD):
        strict[index]
    with pytest.raises(DataError) as error:
        strict[BAD]
    message = str(error.value)
    assert all(word in message for word in words) and '\n' not in message, message

    tolerant = dataset(tmp_path, tolerance='tolerant', max_bad_fraction=0.3)
    tokens = [tolerant[index]['data_samples'].token for index in range(8)]
    assert 'token12' not in tokens and tokens[:BAD] == [f'token{s}{f}' for s in (0, 1) for f in range(4)][:BAD]
    assert BAD in tolerant.skipped and len(tolerant.skipped) <= 2
    with pytest.raises(DataError, match=r'max_bad_fraction=0\.01'):
        dataset(tmp_path, tolerance='tolerant')[BAD]


def test_skipped_samples_are_counted_over_workers(tmp_path, caplog):
    write_world(tmp_path)
    for token in ('token01', 'token12'):
        (tmp_path / f'gts/scene-000{token[5]}/{token}/labels.npz').unlink()
    data = dataset(tmp_path, tolerance='tolerant', max_bad_fraction=0.3)
    loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=pseudo_collate)
    tokens = [batch['data_samples'][0].token for batch in loader]
    assert len(tokens) == 8 and data.skipped == [1, 6]
    assert tokens[1] == 'token02' and tokens[6] == 'token13'


def test_a_strict_error_leaves_the_worker_as_it_is(tmp_path):
    write_world(tmp_path)
    (tmp_path / 'gts/scene-0000/token01/labels.npz').write_bytes(b'')
    loader = DataLoader(dataset(tmp_path), batch_size=1, num_workers=1, collate_fn=pseudo_collate)
    with pytest.raises(DataError, match=r'token01/labels\.npz'):
        list(loader)


def test_a_hostile_label_file_runs_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'pwned'),)

    write_world(tmp_path)
    array = np.empty((), object)
    array[()] = Payload()
    path = tmp_path / 'gts/scene-0000/token00/labels.npz'
    np.savez(path, semantics=array, mask_lidar=array, mask_camera=array)
    assert zipfile.is_zipfile(path)
    with pytest.raises(DataError, match='semantics'):
        dataset(tmp_path)[0]
    assert not (tmp_path / 'pwned').exists()


# --------------------------------------------------------------------------------------------------- real data
def test_real_key_frame_projects_as_its_info_file_says(tmp_path):
    """The depth maps, made through ego poses, against the file's own LiDAR-to-camera matrices."""
    root = os.environ.get('OCCFORGE_REAL_DATA')
    if not root:
        pytest.skip('OCCFORGE_REAL_DATA is not set')
    source = Path(root) / 'nuscenes_keyframe'
    info_file = next(source.glob('*.pkl'))
    for file in source.iterdir():
        channel = file.name.split('__')[1] if '__' in file.name else ''
        if channel:
            (tmp_path / 'samples' / channel).mkdir(parents=True)
            (tmp_path / 'samples' / channel / file.name).symlink_to(file)
    pipeline = [
        dict(type='PrepareImageInputs', data_config=dict(input_size=(900, 1600), src_size=(900, 1600))),
        dict(type='LoadLidarPoints'),
        dict(type='PointToMultiViewDepth', grid_config=dict(depth=(1.0, 45.0, 0.5))),
        dict(type='PackOccInputs', input_keys=('key_points',)),
    ]
    data = NuScenesOccDataset(str(info_file), data_root=str(tmp_path), pipeline=pipeline)
    assert len(data) == 1
    info, inputs = data.get_data_info(0), data[0]['inputs']
    assert inputs['imgs'].shape == (1, 6, 900, 1600, 3) and len(inputs['key_points']) == 34688
    xyz = inputs['key_points'].numpy()[:, :3].astype(float)
    for n, name in enumerate(info['camera_names']):
        lidar2cam = np.array(info['images'][name]['lidar2cam'])
        in_camera = xyz @ lidar2cam[:3, :3].T + lidar2cam[:3, 3]
        pixels = in_camera @ np.array(info['images'][name]['cam2img'])[:3, :3].T
        pixels = pixels[(pixels[:, 2] > 1.0) & (pixels[:, 2] < 45)]
        columns, rows = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
        inside = (columns >= 0) & (columns < 1600) & (rows >= 0) & (rows < 900)
        expected = np.full((900, 1600), np.inf)
        np.minimum.at(expected, (rows[inside], columns[inside]), pixels[inside, 2])
        ours = inputs['sparse_depth'][n].numpy()
        both = np.isfinite(expected) & (ours > 0)
        # rounding puts a few points into the next pixel
        assert both.sum() > 0.98 * np.isfinite(expected).sum() > 1000, name
        assert np.abs(ours[both] - expected[both]).max() < 0.5 and np.abs(ours[both] - expected[both]).mean() < 1e-3


# ------------------------------------------------------------------------------------------------- classes of one's own
OWN = ['car', 'two_wheeler', 'ground', 'rest', 'free']
BECOMES = dict(
    {name: 'rest' for name in occ3d.CLASS_NAMES[1:17] if name != 'car'},
    others=None,
    bicycle='two_wheeler',
    motorcycle='two_wheeler',
    driveable_surface='ground',
    sidewalk='ground',
)


def test_labels_in_classes_of_ones_own(world):
    plain = dataset(world)
    own = dataset(world, metainfo=dict(classes=OWN), class_map=BECOMES)
    assert own.metainfo['classes'] == OWN
    assert own.metainfo['palette'][0] == tuple(occ3d.PALETTE[4]) and len(own.metainfo['palette']) == 5
    assert own.metainfo['palette'][2] == tuple(occ3d.PALETTE[11])
    seen = set()
    for index in range(len(plain)):
        a, b = plain[index], own[index]
        assert a['inputs'].keys() == b['inputs'].keys()
        pairs = [(a['data_samples'].gt_occ.semantics, b['data_samples'].gt_occ.semantics)]
        pairs.append((a['inputs']['segs'], b['inputs']['segs']))
        for theirs, ours in pairs:
            assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
            for number, name in enumerate(occ3d.CLASS_NAMES):
                place = BECOMES.get(name, name)
                expected = 255 if place is None else OWN.index(place)
                assert (ours[theirs == number] == expected).all(), name
                seen |= {name} if (theirs == number).any() else set()
        assert torch.equal(a['data_samples'].gt_occ.mask_camera, b['data_samples'].gt_occ.mask_camera)
    assert len(seen) > 5


def test_counts_of_fine_voxels_in_classes_of_ones_own():
    # one cell with two voxels of "others" (ignored), one bicycle seen by the camera, three free seen by both
    counts = CellCounts(
        np.zeros(3, np.int32), np.array([0, 4 * 2 + 1, 4 * 17 + 3], np.uint8), np.array([2, 1, 3]), (1, 1, 1), (2, 2, 2)
    )
    results = dict(fine_counts=counts, label_map=occ3d.label_map(OWN, BECOMES))
    own = in_own_classes(results)['fine_counts']
    assert own.codes.tolist() == [4 * 1 + 1, 4 * 4 + 3] and own.counts.tolist() == [1, 3] and len(own.cells) == 2
    with pytest.raises(ConfigError, match='GenerateRays'):
        in_own_classes(dict(results, rays=np.zeros((1, 9))))


@pytest.mark.parametrize(
    'classes, class_map, message',
    [
        (OWN, {**BECOMES, 'car': 'cars'}, "'car' -> 'cars', expected"),
        (OWN, {**BECOMES, 'vehicle': 'car'}, "'vehicle' -> 'car'"),
        (OWN, {**BECOMES, 'free': None}, "'free' stays"),
        (OWN, {**BECOMES, 'truck': 'free'}, "'free' stays"),
        (OWN, {name: place for name, place in BECOMES.items() if name != 'truck'}, "becomes of Occ3D's truck "),
        ([*OWN[:-1], 'tram', 'free'], BECOMES, 'becomes tram: '),
        (['free', *OWN[:-1]], BECOMES, "'free' last"),
        (['car', *OWN], BECOMES, 'different names'),
    ],
)
def test_wrong_classes_are_one_clear_error(world, classes, class_map, message):
    with pytest.raises(ConfigError, match=message):
        dataset(world, metainfo=dict(classes=classes), class_map=class_map)


def test_occ3ds_own_classes_need_no_map(world):
    assert occ3d.label_map(occ3d.CLASS_NAMES) is None and dataset(world).label_map is None
    # the same names in another order
    ignoring = occ3d.label_map(occ3d.CLASS_NAMES, dict(others=None, trailer='truck'))
    assert ignoring[:18].tolist() == [255, *range(1, 9), 10, *range(10, 18)]
    shuffled = [*reversed(occ3d.CLASS_NAMES[:17]), 'free']
    assert occ3d.label_map(shuffled)[:18].tolist() == [*range(16, -1, -1), 17]
