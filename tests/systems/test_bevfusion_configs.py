"""Every config of BEVFusion: it builds, has the published tensors, and its fields do what they say."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from benchmarks.model import Probe
from mmdet3d.registry import DATASETS, METRICS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from occforge.datasets.info_files import load_infos
from occforge.datasets.preparation.sample_files import make_dataset
from occforge.engine import load_config
from occforge.engine.mit_config import model_fields
from occforge.engine.partial_load import Source
from occforge.engine.trainable import Trainability
from occforge.errors import ConfigError
from occforge.systems.bevfusion.bevfusion import MIT_KEY_MAP

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
PORT = 'bevfusion_{}_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d'
MULTITASK = 'nuscenes/det/transfusion/secfpn/camera+lidar/swint_v0p075/multitask.yaml'
# config -> key of the list of published parameters, tensors
PUBLISHED = {
    f'bevfusion/{PORT.format("lidar-cam")}.py': (f'mmdet3d_port/{PORT.format("lidar-cam")}', 582),
    f'bevfusion/{PORT.format("lidar")}.py': (f'mmdet3d_port/{PORT.format("lidar")}', 306),
    'bevfusion/bevfusion_multitask.py': ('mit/(unofficial multi-task = convfuser.yaml + heads.map in_channels 512, 6 '
                                         'classes)', 596),
    MULTITASK: ('mit/(unofficial multi-task = convfuser.yaml + heads.map in_channels 512, 6 classes)', 596),
    **{
        f'nuscenes/{name}': (f'mit/nuscenes/{name}', number)
        for name, number in (
            ('det/transfusion/secfpn/camera+lidar/swint_v0p075/convfuser.yaml', 582),
            ('det/transfusion/secfpn/lidar/voxelnet_0p075.yaml', 306),
            ('seg/fusion-bev256d2-lss.yaml', 465),
            ('seg/camera-bev256d2.yaml', 357),
            ('seg/lidar-centerpoint-bev128.yaml', 224),
            ('det/centerhead/lssfpn/camera/256x704/swint/default.yaml', 637),
        )
    },
}  # fmt: skip
CUSTOM = [
    'bevfusion_4cam_80lidar', 'bevfusion_4cam_80lidar_8classes', 'bevfusion_4cam_80lidar_finetune',
    'bevfusion_4cam_freeze_encoder', 'bevfusion_4cam_progressive', 'bevfusion_4cam_other_domain', 'baseline_scratch',
    'finetune',
]  # fmt: skip
SMALL = sorted(
    str(path.relative_to(CONFIGS))
    for path in (
        *CONFIGS.glob('bevfusion/*synthetic*.py'),
        CONFIGS / 'bevfusion/bevfusion_keyframe.py',
        *CONFIGS.glob('custom/city_bevfusion*.py'),
    )
)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet3d')


def build(cfg):
    return MODELS.build(cfg.model)


def config(name, overrides=()):
    return load_config(CONFIGS / name, overrides, note=lambda text: None)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_tensors(name):
    key, number = PUBLISHED[name]
    state = {k: tuple(v.shape) for k, v in build(config(name)).state_dict().items()}
    assert len(state) == number
    folder = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs'))
    if not (folder / 'BEVFusion_params.json').is_file():
        pytest.skip('BEVFusion_params.json not found: set OCCFORGE_SPECS to the folder that holds it')
    rename = Source('list', key_map=MIT_KEY_MAP).rename
    expected = {rename(k): tuple(v) for k, v in json.loads((folder / 'BEVFusion_params.json').read_text())[key].items()}
    assert set(state) == set(expected)
    for tensor, shape in expected.items():
        if len(shape) == 5 and shape != state[tensor]:  # MIT's sparse kernels: (kx, ky, kz, in, out)
            shape = (shape[-1], *shape[:-1])
        assert state[tensor] == shape, tensor


@pytest.mark.parametrize('name', [*(f'custom/{name}.yaml' for name in CUSTOM), *SMALL])
def test_every_other_config_builds(name):
    cfg = config(name)
    build(cfg)
    names = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert names[-1] == 'PackBEVInputs'
    if 'LoadBEVSegmentation' in names:  # after turns, before flips, which turn the masks themselves
        order = ('BEVFusionGlobalRotScaleTrans', 'LoadBEVSegmentation', 'BEVFusionRandomFlip3D')
        places = [names.index(each) for each in order]
        assert places == sorted(places)


def test_the_users_finetune_file():
    cfg = config('custom/bevfusion_4cam_80lidar_finetune.yaml')
    voxels = cfg.model.data_preprocessor.voxelize_cfg
    assert (voxels.max_num_points, voxels.max_voxels) == (20, [150000, 200000])
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        data = loader.dataset
        assert (data.type, data.data_root, data.num_cameras) == ('CustomDataset', 'data/custom_dataset/', 4)
        assert data.pipeline[1].reduce_beams == 80
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):  # by the info file: there are no tables
        metric = dict(type='BEVBoxMetric', ann_file='custom_infos_val.pkl', data_root='data/custom_dataset/')
        assert evaluator[0] == metric and evaluator[1].type == 'BEVMapMetric'
    assert cfg.optim_wrapper.optimizer.lr == 5e-5 and cfg.train_cfg.max_epochs == 12
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert {name: keys[name].lr_mult for name in keys} == {'encoders': 0.1, 'fuser': 0.5, 'decoder': 0.5, 'heads': 1.0}
    assert cfg.param_scheduler[0].end == 500 and cfg.param_scheduler[1].eta_min_ratio == 1e-5


def test_the_users_command_line():
    changes = ['optimizer.lr=1e-4', 'data.workers_per_gpu=0', 'num_cameras=5']
    cfg = config('custom/bevfusion_4cam_80lidar_8classes.yaml', changes)
    assert cfg.optim_wrapper.optimizer.lr == 1e-4 and cfg.val_dataloader.num_workers == 0
    assert cfg.test_dataloader.dataset.num_cameras == 5


def test_eight_classes_reach_every_place():
    cfg = config('custom/bevfusion_4cam_80lidar_8classes.yaml')
    names = list(cfg.object_classes)
    assert len(names) == 8
    head = build(cfg).bbox_head
    assert list(head.class_names) == names and head.num_classes == 8
    assert [names[i] for i in head.small_classes] == ['pedestrian', 'traffic_cone']
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert list(loader.dataset.classes) == names
    (step,) = (step for step in cfg.train_dataloader.dataset.pipeline if step['type'] == 'ObjectNameFilter')
    assert list(step['classes']) == names


def test_smaller_voxels_change_all_that_hangs_on_them():
    changes = ['voxel_size=[0.05,0.05,0.2]', 'model.pts_middle_encoder.sparse_shape=[2160,2160,41]']
    model = build(config('custom/bevfusion_4cam_80lidar.yaml', changes))
    assert model.bbox_head.plane_size == (270, 270) and model.view_transform.grid_size[:2] == (540, 540)
    assert model.map_head.transform.input_scope[0][2] == 0.4
    with pytest.raises(ConfigError, match=r'pts_middle_encoder\.sparse_shape is \[1440, 1440, 41\]'):
        build(config('custom/bevfusion_4cam_80lidar.yaml', changes[:1]))


def test_strategies_train_what_they_say():
    model = build(config('custom/bevfusion_4cam_freeze_encoder.yaml'))
    cfg = config('custom/bevfusion_4cam_freeze_encoder.yaml')
    frozen = list(cfg.get('freeze') or ['encoders.camera', 'encoders.lidar'])
    Trainability(model).freeze(frozen)
    training = {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad}
    assert training == {'fusion_layer', 'pts_backbone', 'pts_neck', 'bbox_head', 'map_head'}
    assert cfg.freeze_encoder is True and cfg.optim_wrapper.optimizer.lr == 1e-4
    assert not cfg.optim_wrapper.get('paramwise_cfg')
    model = build(config('custom/bevfusion_4cam_progressive.yaml'))
    stages = Trainability(model)
    for patterns, expected in (
        (['heads'], {'bbox_head', 'map_head'}),
        (['heads', 'decoder'], {'bbox_head', 'map_head', 'pts_backbone', 'pts_neck'}),
        (['heads', 'decoder', 'fuser'], {'bbox_head', 'map_head', 'pts_backbone', 'pts_neck', 'fusion_layer'}),
    ):
        stages.train_only(patterns)
        assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == expected


def test_parameter_counts_by_module():
    model = build(config('bevfusion/bevfusion_multitask.py'))
    found = {
        name: round(sum(p.numel() for p in module.parameters()) / 1e6, 2) for name, module in model.named_children()
    }
    expected = dict(
        img_backbone=27.52, img_neck=1.59, view_transform=1.61, pts_middle_encoder=2.69, fusion_layer=0.77,
        pts_backbone=4.28, pts_neck=0.30, bbox_head=1.03, map_head=4.72,
    )  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_fields_in_mits_tree():
    path = Path('mine.yaml')
    tree = dict(
        encoders=dict(camera=None, lidar=dict(voxelize=dict(max_num_points=20), backbone=dict(sparse_shape=[1, 2, 3]))),
        fuser=None,
        heads=dict(map=dict(loss='xent')),
        loss_scale=dict(map=2.0),
    )
    assert model_fields(tree, path) == dict(
        img_backbone=None, img_neck=None, view_transform=None, fusion_layer=None,
        data_preprocessor=dict(voxelize_cfg=dict(max_num_points=20)), pts_middle_encoder=dict(sparse_shape=[1, 2, 3]),
        map_head=dict(loss='xent'), loss_scale=dict(map=2.0),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r'mine\.yaml: model\.encoders\.radar: no such part'):
        model_fields(dict(encoders=dict(radar=dict())), path)


def test_pillars_of_the_published_grid():
    cfg = config('bevfusion/bevfusion_lidar_pointpillars.py')
    model = build(cfg)
    assert model.pts_middle_encoder.output_shape == (512, 512) and model.bbox_head.plane_size == (128, 128)
    ranges = [step['point_cloud_range'] for step in cfg.train_dataloader.dataset.dataset.pipeline
              if 'point_cloud_range' in step]  # fmt: skip
    assert ranges == [cfg.model.data_preprocessor.voxelize_cfg.point_cloud_range] * 2


def test_num_samples_of_the_fast_city_configs():
    for rig in ('4cam', 'lidar'):
        cfg = config(f'custom/city_bevfusion_{rig}_80beam_finetune.py', ['num_samples=0.25'])
        assert cfg.train_dataloader.dataset.num_samples == 0.25 and 'num_samples' not in cfg.val_dataloader.dataset


@pytest.mark.parametrize('rig', ['4cam', 'lidar'])
def test_two_thirds_of_the_voxels_in_the_city(rig):
    models = [build(config(f'custom/city_bevfusion_{rig}_80beam{name}.py')) for name in ('_finetune', '_fine_voxels')]
    coarse, fine = models
    assert coarse.bbox_head.plane_size == (64, 64) and fine.bbox_head.plane_size == (96, 96)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]


def test_fields_reach_the_steps_of_the_lidar_pipeline():
    changes = ['reduce_beams=16', 'map_classes=[walkway,divider]', 'point_cloud_range=[-25.6,-25.6,-5,25.6,25.6,3]']
    cfg = config('custom/city_bevfusion_lidar_80beam.py', changes)
    loaders = [cfg[f'{name}_dataloader'].dataset for name in ('train', 'val', 'test')]
    for data in loaders:
        steps = {step['type']: step for step in data.pipeline}
        assert not data.modality.use_camera and steps['BEVLoadPoints']['reduce_beams'] == 16
        assert steps['LoadBEVSegmentation']['classes'] == data.map_classes == ['walkway', 'divider']
        for name in {'PointsRangeFilter', 'ObjectRangeFilter'} & set(steps):
            assert steps[name]['point_cloud_range'][0] == -25.6
        assert data.classes == cfg.model.bbox_head.class_names
    steps = {step['type']: step for step in loaders[0].pipeline}
    assert steps['ObjectNameFilter']['classes'] == loaders[0].classes


# ----------------------------------------------------------------------------------------------------------- real data
def test_the_real_key_frame_goes_through_everything(tmp_path):
    """Of its 69 boxes 68 have one of the ten classes. Three of these hold no point of any sensor, and training leaves
    such boxes out; the other 65 are targets, 15 of which lie beyond the keyframe config's range."""
    source = os.environ.get('OCCFORGE_REAL_DATA')
    if not source:
        pytest.skip('OCCFORGE_REAL_DATA is not set')
    make_dataset(Path(source) / 'nuscenes_keyframe', tmp_path, labels=False, workers=1)
    cfg = config('bevfusion/bevfusion_keyframe.py', [f'data_root={tmp_path}/', 'voxel_size=[0.2,0.2,0.2]'])
    instances = load_infos(tmp_path / 'nuscenes_infos_train.pkl')[1][0]['instances']
    labelled = [item for item in instances if item['bbox_label_3d'] >= 0]
    unseen = [item for item in labelled if not item['num_lidar_pts'] + item['num_radar_pts']]
    assert (len(instances), len(labelled), len(unseen)) == (69, 68, 3)
    everything = copy.deepcopy(cfg.train_dataloader.dataset)
    for step in everything.pipeline:
        if 'point_cloud_range' in step:
            step['point_cloud_range'] = [-102.4, -102.4, -5.0, 102.4, 102.4, 3.0]
    assert len(DATASETS.build(everything)[0]['data_samples'].gt_instances_3d) == 65

    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert len(sample['data_samples'].gt_instances_3d) == 50
    torch.manual_seed(0)
    model = build(cfg).train()
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    with Probe(model, torch.device('cpu')) as probe:
        logged = model.train_step(pseudo_collate([sample]), optim)
    assert all(torch.isfinite(value) for value in logged.values())
    assert all(seconds > 0 for seconds in probe.forward_seconds.values())
    data = model.data_preprocessor(pseudo_collate([sample]), True)
    with torch.no_grad():
        plane = model.extract_feat(data['inputs'], [data['data_samples'][0].metainfo])
        predictions = model.bbox_head(model.planes(plane)['object'])
        targets = model.bbox_head.get_targets([data['data_samples'][0].gt_instances_3d], predictions)
    assert targets['num_pos'] == 50  # each box has its prediction
    assert (targets['heatmap'] == 1).sum() <= 50

    test = DATASETS.build(cfg.test_dataloader.dataset)
    metric = METRICS.build(cfg.test_evaluator[0])
    metric.dataset_meta = test.metainfo
    predicted = model.eval().test_step(pseudo_collate([test[0]]))[0]
    truth = sample['data_samples'].gt_instances_3d
    truth.scores_3d = torch.ones(len(truth))
    numbers = []
    for instances in (truth, predicted.pred_instances_3d):
        metric.process({}, [dict(sample_idx=predicted.sample_idx, pred_instances_3d=instances)])
        numbers.append(metric.evaluate(1))
    # five of the ten classes have a box within their ranges
    assert numbers[0]['present/mAP'] > 0.999 and abs(numbers[0]['mAP'] - 0.5) < 1e-3
    assert all(0 <= numbers[1][name] <= 1 for name in ('mAP', 'NDS', 'present/mAP'))
