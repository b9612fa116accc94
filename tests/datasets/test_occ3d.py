import os

import numpy as np
import pytest
from nuscenes.utils.color_map import get_colormap
from occforge.datasets import occ3d
from occforge.errors import DataError

RAW_NAMES = {2: 7, 9: 1, 12: 8, 14: 2, 15: 3, 16: 3, 17: 4, 18: 5, 21: 6, 22: 9, 23: 10, 24: 11, 25: 12, 30: 16, 31: 0}


def write(path, **changes):
    grid = np.full(occ3d.GRID_SIZE, 17, np.uint8)
    arrays = dict(semantics=grid, mask_lidar=np.zeros_like(grid), mask_camera=np.ones_like(grid))
    arrays.update(changes)
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_constants_agree():
    assert occ3d.NUM_CLASSES == 18 and occ3d.CLASS_NAMES[occ3d.FREE] == 'free'
    low, high = np.array(occ3d.POINT_CLOUD_RANGE).reshape(2, 3)
    assert np.allclose((high - low) / occ3d.VOXEL_SIZE, occ3d.GRID_SIZE)
    colours = get_colormap()
    for name, label in (('vehicle.car', 4), ('flat.sidewalk', 13), ('static.vegetation', 16), ('vehicle.truck', 10)):
        assert tuple(occ3d.PALETTE[label]) == colours[name]
    for raw, label in RAW_NAMES.items():
        assert occ3d.LIDARSEG_TO_OCC[raw] == label


def test_reads_file_and_folder(tmp_path):
    path = write(tmp_path / 'labels.npz')
    for given in (path, tmp_path):
        labels = occ3d.read_labels(given)
        assert labels.semantics.dtype == np.uint8 and (labels.semantics == 17).all()
        assert labels.mask_camera.all() and not labels.mask_lidar.any()
    assert occ3d.read_labels(path, masks=()).mask_camera is None


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(semantics=np.zeros((10, 10, 4), np.uint8)), ('semantics', '(10, 10, 4)', '(200, 200, 16)')),
        (dict(mask_camera=None), ('mask_camera', 'missing')),
        (dict(semantics=np.full(occ3d.GRID_SIZE, 18, np.uint8)), ('semantics', '18', '0..17')),
        (dict(semantics=np.full(occ3d.GRID_SIZE, -1, np.int64)), ('semantics', '-1', '0..17')),
        (dict(mask_lidar=np.full(occ3d.GRID_SIZE, 3, np.uint8)), ('mask_lidar', '3', '0..1')),
        (dict(semantics=np.zeros(occ3d.GRID_SIZE, np.float32)), ('semantics', 'float32', 'uint8')),
        (dict(semantics=np.array([None, 1], object)), ('semantics', 'allow_pickle')),
    ],
)
def test_wrong_content_names_file_and_field(tmp_path, changes, words):
    path = write(tmp_path / 'labels.npz', **changes)
    with pytest.raises(DataError) as error:
        occ3d.read_labels(path)
    assert all(word in str(error.value) for word in (path, *words))


def test_ignore_label_is_an_exception_to_the_range(tmp_path):
    grid = np.full(occ3d.GRID_SIZE, 255, np.uint8)
    path = write(tmp_path / 'labels.npz', semantics=grid)
    assert (occ3d.read_labels(path, ignore_label=255).semantics == 255).all()


@pytest.mark.parametrize('kind', ['missing', 'empty', 'truncated', 'cut_inside', 'text', 'npy', 'flipped'])
def test_damaged_files_give_one_clear_error(tmp_path, kind):
    path = write(tmp_path / 'labels.npz')
    data = open(path, 'rb').read()
    if kind == 'missing':
        os.remove(path)
    elif kind == 'npy':
        with open(path, 'wb') as file:
            np.save(file, np.zeros(3))
    else:
        flipped = bytearray(data)
        flipped[120:160] = bytes(40)
        content = dict(
            empty=b'', truncated=data[: len(data) // 2], cut_inside=data[:-30], text=b'hello', flipped=bytes(flipped)
        )
        with open(path, 'wb') as file:
            file.write(content[kind])
    with pytest.raises(DataError) as error:
        occ3d.read_labels(path)
    assert path in str(error.value) and '\n' not in str(error.value)


def test_real_label_file_has_the_known_class_counts():
    root = os.environ.get('OCCFORGE_REAL_DATA')
    if not root:
        pytest.skip('OCCFORGE_REAL_DATA is not set')
    labels = occ3d.read_labels(os.path.join(root, 'occ3d', '29796060110c4163b07f06eff4af0753.npz'))
    expected = {0: 169, 1: 82, 3: 974, 4: 1749, 6: 83, 11: 8433, 13: 2610, 14: 1007, 15: 5286, 16: 18699, 17: 600908}
    counts = occ3d.class_counts(labels.semantics)
    assert {c: int(n) for c, n in enumerate(counts) if n} == expected
    assert labels.mask_lidar.sum() == 56601 and labels.mask_camera.sum() == 43355
