"""Info files: layouts, conversion, and a reader that runs nothing it finds in a file."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from occforge.datasets import info_files
from occforge.errors import DataError


def pose(seed, reach=50.0):
    rng = np.random.default_rng(seed)
    return info_files.pose_matrix(rng.normal(size=4), rng.uniform(-reach, reach, 3))


def make_item(index, scene='s0', boxes=3):
    rng = np.random.default_rng(index)
    ego2global, lidar2ego = pose(index, 2000.0), pose(100 + index, 2.0)
    item = dict(
        sample_idx=index,
        token=f'token{index}',
        scene_token=scene,
        scene_name='scene-0001',
        prev=f'token{index - 1}' if index else '',
        timestamp=1532402927.647951 + index / 2,
        ego2global=ego2global.tolist(),
        images={},
        lidar_points=dict(num_pts_feats=5, lidar_path=f'lidar{index}.pcd.bin', lidar2ego=lidar2ego.tolist()),
        lidar_sweeps=[],
        instances=[],
        occ_path=f'gts/scene-0001/token{index}/labels.npz',
        pts_semantic_mask_path=f'lidarseg/v1.0-mini/{index}_lidarseg.bin',
    )
    for number, camera in enumerate(('CAM_FRONT_LEFT', 'CAM_FRONT')):
        cam2ego, camera_ego = pose(200 + number, 2.0), pose(index, 2000.0)
        camera_ego[:3, 3] += rng.normal(size=3)
        lidar2cam = info_files.invert_pose(camera_ego @ cam2ego) @ ego2global @ lidar2ego
        item['images'][camera] = dict(
            img_path=f'{camera}{index}.jpg',
            cam2img=[[1266.4, 0.0, 816.2], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]],
            cam2ego=cam2ego.tolist(),
            ego2global=camera_ego.tolist(),
            lidar2cam=lidar2cam.tolist(),
            sample_data_token=f'{camera}{index}',
            timestamp=item['timestamp'] - 0.01,
        )
    sweep_ego = pose(index, 2000.0)
    item['lidar_sweeps'].append(
        dict(
            timestamp=item['timestamp'] - 0.05,
            ego2global=sweep_ego.tolist(),
            sample_data_token=f'sweep{index}',
            lidar_points=dict(
                lidar_path=f'sweeps/LIDAR_TOP/sweep{index}.pcd.bin',
                lidar2ego=lidar2ego.tolist(),
                lidar2sensor=(info_files.invert_pose(sweep_ego @ lidar2ego) @ ego2global @ lidar2ego).tolist(),
            ),
        )
    )
    for number in range(boxes):
        box = [*rng.uniform(-30, 30, 3), *rng.uniform(0.5, 5, 3), rng.uniform(-3, 3)]
        name = ('car', 'pedestrian', 'animal')[number % 3]
        item['instances'].append(
            info_files.make_instance(box, name, rng.normal(size=2), number, 0, number > 0, f'object{number}')
        )
    return item


METAINFO = dict(categories=dict(car=0), dataset='nuscenes', version='v1.0-mini', info_version='1.1')


def assert_close(a, b, path='item', skip=(), atol=1e-9):
    if isinstance(a, dict):
        for key in a:
            if key not in skip:
                assert_close(a[key], b[key], f'{path}.{key}', skip, atol)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, pair in enumerate(zip(a, b)):
            assert_close(*pair, f'{path}[{index}]', skip, atol)
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=atol, rel=1e-12, nan_ok=True), path
    else:
        assert a == b, path


# ------------------------------------------------------------------------------------------------------- round trips
def test_v2_round_trip(tmp_path):
    items = [make_item(0), make_item(1)]
    path = tmp_path / 'nuscenes_infos_train.pkl'
    info_files.save_infos(path, METAINFO, items)
    metainfo, loaded = info_files.load_infos(path)
    assert metainfo == METAINFO
    assert loaded == items
    assert os.listdir(tmp_path) == [path.name]


def test_bevdet_round_trip(tmp_path):
    items = [make_item(0), make_item(1)]
    path = tmp_path / 'bevdetv2-nuscenes_infos_train.pkl'
    info_files.save_classic_infos(path, METAINFO, items, './data/nuscenes')
    content = pickle.loads(path.read_bytes())
    assert content['metadata'] == {'version': 'v1.0-mini'}
    info = content['infos'][0]
    assert info['cams']['CAM_FRONT']['data_path'] == './data/nuscenes/samples/CAM_FRONT/CAM_FRONT0.jpg'
    assert info['occ_path'] == './data/nuscenes/gts/scene-0001/token0'
    assert info['timestamp'] == 1532402927647951
    assert [info['prev'] for info in content['infos']] == ['', 'token0']
    assert info['gt_boxes'].shape == (3, 7)
    assert info['sweeps'][0]['data_path'] == './data/nuscenes/sweeps/LIDAR_TOP/sweep0.pcd.bin'
    # a point of the camera, through either description
    cam = info['cams']['CAM_FRONT']
    point = np.array([1.0, 2.0, 10.0])
    lidar = cam['sensor2lidar_rotation'] @ point + cam['sensor2lidar_translation']
    back = np.array(items[0]['images']['CAM_FRONT']['lidar2cam']) @ [*lidar, 1]
    np.testing.assert_allclose(back[:3], point, atol=1e-8)

    metainfo, loaded = info_files.load_infos(path)
    assert metainfo['version'] == 'v1.0-mini' and metainfo['categories']['car'] == 0
    for item, other in zip(items, loaded):
        assert_close(item, other, skip=('instance_token',), atol=1e-6)


def test_bevdet_annotations_are_in_the_front_cameras_ego_frame(tmp_path):
    item = make_item(0)
    boxes, labels = info_files._to_classic(item, 'data')['ann_infos']
    # instance 0 has no point, 2 is no detection class
    assert labels == [info_files.BEVDET_CLASSES.index('pedestrian')]
    chain = info_files.invert_pose(item['images']['CAM_FRONT']['ego2global']) @ item['ego2global']
    chain = chain @ item['lidar_points']['lidar2ego']
    expected = chain @ [*item['instances'][1]['bbox_3d'][:3], 1]
    np.testing.assert_allclose(boxes[0][:3], expected[:3], atol=1e-9)
    assert boxes[0].shape == (9,)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_content_of_every_protocol(tmp_path, protocol):
    content = dict(
        metainfo=OrderedDict(version='v'),
        data_list=[
            dict(
                token='a',
                scene_token='s',
                number=np.float64(1.5),
                flag=np.bool_(True),
                array=np.arange(6, dtype=np.float32).reshape(2, 3),
                fortran=np.asfortranarray(np.ones((2, 3))),
                names=np.array(['car', 'truck']),
                objects=np.array(['car', None], dtype=object),
                nothing=np.zeros((0, 7)),
                raw=b'\x00\xff',
                empty=b'',
                pair=(1, 2.0),
            )
        ],
    )
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = info_files.load_pickle(path)
    for name, value in content['data_list'][0].items():
        np.testing.assert_array_equal(loaded['data_list'][0][name], value)
        assert type(loaded['data_list'][0][name]) is type(value)


def test_files_of_numpy_2(tmp_path):
    """numpy 2 spells its globals with ``numpy._core``."""
    content = pickle.dumps(dict(infos=[], metadata=dict(version='v', a=np.arange(3), b=np.float32(2))), protocol=2)
    content = content.replace(b'numpy.core.multiarray', b'numpy._core.multiarray')
    path = tmp_path / 'infos.pkl'
    path.write_bytes(content)
    metainfo, _ = info_files.load_infos(path)
    np.testing.assert_array_equal(metainfo['a'], [0, 1, 2])


def test_camera_poses_are_derived_where_a_file_leaves_them_out(tmp_path):
    item = make_item(0)
    expected = {camera: image.pop('ego2global') for camera, image in item['images'].items()}
    path = tmp_path / 'infos.pkl'
    info_files.save_infos(path, METAINFO, [item])
    _, (loaded,) = info_files.load_infos(path)
    for camera, value in expected.items():
        np.testing.assert_allclose(loaded['images'][camera]['ego2global'], value, atol=1e-9)


def test_without_scene_tokens_every_frame_stands_alone(tmp_path):
    items = [make_item(0), make_item(1)]
    for item in items:
        del item['scene_token']
    path = tmp_path / 'infos.pkl'
    info_files.save_infos(path, METAINFO, items)
    with pytest.warns(UserWarning, match='no scene tokens'):
        _, loaded = info_files.load_infos(path)
    assert [item['scene_token'] for item in loaded] == ['token0', 'token1']


def test_shorten_path():
    assert info_files.shorten_path('./data/nuscenes/samples/CAM_FRONT/a.jpg') == 'a.jpg'
    assert info_files.shorten_path('samples/LIDAR_TOP/a.bin', bare_samples=False) == 'samples/LIDAR_TOP/a.bin'
    assert info_files.shorten_path('/d/nuscenes/sweeps/LIDAR_TOP/a.bin') == 'sweeps/LIDAR_TOP/a.bin'
    assert info_files.shorten_path('./data/nuscenes/gts/scene-1/t') == 'gts/scene-1/t'
    assert info_files.shorten_path('elsewhere/a.bin') == 'elsewhere/a.bin'


def test_quaternions_and_back():
    for seed in range(20):
        matrix = pose(seed)
        again = info_files.pose_matrix(info_files.quaternion_of(matrix), matrix[:3, 3])
        np.testing.assert_allclose(again, matrix, atol=1e-14)
        np.testing.assert_allclose(info_files.invert_pose(matrix) @ matrix, np.eye(4), atol=1e-13)


# ---------------------------------------------------------------------------------------------------------- bad files
class _Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _hostile(kind, canary):
    command = f'touch {canary}'
    run = f'open({str(canary)!r}, "w").close()'
    if kind == 'os.system':
        return pickle.dumps(_Call(os.system, command))
    if kind == 'eval':
        return pickle.dumps(dict(infos=[_Call(eval, run)], metadata={}))
    if kind == 'exec':
        return pickle.dumps(_Call(exec, run), protocol=0)
    if kind == 'subprocess':
        import subprocess

        return pickle.dumps(dict(data_list=[], metainfo=_Call(subprocess.call, ['touch', str(canary)])))
    if kind == 'open':
        return pickle.dumps(_Call(open, str(canary), 'w'))
    if kind == 'getattr chain':
        # getattr(os, 'system')(command)
        return f"cbuiltins\ngetattr\n(cposix\nsystem\nS'__call__'\ntR(S'{command}'\ntR.".encode()
    if kind == 'nested name':
        # protocol 4 follows dots: numpy.core.multiarray with a name that walks away from it
        out = io.BytesIO()
        out.write(b'\x80\x04')
        for text in ('numpy', 'f2py.os.system'):
            out.write(b'\x8c' + bytes([len(text)]) + text.encode())
        out.write(b'\x93' + b'\x8c' + bytes([len(command)]) + command.encode() + b'\x85R.')
        return out.getvalue()
    if kind == 'state of an object':
        # BUILD with a state on something that has __setstate__: only the allowed types can be built at all
        return pickle.dumps(_Call(__import__, 'os')) + b'.'
    if kind == 'dtype of an object':
        return b'cnumpy\ndtype\n(cbuiltins\neval\ntR.'
    if kind == 'numpy load':
        return pickle.dumps(_Call(np.load, str(canary)))
    if kind == 'codecs':
        return f"c_codecs\nencode\n(S'{run}'\nS'unicode_escape'\ntR.".encode()
    if kind == 'extension code':
        return b'\x80\x02\x82\x01.'
    raise KeyError(kind)


HOSTILE = [
    'os.system', 'eval', 'exec', 'subprocess', 'open', 'getattr chain', 'nested name', 'state of an object',
    'dtype of an object', 'numpy load', 'codecs', 'extension code',
]  # fmt: skip


@pytest.mark.parametrize('kind', HOSTILE)
def test_nothing_in_a_file_is_run(tmp_path, kind):
    canary = tmp_path / 'canary'
    path = tmp_path / 'infos.pkl'
    path.write_bytes(_hostile(kind, canary))
    with pytest.raises(DataError, match=r'infos\.pkl'):
        info_files.load_infos(path)
    assert not canary.exists()


def test_the_refused_global_is_named(tmp_path):
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps(dict(infos=[_Call(os.system, 'true')])))
    with pytest.raises(DataError, match=r'infos\.pkl: refused.*posix\.system'):
        info_files.load_infos(path)


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'cannot be read'),
        (b'', 'empty'),
        (b'not a pickle at all', 'not a readable info file'),
        (pickle.dumps([1, 2]), 'holds a list'),
        (pickle.dumps(dict(a=1)), "has the keys \\['a'\\]"),
        (pickle.dumps(dict(data_list={})), 'must be a list'),
        (pickle.dumps(dict(data_list=[3])), 'item 0 is a int'),
        (pickle.dumps(dict(infos=[dict(token='t')])), "item 0 has no field 'ego2global_rotation'"),
        (pickle.dumps(dict(data_list=[dict(images={})])), "item 0 has no field 'sample_idx'"),
    ],
)
def test_bad_files_give_one_clear_error(tmp_path, content, words):
    path = tmp_path / 'infos.pkl'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        info_files.load_infos(path)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / 'infos.pkl'
    info_files.save_infos(path, METAINFO, [make_item(0)])
    whole = path.read_bytes()
    for length in np.linspace(1, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r'infos\.pkl'):
            info_files.load_infos(path)


def test_bad_poses_are_named(tmp_path):
    path = tmp_path / 'infos.pkl'
    item = make_item(0)
    info_files.save_classic_infos(path, METAINFO, [item], 'data')
    content = pickle.loads(path.read_bytes())
    content['infos'][0]['ego2global_rotation'] = [0.0, 0.0, 0.0, 0.0]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"item 0 \(token 'token0'\): a quaternion of length zero"):
        info_files.load_infos(path)


@pytest.mark.skipif('OCCFORGE_REAL_DATA' not in os.environ, reason='OCCFORGE_REAL_DATA is not set')
@pytest.mark.filterwarnings('ignore:.*scene tokens')
def test_the_real_key_frame():
    folder = os.path.join(os.environ['OCCFORGE_REAL_DATA'], 'nuscenes_keyframe')
    (name,) = (name for name in os.listdir(folder) if name.endswith('.pkl'))
    metainfo, (item,) = info_files.load_infos(os.path.join(folder, name))
    assert metainfo['version'] == 'v1.0-mini' and len(item['instances']) == 69 and len(item['images']) == 6
    # the cameras' derived ego poses: on the track of a car at 9 m/s, each at its own time
    ego = np.array(item['ego2global'])
    for image in item['images'].values():
        moved = np.linalg.norm(np.array(image['ego2global'])[:3, 3] - ego[:3, 3])
        assert moved == pytest.approx(9.2 * (item['timestamp'] - image['timestamp']), abs=0.02)
