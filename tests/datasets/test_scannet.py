"""Synthetic rooms through ScanNet's preparation, data sets, CLIP features and a training step."""

import itertools
import os
from pathlib import Path

import numpy as np
import precompute_clip_feats as clip_tool
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from occforge.datasets import synthetic_rooms
from occforge.datasets.info_files import load_pickle
from occforge.datasets.preparation.scannet import pack_clip, prepare
from occforge.datasets.rgbd import label_image, sample_frame
from occforge.datasets.synthetic_rooms import make_room
from occforge.datasets.transforms.scannet import INTRINSICS, read_cloud, read_ids, read_image
from occforge.engine import load_config
from occforge.errors import DataError
from occforge.evaluation import UnifiedSegMetric
from occforge.models.minkowski import voxelize_points

ROOT = Path(__file__).parents[2]

POINTS = 1500


@pytest.fixture(scope='module')
def rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp('rooms')
    synthetic_rooms.generate(root / 'exports', rooms=2, frames=2, held_out=1, quiet=True)
    for stage in ('sv', 'mv'):
        prepare('scannet200', stage, root / 'exports', root / f'scannet200-{stage}', num_sample=POINTS, quiet=True)
    return root


def dataset(rooms, config, split='train'):
    cfg = load_config(str(ROOT / 'configs' / 'ESAM' / f'{config}.py'))
    init_default_scope('mmdet3d')
    given = cfg[f'{split}_dataloader'].dataset
    stage = 'mv' if 'online' in config else 'sv'
    given.data_root = str(rooms / f'scannet200-{stage}') + '/'
    for step in given.pipeline:
        if step.type == 'LoadAdjacentDataFromFile':
            step.update(num_sample=POINTS, rec_root=str(rooms / 'scannet200'))
            if step.num_frames > 0:
                step.num_frames = 2
        if step.type == 'LoadClipFeature':
            step.data_root = given.data_root
    return cfg, DATASETS.build(given)


def test_files_are_as_the_layout_says(rooms):
    root = rooms / 'scannet200-sv'
    for split in ('train', 'val'):
        content = load_pickle(root / f'scannet200_sv_oneformer3d_infos_{split}.pkl')
        assert len(content['metainfo']['categories']) == 198 and content['metainfo']['info_version'] == '1.1'
        (item,) = content['data_list']
        name = item['lidar_points']['lidar_path']
        assert name == f'scene000{int(split == "val")}_00_0.bin' == item['super_pts_path']
        points = read_cloud(root / 'points' / name)
        sp = read_ids(root / 'super_points' / name)
        assert points.shape == (POINTS, 6) and sorted(set(sp)) == list(range(sp.max() + 1))
        assert np.abs(points[:, :3].mean(0)).max() < 0.15  # centred
        assert (root / item['img_path']).is_file()
        semantic = read_ids(root / 'semantic_mask' / name)
        assert {1, 3} <= set(semantic)  # wall and floor, before they are exchanged
    scenes = load_pickle(rooms / 'scannet200-mv' / 'scannet200_mv_oneformer3d_infos_train.pkl')['data_list']
    assert scenes[0]['pts_paths'] == ['points/scene0000_00/0.bin', 'points/scene0000_00/40.bin']
    assert len(scenes[0]['poses']) == len(scenes[0]['img_paths']) == 2


def test_superpoints_keep_to_instances(rooms):
    root = rooms / 'scannet200-sv'
    sp, instance = (read_ids(root / part / 'scene0000_00_0.bin') for part in ('super_points', 'instance_mask'))
    pure = sum(np.bincount(instance[sp == each]).max() for each in np.unique(sp))
    assert pure / len(sp) > 0.9


@pytest.mark.parametrize('config', ['ESAM_sv_bifusion_scannet', 'ESAM_online_bifusion_scannet'])
def test_projection_of_what_was_exported(rooms, config):
    _, data = dataset(rooms, config)
    uv = data[0]['inputs']['clip_uv']
    assert torch.isfinite(uv).all(-1).float().mean() > 0.99


@pytest.mark.parametrize('config', ['ESAM_sv_3d_scannet', 'ESAM_online_3d_scannet', 'ESAM_online_scannet200_CA'])
def test_a_training_step_and_an_evaluation(rooms, config, monkeypatch):
    folder = 'ESAM_CA' if config.endswith('CA') else 'ESAM'
    name = f'../{folder}/{config}'
    cfg, data = dataset(rooms, name)
    small = dict(planes=[4, 4, 6, 8, 8, 6, 6, 8], init_dim=4, layers=[1] * 8)
    model = cfg.model
    model.backbone.update(small)
    model.pool.channel_proj = model.decoder.in_channels = 8
    model.voxel_size = 0.05
    if 'memory' in model:
        model.memory.in_channels = [4, 4, 6, 8]
    net = MODELS.build(model)
    batch = net.data_preprocessor(pseudo_collate([data[0], data[0]]), True)
    losses = net.loss(**{'batch_inputs_dict': batch['inputs'], 'batch_data_samples': batch['data_samples']})
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert net.backbone.conv0p1s1.kernel.grad.abs().sum() > 0

    cfg, data = dataset(rooms, name, 'val')
    batch = net.eval().data_preprocessor(pseudo_collate([data[0]]), False)
    with torch.no_grad():
        found = net.predict(batch['inputs'], batch['data_samples'])
    metric = UnifiedSegMetric(eval_mode='cat_agnostic', min_region_size=20)
    metric.dataset_meta = data.metainfo
    metric.process(None, [found[0].to_dict()])
    numbers = metric.compute_metrics(metric.results)
    assert {'all_ap', 'all_ap_50%', 'all_ap_25%', 'mcov', 'mwcov', 'mrec', 'mprec', 'miou'} <= set(numbers)


@pytest.mark.parametrize('config', ['ESAM_sv_bifusion_scannet', 'ESAM_online_bifusion_scannet'])
def test_augmentation_leaves_the_images_alone(rooms, config):
    cfg, _ = dataset(rooms, config)
    given = cfg.train_dataloader.dataset
    for step in given.pipeline:
        if step.type == 'RandomFlip3D':
            step.flip_ratio_bev_horizontal = step.flip_ratio_bev_vertical = 1.0
    packed = DATASETS.build(given)[0]['inputs']['img']
    images = [packed] if packed.dim() == 3 else list(packed)
    folder = rooms / 'exports' / '2D' / 'scene0000_00' / 'color'
    stored = [torch.from_numpy(read_image(path)) for path in sorted(folder.glob('*.jpg'))]
    assert all(any(torch.equal(image, each) for each in stored) for image in images)


def truth_sample(data):
    """The labels of a sample as its prediction."""
    truth = data[0]['data_samples'].eval_ann_info
    ids = truth['pts_instance_mask']
    numbers = [each for each in np.unique(ids) if each >= 2]
    semantic = truth['pts_semantic_mask']
    return dict(
        eval_ann_info=truth,
        pred_pts_seg=dict(
            pts_instance_mask=[np.stack([ids == each for each in numbers])],
            instance_labels=np.array([semantic[ids == each][0] - 2 for each in numbers]),
            instance_scores=np.linspace(1, 0.5, len(numbers)),
            pts_semantic_mask=[np.minimum(semantic, 199)],
        ),
    )


@pytest.mark.parametrize('mode', ['cat_agnostic', 'multi_class'])
def test_truth_scores_one(rooms, mode):
    _, data = dataset(rooms, 'ESAM_online_3d_scannet', 'val')
    metric = UnifiedSegMetric(eval_mode=mode, min_region_size=20, class_groups=dict(head=['chair', 'cabinet']))
    metric.dataset_meta = data.metainfo
    metric.process(None, [truth_sample(data)])
    numbers = metric.compute_metrics(metric.results)
    for name in ('all_ap', 'all_ap_50%', 'all_ap_25%', 'mcov', 'mwcov', 'mrec', 'mprec', 'miou'):
        assert numbers[name] == pytest.approx(1.0), name


def test_clip_features_as_commands(rooms, capsys):
    root = str(rooms / 'scannet200-sv')
    infos = [f'{root}/scannet200_sv_oneformer3d_infos_{split}.pkl' for split in ('train', 'val')]
    command = ['--info-pkl', *infos, '--data-root', root, '--output-root', root, '--random-weights']
    clip_tool.main([*command, '--verify', '2'])
    assert '2 images: 2 files written, 0 were there' in capsys.readouterr().out
    stored = torch.load(f'{root}/clip_feat/scene0000_00/color/0.pt', weights_only=True)
    assert stored['pix'].shape == (192, 60, 80) and stored['global'].shape == (768,)
    assert stored['pix'].dtype == torch.float16
    clip_tool.main(command)
    assert '0 files written, 2 were there' in capsys.readouterr().out
    written = pack_clip(root, 'scannet200_sv')
    assert [counts for counts in written.values()] == [(1, 1), (1, 1)]
    item = load_pickle(f'{root}/scannet200_sv_oneformer3d_infos_train_clip.pkl')['data_list'][0]
    assert item['clip_feat_path'] == 'clip_feat/scene0000_00/color/0.pt'
    _, data = dataset(rooms, 'ESAM_sv_bifusion_scannet')
    inputs = data[0]['inputs']
    assert inputs['clip_pix'].shape == (192, 60, 80) and 'img' not in inputs and bool(inputs['clip_mask'])
    torch.save({'pix': stored['pix'] + 1, 'global': stored['global']}, f'{root}/clip_feat/scene0000_00/color/0.pt')
    with pytest.raises(SystemExit):
        clip_tool.main([*command, '--verify', '2'])


def test_rooms_are_the_same_for_a_seed(tmp_path, rooms):
    synthetic_rooms.generate(tmp_path, rooms=2, frames=2, held_out=1, quiet=True)
    for name in (
        '2D/scene0000_00/depth/40.png',
        'scans/scene0000_00/scene0000_00_vh_clean_2.ply',
        'masks/scene0000_00/0.png',
    ):
        assert (tmp_path / name).read_bytes() == (rooms / 'exports' / name).read_bytes()


def test_neighbouring_cabinets_differ_by_pattern_alone():
    room = make_room(np.random.default_rng(0))
    rows: dict = {}
    for part in room.parts:
        if part.category == 'cabinet':
            rows.setdefault(part.centre[1] > 0, {})[part.instance] = part
    assert len(rows) == 2
    for cabinets in (list(row.values()) for row in rows.values()):
        assert len(cabinets) > 1
        for one, other in itertools.pairwise(cabinets):
            assert one.pattern != other.pattern and one.period == other.period
            np.testing.assert_array_equal(one.colours, other.colours)


def test_frames_nearer_to_each_other(tmp_path, rooms):
    summary = prepare('scannet', 'sv', rooms / 'exports', tmp_path, num_sample=POINTS, step=40, quiet=True)
    infos = load_pickle(tmp_path / 'scannet_sv_oneformer3d_infos_train.pkl')['data_list']
    assert len(infos) == 2 and summary['lost'] == 0  # of 200 raw frames it would be the first alone


def test_missing_files_are_named(tmp_path, rooms):
    with pytest.raises(DataError, match='2D: no such folder'):
        prepare('scannet', 'sv', tmp_path, quiet=True)
    (tmp_path / '2D').symlink_to(rooms / 'exports' / '2D')
    with pytest.raises(DataError, match=r'labels\.combined\.tsv'):
        prepare('scannet', 'sv', tmp_path, quiet=True)


def test_smaller_masks_stay_visible():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 1:3, 1:3] = True
    masks[1] = True
    image = label_image(masks)
    assert image[1, 1] == 1 and image[0, 0] == 0


def test_few_points_without_a_mask_make_one_group():
    depth = np.full((20, 20), 1000.0)
    labels = np.ones((20, 20), int)
    labels[0, :3] = 0
    rgb = np.zeros((20, 20, 3), np.uint8)
    found = sample_frame(rgb, depth, np.eye(4), (20, 20, 9.5, 9.5), labels, 400, clusters=8)
    assert found['superpoints'].max() == 1


@pytest.mark.skipif('OCCFORGE_REAL_DATA' not in os.environ, reason='OCCFORGE_REAL_DATA is not set')
def test_real_scene_is_voxelised_and_goes_through_the_network():
    points = read_cloud(Path(os.environ['OCCFORGE_REAL_DATA']) / 'scannet' / 'scene0000_00.bin')
    assert points.shape == (40684, 6) and INTRINSICS['scannet'][0] == 577.870605
    xyz = torch.from_numpy(points[:, :3])
    voxels = voxelize_points(xyz / 0.02, torch.from_numpy(points[:, 3:]) / 255, torch.zeros(len(xyz)).long(), 1)
    assert len(voxels.tensor.coords) == len(np.unique(np.floor(points[:, :3] / np.float32(0.02)), axis=0))
    net = MODELS.build(dict(type='Res16UNet34C', planes=[4] * 8, init_dim=4, layers=[1] * 8)).eval()
    with torch.no_grad():
        assert torch.isfinite(net(voxels.tensor).features).all()
