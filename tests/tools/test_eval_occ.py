"""eval_occ.py on predictions made from labels, and what it says of wrong ones."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from occforge.datasets import NuScenesOccDataset
from occforge.datasets.fine_labels import FineLabels, write_fine_labels
from occforge.datasets.info_files import load_infos
from occforge.datasets.occ3d import read_labels
from occforge.evaluation import OccupancyMetric, RayIoU

sys.path[:0] = [str(Path(__file__).parents[1] / 'datasets'), str(Path(__file__).resolve().parents[2] / 'tools')]
import eval_occ  # noqa: E402


def run(*arguments):
    """The tool in this process, which has imported everything already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            eval_occ.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A data root of two scenes with three samples each, and predictions that are right for nine voxels of ten."""
    from fake_nuscenes import write_world

    root = tmp_path_factory.mktemp('world')
    write_world(root, scenes=2, frames=3)
    (root / 'pred').mkdir()
    rng = np.random.default_rng(0)
    for index, item in enumerate(load_infos(root / 'nuscenes_infos_val.pkl')[1]):
        labels = read_labels(root / item['occ_path']).semantics
        wrong = rng.random(labels.shape) < 0.1
        prediction = np.where(wrong, rng.choice([4, 11, 17], labels.shape), labels).astype(np.uint8)
        name = ('arr_0', 'pred', 'semantics', 'anything')[index % 4]
        np.savez_compressed(root / 'pred' / f'{item["token"]}.npz', **{name: prediction})
    return root


def test_equals_the_metrics_on_the_data_set(world, tmp_path):
    infos = world / 'nuscenes_infos_val.pkl'
    done = run(world / 'pred', world / 'gts', '--infos', infos, '--out-dir', tmp_path, '--eval-mask', 'lidar')
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / 'results.json').read_text())
    assert document['samples'] == document['dataset_size'] == 6 and document['infos'] == str(infos)
    assert set(document['protocols']) == {'occ3d_miou', 'rayiou'}

    # the same through the data set, as a test of a model goes
    dataset = NuScenesOccDataset(
        'nuscenes_infos_val.pkl', str(world), test_mode=True,
        pipeline=[dict(type='LoadOccGTFromFile'), dict(type='PackOccInputs')],
    )  # fmt: skip
    metrics = [OccupancyMetric(eval_mask='lidar'), RayIoU()]
    for sample in dataset:
        sample = sample['data_samples'].to_dict()
        archive = np.load(world / 'pred' / f'{sample["token"]}.npz')
        sample['pred_occ'] = dict(semantics=archive[archive.files[0]])
        for metric in metrics:
            metric.process(None, [sample])
    expected = {**metrics[0].evaluate(6), **metrics[1].evaluate(6)}
    assert 0 < expected['RayIoU'] < 100 and 0 < expected['mIoU'] < 100
    assert document['metrics'].keys() >= expected.keys()
    for name, value in expected.items():
        found = document['metrics'][name]
        assert found == value or (found is None and value != value), name
    with open(tmp_path / 'metrics.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and rows[0]['phase'] == 'test'
    assert float(rows[0]['RayIoU']) == pytest.approx(expected['RayIoU'], rel=1e-5)
    assert f'RayIoU {expected["RayIoU"]:.2f}' in done.stdout
    # every number says where it comes from; those of the rings make up the whole
    numbers = {number['name']: number for number in document['numbers']}
    assert all(number['protocol'] in document['protocols'] and number['mask'] for number in numbers.values())
    assert numbers['IoU/camera_mask/20-35m/car']['range'] == '20-35m'


def test_without_an_info_file(world, tmp_path):
    some = tmp_path / 'some'
    some.mkdir()
    for path in sorted((world / 'pred').glob('*.npz'))[:2]:
        (some / path.name).write_bytes(path.read_bytes())
    done = run(some, world / 'gts')
    assert done.returncode == 0, done.stderr
    assert '2 samples: mIoU' in done.stdout and 'RayIoU: needs --infos' in done.stdout
    done = run(some, world / 'gts', '--infos', world / 'nuscenes_infos_val.pkl')
    assert done.returncode == 2 and '4 of the 6 samples' in done.stderr and 'have no prediction' in done.stderr


def test_labels_as_predictions_are_right(world):
    done = run(world / 'gts', world / 'gts', '--infos', world / 'nuscenes_infos_val.pkl')
    assert done.returncode == 0, done.stderr
    assert 'mIoU 100.00 (no mask)' in done.stdout and 'RayIoU 100.00' in done.stdout


@pytest.mark.parametrize('storage', ['dense', 'packed', 'counts'])
def test_labels_finer_than_the_predictions(world, tmp_path, storage):
    """Each voxel of the coarse labels as 2 x 2 x 2 equal ones: every IoU stays."""
    coarse = run(world / 'pred', world / 'gts', '--out-dir', tmp_path / 'coarse')
    assert coarse.returncode == 0, coarse.stderr
    name = f'fine_{storage}.npz'
    for path in (world / 'gts').rglob('labels.npz'):
        truth = read_labels(path)
        fine = [np.repeat(np.repeat(np.repeat(part, 2, 0), 2, 1), 2, 2) for part in truth]
        labels = FineLabels(fine[0], mask_camera=fine[2], mask_lidar=fine[1])
        if storage == 'dense':  # masks are then those of labels.npz
            labels = FineLabels(fine[0])
        write_fine_labels(path.with_name(name), labels, storage, (200, 200, 16))
    done = run(world / 'pred', world / 'gts', '--label-file', name, '--out-dir', tmp_path / 'fine')
    assert done.returncode == 0, done.stderr
    coarse, fine = (json.loads((tmp_path / folder / 'results.json').read_text()) for folder in ('coarse', 'fine'))
    assert fine['label_file'] == name
    assert {key: 8 * number for key, number in coarse['voxels']['no_mask'].items()} == fine['voxels']['no_mask']
    for key in ('mIoU/no_mask', 'mIoU/camera_mask', 'mIoU/lidar_mask', 'geo_IoU/no_mask', 'IoU/no_mask/car'):
        assert fine['metrics'][key] == pytest.approx(coarse['metrics'][key], rel=1e-9), key


def test_fine_labels_that_do_not_fit_are_named(world, tmp_path):
    path = next((world / 'gts').rglob('labels.npz')).with_name('odd.npz')
    np.savez(path, semantics=np.full((300, 400, 32), 17, np.uint8))
    (tmp_path / 'pred').mkdir()
    token = path.parent.name
    (tmp_path / 'pred' / f'{token}.npz').write_bytes((world / 'pred' / f'{token}.npz').read_bytes())
    done = run(tmp_path / 'pred', world / 'gts', '--label-file', 'odd.npz')
    assert done.returncode == 2 and str(path) in done.stderr and '(300, 400, 32)' in done.stderr
    done = run(world / 'pred', world / 'gts', '--label-file', 'absent.npz')
    assert done.returncode == 2 and '<scene>/<token>/absent.npz' in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'content, message',
    [
        (dict(arr_0=np.zeros((200, 200, 15), np.uint8)), 'shape (200, 200, 15), expected (200, 200, 16)'),
        (dict(arr_0=np.full((200, 200, 16), 18, np.uint8)), 'labels [18], expected 0..17'),
        (dict(arr_0=np.zeros((200, 200, 16), np.float32)), 'float32'),
        (dict(a=np.zeros(1), b=np.zeros(1)), "holds ['a', 'b']"),
        (b'not an archive', 'npz'),
    ],
)
def test_a_bad_prediction_is_named(world, tmp_path, content, message):
    token = load_infos(world / 'nuscenes_infos_val.pkl')[1][0]['token']
    path = tmp_path / f'{token}.npz'
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    done = run(tmp_path, world / 'gts')
    assert done.returncode == 2 and str(path) in done.stderr and message in done.stderr
    assert done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr


def test_other_wrong_input_is_one_line(world, tmp_path):
    for arguments, message in (
        ((tmp_path / 'no', world / 'gts'), 'no such folder'),
        ((tmp_path, world / 'gts'), 'holds no predictions'),
        ((world / 'pred', tmp_path), 'holds no labels'),
        ((world / 'pred', world / 'gts', '--infos', tmp_path / 'no.pkl'), 'no.pkl'),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr
    np.savez(tmp_path / 'stranger.npz', np.zeros((200, 200, 16), np.uint8))
    done = run(tmp_path, world / 'gts')
    assert done.returncode == 2 and 'no labels.npz, the first: stranger' in done.stderr
    done = run('--no-such-option')
    assert done.returncode == 2 and 'Traceback' not in done.stderr


def test_the_benchmark_agrees_with_its_peers(tmp_path):
    benchmark = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks' / 'metrics.py'
    options = ['--samples', '1', '--origins', '1', '--repeat', '1', '--threads', '1', '--out', tmp_path / 'rows.json']
    done = subprocess.run([sys.executable, benchmark, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # it compares the counts before it times anything
    rows = json.loads((tmp_path / 'rows.json').read_text())['rows']
    assert [row['name'] for row in rows if 'ratio' in row] == ['RayIoU, occforge', 'mIoU x 3 masks, occforge']
