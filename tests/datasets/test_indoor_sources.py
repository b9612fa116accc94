"""SceneNN's and 3RScan's layouts: a synthetic room written in them gives what it gives as ScanNet's exports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from occforge.datasets.info_files import load_pickle
from occforge.datasets.preparation import indoor_sources, scannet
from occforge.datasets.preparation.indoor_sources import depth_seen_from, nyu40_number, read_ply_vertices
from occforge.errors import DataError
from PIL import Image

POINTS = 800
SCENE = 'scene0001_00'
# SceneNN's y axis points down; (x, y, z) with z up is (x, -z, y) there
DOWN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.fixture(scope='module')
def exports(tmp_path_factory):
    from occforge.datasets import synthetic_rooms

    root = tmp_path_factory.mktemp('exports')
    synthetic_rooms.generate(root, rooms=2, frames=2, held_out=1, quiet=True)
    return root


def write_ply(path, points, kind, **fields):
    """Vertices (V, 6) and their integers as a PLY file."""
    names = {**dict.fromkeys('xyz', 'float'), **dict.fromkeys(('red', 'green', 'blue'), 'uchar')}
    names |= dict.fromkeys(fields, 'ushort')
    rows = np.zeros(len(points), [(name, dict(float='<f4', uchar='u1', ushort='<u2')[t]) for name, t in names.items()])
    for column, name in enumerate(('x', 'y', 'z', 'red', 'green', 'blue')):
        rows[name] = points[:, column]
    for name, values in fields.items():
        rows[name] = values
    header = ['ply', f'format {kind} 1.0', 'comment a room', f'element vertex {len(rows)}']
    header += [f'property {t} {name}' for name, t in names.items()]
    header += ['element face 0', 'property list uchar int vertex_indices', 'end_header', '']
    body = '\n'.join(' '.join(map(repr, row)) for row in rows.tolist()).encode() if kind == 'ascii' else rows.tobytes()
    path.write_bytes('\n'.join(header).encode() + body)


def read_exports(root):
    """The room's mesh, frames (number -> colour path, depth (H, W) mm, pose) and intrinsics (4, 4)."""
    labels = scannet.label_map(root / 'meta_data' / 'scannetv2-labels.combined.tsv', 'nyu40id')
    rec = scannet.read_reconstruction(root / 'scans' / SCENE, labels)
    folder = root / '2D' / SCENE
    frames = {}
    for path in sorted((folder / 'color').glob('*.jpg'), key=lambda path: int(path.stem)):
        depth = np.asarray(Image.open(folder / 'depth' / f'{path.stem}.png'))
        frames[int(path.stem)] = path, depth, np.loadtxt(folder / 'pose' / f'{path.stem}.txt')
    return rec, frames, np.loadtxt(folder / 'intrinsic.txt')


def write_scenenn(exports, root):
    rec, frames, intrinsic = read_exports(exports)
    folder = root / SCENE
    for name in ('image', 'depth'):
        (folder / name).mkdir(parents=True)
    (root / 'mesh_segs').mkdir()
    points = rec.points.copy()
    points[:, :3] = points[:, :3] @ DOWN.T
    objects = rec.instances * 3  # ids are not contiguous
    write_ply(folder / f'{SCENE}.ply', points, 'binary_little_endian', label=objects)
    names = dict(enumerate(indoor_sources.scannet_classes.NYU40_CLASSES, start=1))
    lines = [
        f'<label id="{3 * i}" nyu_class="{names[label]}" color="1 2 3"/>' for i, label in enumerate(rec.labels) if i
    ]
    (folder / f'{SCENE}.xml').write_text('<annotation>\n' + '\n'.join(lines) + '\n</annotation>\n')
    (root / 'mesh_segs' / f'{SCENE}.segs.json').write_text(json.dumps(dict(segIndices=rec.segments.tolist())))
    np.savetxt(folder / 'intrinsic.txt', intrinsic)
    blocks = []
    for number in range(1, max(frames) + 1):
        pose = np.eye(4)
        if number in frames or (number == 1 and 0 in frames):
            path, depth, pose = frames.get(number) or frames[0]
            with Image.open(path) as image:
                image.save(folder / 'image' / f'image{number:05d}.png')
            Image.fromarray(depth).save(folder / 'depth' / f'depth{number:05d}.png')
            turn = np.eye(4)
            turn[:3, :3] = DOWN
            pose = turn @ pose
        rows = '\n'.join(' '.join(f'{value:.8f}' for value in row) for row in pose)
        blocks.append(f'{number - 1} {number - 1} {number}\n{rows}\n')
    (folder / 'trajectory.log').write_text(''.join(blocks))
    shutil.copytree(exports / 'masks', root / 'masks')
    return frames


def write_3rscan(exports, root):
    rec, frames, intrinsic = read_exports(exports)
    folder = root / SCENE / 'sequence'
    folder.mkdir(parents=True)
    nyu40 = rec.labels[rec.instances]
    write_ply(
        folder.parent / 'labels.instances.annotated.v2.ply', rec.points, 'ascii', objectId=rec.instances, NYU40=nyu40
    )
    segments = dict(segIndices=rec.segments.tolist())
    (folder.parent / 'mesh.refined.0.010000.segs.v2.json').write_text(json.dumps(segments))
    numbers = ' '.join(map(str, intrinsic.ravel()))
    lines = ['m_versionNumber = 4']
    for camera in ('Color', 'Depth'):
        lines += [f'm_{camera.lower()}Width = 640', f'm_{camera.lower()}Height = 480']
        lines += [f'm_calibration{camera}Intrinsic = {numbers}']
    (folder / '_info.txt').write_text('\n'.join(lines) + '\n')
    for number, (path, depth, pose) in frames.items():
        shutil.copy(path, folder / f'frame-{number:06d}.color.jpg')
        (folder / f'frame-{number:06d}.depth.pgm').write_bytes(b'P5\n640 480\n65535\n' + depth.astype('>u2').tobytes())
        np.savetxt(folder / f'frame-{number:06d}.pose.txt', pose)
    shutil.copytree(exports / 'masks', root / 'masks')
    return frames


def arrays(root, name, number):
    kinds = dict(points=np.float32, super_points=np.int64, instance_mask=np.int64, semantic_mask=np.int64)
    return {
        kind: np.fromfile(root / kind / f'{name}/{number}.bin'.replace('/None', ''), dtype)
        for kind, dtype in kinds.items()
    }


def as_exports(exports, out):
    """The room's last frame, prepared from ScanNet's exports."""
    scannet.prepare(
        'scannet', 'mv', exports, out / 'mv', rec=out / 'rec', splits=['val'], num_sample=POINTS, quiet=True
    )
    return arrays(out / 'mv', SCENE, 40), arrays(out / 'rec', SCENE, None)


@pytest.mark.parametrize('name', ['scenenn', '3rscan'])
def test_the_same_room_gives_the_same_files(exports, tmp_path, name):
    write = dict(scenenn=write_scenenn, **{'3rscan': write_3rscan})[name]
    write(exports, tmp_path / 'own')
    out = tmp_path / 'out'
    summary = indoor_sources.prepare(
        name, tmp_path / 'own', out / f'{name}-mv', rec=out / name, step=40, num_sample=POINTS, quiet=True
    )
    assert summary == dict(
        files={str(out / f'{name}-mv' / f'{name}_mv_oneformer3d_infos_val.pkl'): 1}, lost=0, unmasked=0
    )
    (item,) = load_pickle(next(iter(summary['files'])))['data_list']
    assert item['pts_paths'][-1] == f'points/{SCENE}/40.bin' and (out / f'{name}-mv' / item['img_paths'][-1]).is_file()
    found, rec = arrays(out / f'{name}-mv', SCENE, 40), arrays(out / name, SCENE, None)
    expected, expected_rec = as_exports(exports, tmp_path / 'scannet')
    turn = DOWN if name == 'scenenn' else np.eye(3)
    for ours, theirs in ((found, expected), (rec, expected_rec)):
        points, other = ours['points'].reshape(-1, 6), theirs['points'].reshape(-1, 6)
        np.testing.assert_allclose(points[:, :3], other[:, :3] @ turn.T, atol=1e-4)
        np.testing.assert_array_equal(points[:, 3:], other[:, 3:])
        for kind in ('super_points', 'semantic_mask'):
            np.testing.assert_array_equal(ours[kind], theirs[kind], kind)
        # the same objects; ScanNet's exports also number those that no vertex belongs to
        pairs = set(zip(ours['instance_mask'].tolist(), theirs['instance_mask'].tolist()))
        assert len(pairs) == len({own for own, _ in pairs}) == len({other for _, other in pairs})
        assert all((own == 0) == (other == 0) for own, other in pairs)
    assert len(np.unique(found['instance_mask'])) > 3 and {1, 2} <= set(rec['semantic_mask'])  # wall and floor


def test_scenenn_goes_upright_through_the_test_pipelines(exports, tmp_path, monkeypatch):
    from mmdet3d.registry import DATASETS
    from mmengine.registry import init_default_scope
    from occforge.datasets import scannet_classes
    from occforge.engine import load_config

    init_default_scope('mmdet3d')
    write_scenenn(exports, tmp_path / 'own')
    indoor_sources.prepare(
        'scenenn', tmp_path / 'own', tmp_path / 'mv', rec=tmp_path / 'rec', num_sample=POINTS, quiet=True
    )
    expected, rec = as_exports(exports, tmp_path / 'scannet')
    configs = Path(__file__).parents[2] / 'configs'
    options = [f'data_root={tmp_path / "mv"}/', f'rec_root={tmp_path / "rec"}']
    for config, chair in (('ESAM/ESAM_online_scenenn_test', 4), ('ESAM_CA/ESAM_online_scenenn_CA_test', 2)):
        given = load_config(str(configs / f'{config}.py'), options).test_dataloader.dataset
        given.pipeline[0].num_sample = POINTS
        sample = DATASETS.build(given)[0]
        points = sample['inputs']['points'][-1].numpy()
        np.testing.assert_allclose(points[:, :3], expected['points'].reshape(-1, 6)[:, :3], atol=1e-4)
        truth = sample['data_samples'].eval_ann_info
        np.testing.assert_allclose(truth['rec_xyz'], rec['points'].reshape(-1, 6)[:, :3], atol=1e-4)
        names = scannet_classes.SCANNET_CLASSES if chair == 4 else scannet_classes.SCANNET200_CLASSES
        assert names[chair] == 'chair'
        for number, label in ((1, 0), (2, 1), (5, chair)):  # NYU40's wall, floor and chair
            assert set(truth['pts_semantic_mask'][rec['semantic_mask'] == number]) <= {label}


def test_nyu40_among_the_200_classes():
    from occforge.datasets import scannet_classes

    table = scannet_classes.nyu40_to_scannet200()
    assert len(table) == 41 == len(set(table)) and table[0] == 0
    names = {raw: name for raw, name in zip(scannet_classes.SCANNET200_IDS, scannet_classes.SCANNET200_CLASSES)}
    assert [names[table[i]] for i in (1, 2, 5, 6, 40)] == ['wall', 'floor', 'chair', 'couch', 'object']
    few = dict(zip(scannet_classes.SCANNET_IDS, scannet_classes.SCANNET_CLASSES))
    same = [number for number, name in few.items() if scannet_classes.NYU40_CLASSES[number - 1] == name]
    assert len(same) >= 18  # of the 20; two have names of their own


@pytest.mark.parametrize(('name', 'number'), [('night_stand', 32), ('Chair', 5), ('', 0), ('unknown', 0), ('dog', 40)])
def test_names_of_classes(name, number):
    assert nyu40_number(name) == number


def test_a_depth_image_of_another_camera():
    own, other, size = (200.0, 190.0, 111.5, 85.5), (600.0, 610.0, 319.5, 239.5), (640, 480)
    u = np.indices((172, 224))[1]
    ray = (u - own[2]) / own[0]
    depth = 2000 + 500 * ray  # a wall at a slant: depth depends on the ray alone
    found = depth_seen_from(depth, own, other, size)
    u = np.indices(size[::-1])[1]
    seen = found > 0
    half_a_pixel = 0.5 / own[0] * 500
    np.testing.assert_allclose(found[seen], (2000 + 500 * (u - other[2]) / other[0])[seen], atol=half_a_pixel + 1e-6)
    assert seen[240, 320] and seen.mean() > 0.5
    assert not seen[:, ~seen.any(0)].any() and seen.sum() == seen.any(0).sum() * seen.any(1).sum()


def test_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match='no scene of scenenn'):
        indoor_sources.prepare('scenenn', tmp_path, tmp_path / 'out', quiet=True)
    path = tmp_path / 'mesh.ply'
    path.write_text('not a mesh')
    with pytest.raises(DataError, match='first element is vertex'):
        read_ply_vertices(path)
    points = np.zeros((4, 6), np.float32)
    write_ply(path, points, 'binary_little_endian', label=[1, 2, 3, 4])
    assert read_ply_vertices(path)['label'].tolist() == [1, 2, 3, 4]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match='4 vertices are expected'):
        read_ply_vertices(path)
