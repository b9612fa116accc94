"""The inferencer on the synthetic city: against the runner's own way, and its inputs against each other."""

import copy
from pathlib import Path

import demo_inference
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from mmengine.dataset import pseudo_collate
from occforge.apis import Inferencer
from occforge.datasets.info_files import load_infos
from occforge.errors import ConfigError, DataError
from occforge.visualization import read_image

CONFIG = Path(__file__).resolve().parents[2] / 'configs/fusion_occ/fusion_occ_synthetic.py'


@pytest.fixture(scope='module')
def inferencer(tiny_city, tmp_path_factory):
    torch.manual_seed(0)
    fresh = Inferencer(CONFIG, device='cpu', cfg_options={'data_root': str(tiny_city)})
    with torch.no_grad():  # answers that differ from voxel to voxel, unlike those of a fresh model
        for parameter in fresh.model.predicter.parameters():
            parameter.normal_(std=1000.0) if parameter.dim() > 1 else parameter.zero_()
    checkpoint = tmp_path_factory.mktemp('weights') / 'model.pth'
    torch.save(dict(state_dict=fresh.model.state_dict()), checkpoint)
    loaded = Inferencer(CONFIG, checkpoint, 'cpu', {'data_root': str(tiny_city)})
    assert loaded.load_report.complete
    return loaded


@pytest.fixture(scope='module')
def tokens(tiny_city):
    return [item['token'] for item in load_infos(tiny_city / 'nuscenes_infos_val.pkl')[1]]


@pytest.fixture(scope='module')
def expected(inferencer):
    """Semantics of the test set's samples by the way that tools/test.py goes."""
    dataset = DATASETS.build(copy.deepcopy(dict(inferencer.cfg.test_dataloader.dataset)))
    with torch.no_grad():
        return [
            inferencer.model.test_step(pseudo_collate([dataset[number]]))[0].pred_occ.semantics.numpy()
            for number in range(2)
        ]


def semantics(predictions):
    return [prediction.occupancy.semantics for prediction in predictions]


def test_tokens_numbers_and_folders(inferencer, tokens, expected, tiny_city):
    first, second = inferencer([tokens[0], 1])
    assert (first.name, second.name) == (tokens[0], tokens[1])
    np.testing.assert_array_equal(semantics([first, second]), expected)
    assert len(np.unique(expected[0])) > 2  # not all one class, or the comparison says nothing
    folder = next(inferencer.iterate(str(tiny_city)))  # the config's info file in it
    assert folder.name == tokens[0]
    np.testing.assert_array_equal(folder.occupancy.semantics, expected[0])
    other = next(inferencer.iterate(tiny_city / 'nuscenes_infos_train.pkl'))
    assert other.name not in tokens


def test_batches_and_files(inferencer, tokens, expected, tmp_path):
    predictions = inferencer(tokens[:2], batch_size=2, out_dir=tmp_path, formats=('npz', 'png'))
    for prediction, own in zip(predictions, expected):
        assert (prediction.occupancy.semantics != own).mean() < 1e-3  # another batch size rounds otherwise
        assert read_image(tmp_path / f'occupancy/{prediction.name}.png').shape[1] == 1920
        with np.load(tmp_path / f'occupancy/{prediction.name}.npz') as saved:
            np.testing.assert_array_equal(saved['arr_0'], prediction.occupancy.semantics)


def frame_of(item, root):
    """An info file's item with arrays in the place of its paths."""
    frame = {key: item[key] for key in ('token', 'timestamp', 'ego2global', 'lidar_sweeps')}
    for sweep in frame['lidar_sweeps']:
        points = sweep['lidar_points']
        points['lidar_path'] = str(root / points['lidar_path'])
    lidar = item['lidar_points']
    points = np.fromfile(root / 'samples/LIDAR_TOP' / lidar['lidar_path'], np.float32).reshape(-1, 5)
    frame['lidar_points'] = dict(points=points, lidar2ego=lidar['lidar2ego'])
    frame['images'] = {
        name: dict(
            img=read_image(root / 'samples' / name / camera['img_path']),
            **{key: camera[key] for key in ('cam2img', 'cam2ego', 'ego2global')},
        )
        for name, camera in item['images'].items()
    }
    return frame


def test_arrays_give_what_the_files_give(inferencer, expected, tiny_city):
    items = load_infos(tiny_city / 'nuscenes_infos_val.pkl')[1]
    frames = [frame_of(item, tiny_city) for item in items[:2]]
    first, second = inferencer([dict(frame, scene_token='drive') for frame in frames])
    np.testing.assert_array_equal(first.occupancy.semantics, expected[0])
    np.testing.assert_array_equal(second.occupancy.semantics, expected[1])  # it sees the first one's points, too
    (alone,) = inferencer(frames[1])
    assert (alone.occupancy.semantics != expected[1]).any()
    assert first.scene.images['CAM_FRONT'].shape == (225, 400, 3)

    # as a stream: the same, and a new drive after reset
    with inferencer.stream() as stream:
        with pytest.raises(ConfigError, match='no frame yet'):
            stream.result()
        for frame, own in zip(frames, expected):
            assert stream.step(frame) is stream.result()
            np.testing.assert_array_equal(stream.result().occupancy.semantics, own)
        stream.reset()
        np.testing.assert_array_equal(stream.step(frames[1]).occupancy.semantics, alone.occupancy.semantics)


def test_samples_without_labels_can_be_read(inferencer, tokens, tiny_city, monkeypatch):
    assert inferencer(tokens[0])[0].scene.truth is None
    labelled = copy.copy(inferencer)
    labelled.with_labels, labelled._datasets = True, {}
    truth = labelled(tokens[0])[0].scene.truth
    assert truth['semantics'].shape == (200, 200, 16) and truth['mask_camera'].dtype == bool


def test_a_model_that_remembers_is_streamed(inferencer, tokens):
    """The protocol: open_stream, reset, step, result; unrelated samples of a call each start anew."""
    calls = []
    single = inferencer.stream()._inner

    class Remembers:
        def __init__(self):
            self.inner, self.count = single, 0

        def reset(self):
            self.count = 0

        def step(self, inputs, data_sample):
            self.count += 1
            calls.append(self.count)
            self.inner.step(inputs, data_sample)

        def result(self):
            return self.inner.result()

    stream = inferencer.stream()
    stream._inner = Remembers()
    stream.step(tokens[0])
    stream.step(tokens[1])
    stream.reset()
    stream.step(tokens[0])
    assert calls == [1, 2, 1]
    inferencer.model.open_stream = Remembers
    try:
        calls.clear()
        assert len(inferencer(tokens[:2])) == 2
    finally:
        del inferencer.model.open_stream
    assert calls == [1, 1]


def test_mistakes(inferencer, tokens, tmp_path):
    with pytest.raises(DataError, match="holds no sample 'nope'"):
        inferencer('nope')
    with pytest.raises(DataError, match='sample 99: the data set has 3'):
        inferencer(99)
    with pytest.raises(DataError, match='no such folder'):
        inferencer('no/such/folder')
    with pytest.raises(DataError, match=r"expected the config's info file .*found none"):
        inferencer(str(tmp_path))
    with pytest.raises(ConfigError, match='do not go together'):
        inferencer([tokens[0], {}])
    with pytest.raises(ConfigError, match='batch_size: expected 1 or more'):
        inferencer(tokens[0], batch_size=0)
    with pytest.raises(ConfigError, match='a step takes one frame'):
        inferencer.stream().step([0, 1])
    camera = dict(img=np.zeros((4, 4, 3), np.uint8), cam2img=np.eye(3), cam2ego=np.eye(4))
    for change, message in (
        (dict(img=np.zeros((4, 4))), r'CAM_FRONT.img: float64 \(4, 4\), expected uint8'),
        (dict(cam2img=np.eye(4)), r'CAM_FRONT.cam2img: expected \(3, 3\)'),
    ):
        with pytest.raises(DataError, match=message):
            inferencer(dict(images=dict(CAM_FRONT={**camera, **change})))
    with pytest.raises(DataError, match="with 'images' or 'lidar_points'"):
        inferencer({})
    with pytest.raises(ConfigError, match='model is missing'):
        Inferencer(dict(test_dataloader={}), device='cpu')
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match='sees no GPU'):
            Inferencer(CONFIG, device='cuda')


def test_the_tool(inferencer, tokens, tiny_city, tmp_path):
    checkpoint = tmp_path / 'model.pth'
    torch.save(dict(state_dict=inferencer.model.state_dict()), checkpoint)
    command = [str(CONFIG), str(checkpoint), '--out-dir', str(tmp_path / 'out'), '--data-root', str(tiny_city)]
    demo_inference.main([*command, tokens[1], '--device', 'cpu', '--formats', 'npz', 'html', '--truth'])
    assert b'"name":"Truth"' in (tmp_path / f'out/occupancy/{tokens[1]}.html').read_bytes()
    demo_inference.main([*command, '-n', '2', '--device', 'cpu', '--formats', 'npz', '--stream'])
    assert {path.stem for path in (tmp_path / 'out/occupancy').glob('*.npz')} == set(tokens[:2])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['no.py', 'no.pth'], 'no.py: no such config file'),
        ([str(CONFIG), 'no.pth'], 'no.pth: no such checkpoint file'),
        ([str(CONFIG), str(CONFIG), '--formats', 'jpg'], "invalid choice: 'jpg'"),
        ([str(CONFIG), str(CONFIG), '--batch-size', '0'], '--batch-size 1 or more'),
        ([str(CONFIG), str(CONFIG), '0'], 'fusion_occ_synthetic.py: '),  # no checkpoint
    ],
)
def test_mistakes_of_the_tool(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        demo_inference.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_fb_occ_remembers_in_a_stream_and_not_in_a_call(tiny_city, tokens):
    torch.manual_seed(0)
    config = CONFIG.parents[1] / 'fbocc/fbocc_synthetic.py'
    inferencer = Inferencer(config, device='cpu', cfg_options={'data_root': str(tiny_city)})
    alone = inferencer(tokens[:2])
    stream = inferencer.stream()
    first, second = (stream.step(token) for token in tokens[:2])
    np.testing.assert_array_equal(first.occupancy.semantics, alone[0].occupancy.semantics)
    assert (second.occupancy.semantics != alone[1].occupancy.semantics).any()  # the first frame is in it
    stream.reset()
    np.testing.assert_array_equal(stream.step(tokens[1]).occupancy.semantics, alone[1].occupancy.semantics)
