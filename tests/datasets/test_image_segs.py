"""Class images: painting against the plain loop, files against painting in the worker, augmentation, errors."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from fake_nuscenes import write_world
from occforge.datasets import NuScenesOccDataset
from occforge.datasets.image_segs import paint, read_seg, seg_file
from occforge.datasets.nuscenes_occupancy import CAMERA_NAMES
from occforge.errors import ConfigError, DataError

SIZE = (90, 160)  # (H, W) of the camera images: 90 is no multiple of 8, as 900 is none
DATA_CONFIG = dict(input_size=(64, 160), resize=(-0.06, 0.11), rot=(-5.4, 5.4), flip=True, crop_h=(0.0, 0.0))
TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def painted_plainly(uvd, labels, size):
    image = np.full(size, 17, dtype=np.uint8)
    for (u, v, depth), label in zip(uvd, labels):
        u, v = np.rint(u), np.rint(v)
        if depth > 0.1 and 0 <= u < size[1] and 0 <= v < size[0]:
            u, v = int(u), int(v)
            image[max(v - 8, 0) : v + 8, max(u - 4, 0) : u + 4] = label
    return image[::8, ::8]


def test_painting_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    uvd = rng.uniform((-20, -20, -1), (SIZE[1] + 20, SIZE[0] + 20, 9), (400, 3))
    uvd[:50, :2] = np.rint(uvd[:50, :2] / 4) * 4  # on the borders of the rectangles
    labels = rng.integers(0, 17, 400)
    assert paint(uvd, labels, SIZE).shape == (12, 20)
    for count in (0, 1, 20, 400):
        found = paint(uvd[:count], labels[:count], SIZE)
        np.testing.assert_array_equal(found, painted_plainly(uvd[:count], labels[:count], SIZE))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('world')
    write_world(root, scenes=1, frames=2, image_size=SIZE[::-1])
    return root


def dataset(root, is_train=False, **options):
    pipeline = [
        dict(type='PrepareImageInputs', data_config=DATA_CONFIG, is_train=is_train),
        dict(type='LoadLidarPoints'),
        dict(type='LoadLidarSegLabels'),
        dict(type='LoadImageSegs', **options),
    ]
    return NuScenesOccDataset('nuscenes_infos_val.pkl', str(root), pipeline)


def create_img_seg(*arguments):
    spec = importlib.util.spec_from_file_location('create_img_seg', TOOLS / 'create_img_seg.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def test_the_tool_writes_what_the_worker_paints(root, capsys):
    create_img_seg(root / 'nuscenes_infos_val.pkl', '--workers', 1)
    assert '12 class images written, 0 were there' in capsys.readouterr().out
    create_img_seg(root / 'nuscenes_infos_val.pkl', '--workers', 1)
    assert '0 class images written, 12 were there' in capsys.readouterr().out
    path = seg_file(root / 'imgseg', 'CAM_BACK', 'token01.jpg')
    assert path == str(root / 'imgseg/samples/CAM_BACK/token01.npy')
    assert np.load(path).shape == (12, 20) and len(np.unique(np.load(path))) > 2
    for is_train in (False, True):
        painted, read = (dataset(root, is_train, img_seg_dir=folder)[1]['segs'] for folder in (None, 'imgseg'))
        assert painted.shape == (6, 64, 160)
        np.testing.assert_array_equal(read, painted)


def test_classes_follow_the_augmentation_of_the_images(root):
    plain = dataset(root, is_train=True)
    seen = 0
    for epoch in range(4):
        plain.set_epoch(epoch)
        results = plain[0]
        height, width = results['input_size']
        for n, name in enumerate(CAMERA_NAMES):
            coarse = read_seg(seg_file(root / 'imgseg', name, 'token00.jpg'), SIZE)
            rows, columns = np.indices(coarse.shape).reshape(2, -1)
            middle = np.stack([columns * 8 + 3.5, rows * 8 + 3.5, np.ones(len(rows))])  # of an 8 x 8 block
            rot, tran = results['post_rots'][0, n], results['post_trans'][0, n]
            u, v = np.rint(rot[:2, :2] @ middle[:2] + tran[:2, None]).astype(int)
            # images are cropped before they are turned, which uncovers the borders
            inside = (u >= 10) & (u < width - 10) & (v >= 10) & (v < height - 10) & (rows * 8 + 3.5 < SIZE[0])
            found = results['segs'][n][v[inside], u[inside]]
            seen += inside.sum()
            assert (found == coarse[rows, columns][inside]).mean() > 0.99
    assert seen > 1000


def test_what_augmentation_uncovers_has_no_label(root):
    config = dict(DATA_CONFIG, input_size=(120, 160))  # more rows than the images have
    steps = dataset(root).pipeline.transforms
    for as_published, fill in ((False, 17), (True, 0)):
        steps[0].data_config, steps[3].as_published = config, as_published
        results = NuScenesOccDataset('nuscenes_infos_val.pkl', str(root), steps)[0]
        assert (results['segs'][:, :30] == fill).all()


def test_every_nth_pixel(root):
    full, few = (dataset(root, downsample=step)[0]['segs'] for step in (1, 16))
    np.testing.assert_array_equal(few, full[:, ::16, ::16])


def test_bad_files_are_named(root, tmp_path):
    path = tmp_path / 'a.npy'
    with pytest.raises(DataError, match=r'missing; tools/create_img_seg\.py'):
        read_seg(path, SIZE)
    for content, message in (
        (np.zeros((113, 200), np.uint8), r'holds uint8 \(113, 200\), expected uint8 \(12, 20\)'),
        (np.full((12, 20), 18, np.uint8), r'holds the class 18, expected 0..17'),
    ):
        np.save(path, content)
        with pytest.raises(DataError, match=message):
            read_seg(path, SIZE)
    path.write_bytes(b'no array')
    with pytest.raises(DataError, match='cannot be read'):
        read_seg(path, SIZE)
    without = dataset(root)
    without.pipeline.transforms.pop(2)
    with pytest.raises(ConfigError, match='needs LoadLidarSegLabels'):
        without[0]
