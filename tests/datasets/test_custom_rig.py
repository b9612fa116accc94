"""A vehicle of one's own: from rig.json and frames.json to a training step, on a rig of 4 cameras and 80 beams."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from occforge.datasets import synthetic_city
from occforge.datasets.info_files import DETECTION_CLASSES, load_infos
from occforge.datasets.preparation import nuscenes_converter
from occforge.datasets.preparation.custom_rig import complete_frame, instances_of, write_custom_infos
from occforge.engine import load_config
from occforge.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools/converters'))
import custom_rig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def vehicle(tmp_path_factory):
    """(root, items): the files of a synthetic vehicle with rig.json and frames.json, and what they were made from."""
    root = tmp_path_factory.mktemp('vehicle')
    synthetic_city.generate(
        root, scenes=2, keyframes=2, image_size=(320, 180), split='1:1', workers=2, progress=False,
        rig='four_cameras_80_beams',
    )  # fmt: skip
    _, data_lists, _ = nuscenes_converter.make_infos(root, quiet=True)
    items = [item for split in data_lists.values() for item in split]
    first = items[0]
    rig = dict(
        cameras={name: {key: image[key] for key in ('cam2img', 'cam2ego')} for name, image in first['images'].items()},
        lidar={key: first['lidar_points'][key] for key in ('lidar2ego', 'num_pts_feats')},
    )
    (root / 'rig.json').write_text(json.dumps(rig))
    for scene in {item['scene_name'] for item in items}:
        frames = [
            dict(
                timestamp=item['timestamp'],
                ego2global=item['ego2global'],
                images={name: f'samples/{name}/{Path(i["img_path"]).name}' for name, i in item['images'].items()},
                lidar=f'samples/LIDAR_TOP/{Path(item["lidar_points"]["lidar_path"]).name}',
                boxes=[
                    dict(box=i['bbox_3d'], name=DETECTION_CLASSES[i['bbox_label_3d']])
                    for i in item['instances']
                    if i['bbox_label_3d'] >= 0
                ],
            )
            for item in items
            if item['scene_name'] == scene
        ]
        (root / scene).mkdir()
        (root / scene / 'frames.json').write_text(json.dumps(frames))
    return root, items


def test_the_template_gives_what_the_tables_give(vehicle, capsys):
    root, items = vehicle
    scene = items[-1]['scene_name']
    custom_rig.main([str(root), '--val', scene, '--prefix', 'mine'])
    assert capsys.readouterr().out.count('2 key frames') == 2
    val = load_infos(root / 'mine_infos_val.pkl')[1]
    assert [item['scene_name'] for item in val] == [scene] * 2
    assert (val[0]['prev'], val[0]['next'], val[1]['prev']) == ('', val[1]['token'], val[0]['token'])
    for own, item in zip(val, [item for item in items if item['scene_name'] == scene]):
        for name, image in item['images'].items():
            camera = own['images'][name]
            # the city's cameras fire a little before and after the LiDAR; the plain layout has no time of their own
            np.testing.assert_allclose(camera['cam2ego'], image['cam2ego'])
            lidar2cam = np.linalg.inv(camera['cam2ego']) @ np.array(own['lidar_points']['lidar2ego'])
            np.testing.assert_allclose(camera['lidar2cam'], lidar2cam, atol=1e-9)
        boxes = [instance['bbox_3d'] for instance in item['instances'] if instance['bbox_label_3d'] >= 0]
        np.testing.assert_allclose([instance['bbox_3d'] for instance in own['instances']], boxes)


def test_it_trains_and_predicts(vehicle):
    root, items = vehicle
    custom_rig.main([str(root), '--val', items[-1]['scene_name']])
    train = load_infos(root / 'nuscenes_infos_train.pkl')[1]
    labels = {item['scene_name']: item['occ_path'] for item in items}
    for item in (
        *train,
        *load_infos(root / 'nuscenes_infos_val.pkl')[1],
    ):  # the city's labels in the place of made ones
        target = root / item['occ_path']
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((root / labels[item['scene_name']]).read_bytes())
    cfg = load_config(
        ROOT / 'configs/custom/city_4cam_80beam.py',
        [f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'test')],
    )
    for split, steps in (('train', 7), ('test', 5)):  # no lidarseg, no sweeps between key frames
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        pipeline[:] = [step for step in pipeline if step.type != 'LoadLidarSegLabels']
        for step in pipeline:
            if step.type == 'PointToMultiViewDepth':
                step.with_segs = False
            if step.type == 'FuseAdjacentPoints':
                step.sweeps = []
        assert len(pipeline) >= steps
    cfg.model.update(seg_loss_weight=0.0)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert sample['inputs']['imgs'].shape[1] == 4
    model.train()
    batch = model.data_preprocessor(pseudo_collate([sample] * 2), True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)
    model.eval()
    with torch.no_grad():
        found = model.test_step(pseudo_collate([DATASETS.build(cfg.test_dataloader.dataset)[0]]))
    assert found[0].pred_occ.semantics.shape == (200, 200, 16)


def test_frames_are_completed():
    camera = dict(img_path='a.jpg', cam2img=np.eye(3), cam2ego=np.eye(4))
    item = complete_frame(dict(images=dict(A=camera)), 3)
    assert (item['token'], item['timestamp'], item['scene_token']) == ('frame000003', 1.5, 'scene of frame000003')
    np.testing.assert_array_equal(item['images']['A']['lidar2cam'], np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 2.0
    # the camera fires 2 m later: what lay at x = 0 is then at -2
    item = complete_frame(dict(images=dict(A=dict(camera, ego2global=moved))), 0)
    assert item['images']['A']['lidar2cam'][0][3] == -2
    (instance,) = instances_of([[1, 2, 3, 4, 5, 6, 0.1]], ['pedestrian'])
    assert instance['bbox_label_3d'] == 7 and instance['bbox_3d_isvalid']
    assert instances_of([[0] * 7], ['dog'], points=[0])[0]['bbox_label_3d'] == -1


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(images={}), "has neither 'images' nor 'lidar_points'"),
        (dict(ego2global=np.zeros((4, 4))), 'ego2global: no pose'),
        (dict(ego2global=np.diag([1, 1, -1, 1])), 'ego2global: no pose'),  # mirrored
        (dict(ego2global=np.eye(3)), r'ego2global: expected \(4, 4\) finite numbers, found shape \(3, 3\)'),
        (dict(ego2global='here'), r'ego2global: expected \(4, 4\) finite numbers'),
        (dict(images=dict(A=dict(img_path='a.jpg', cam2img=np.eye(3)))), 'images.A.cam2ego is missing'),
        (dict(images=dict(A=dict(cam2img=np.eye(3), cam2ego=np.eye(4)))), 'images.A.img_path is missing'),
    ],
)
def test_bad_frames(change, message):
    frame = dict(images=dict(A=dict(img_path='a.jpg', cam2img=np.eye(3), cam2ego=np.eye(4))))
    with pytest.raises(DataError, match=f"frame 'frame000000'.*{message}"):
        complete_frame({**frame, **change}, 0)


def test_two_frames_of_one_name(tmp_path):
    frame = dict(token='a', lidar_points=dict(lidar_path='a.bin'))
    with pytest.raises(DataError, match="two frames have the token 'a'"):
        write_custom_infos(tmp_path / 'infos.pkl', [frame, frame])
    assert not (tmp_path / 'infos.pkl').exists()


def test_mistakes_of_the_template(vehicle, tmp_path, capsys):
    root, _ = vehicle
    (tmp_path / 's').mkdir()
    rig = json.loads((root / 'rig.json').read_text())

    def told(arguments, frames=None, rig_text=None):
        if frames is not None:
            (tmp_path / 's/frames.json').write_text(json.dumps(frames))
            (tmp_path / 'rig.json').write_text(json.dumps(rig) if rig_text is None else rig_text)
        with pytest.raises(SystemExit) as stop:
            custom_rig.main(arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count('\n') == 1
        return error

    assert 'no/car/rig.json: No such file' in told(['no/car'])
    assert '--val moon: the scenes are scene-' in told([str(root), '--val', 'moon'])
    here = [str(tmp_path)]
    assert 'camera TOP is not in rig.json' in told(here, [dict(images=dict(TOP='a.jpg'))])
    assert 'frame 0: a.jpg: no such file' in told(here, [dict(images=dict(CAM_FRONT='a.jpg'))])
    assert "lacks 'timestamp'" in told(here, [dict(images={})])
    assert 'rig.json: not a JSON file' in told(here, [dict(images={})], '{')
