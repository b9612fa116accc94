"""The published FusionOcc configs: parameters, what each leaf changes, activation checkpointing, training masks."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from mmdet3d.registry import MODELS
from occforge.engine.config import load_config
from occforge.engine.partial_load import load_partially, parse_load_from
from occforge.errors import ConfigError, DataError
from occforge.models.losses import extend_mask
from test_fusion_occ import GRID, tiny_batch, tiny_model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'configs/fusion_occ'
PUBLISHED = FOLDER / 'fusion_occ.py'

MODULES = (
    'img_backbone',
    'img_neck',
    'img_view_transformer',
    'pre_process_net',
    'img_bev_encoder_backbone',
    'img_bev_encoder_neck',
    'lidar_encoder',
    'final_conv',
    'predicter',
)

# leaf -> the fields that it changes against fusion_occ.py
UNIFIED = {
    'lr': 2e-4,
    'optim_wrapper.clip_grad.max_norm': 35.0,
    'optim_wrapper.accumulative_counts': 8,
    'param_scheduler.1.eta_min': 1e-6,
    'custom_hooks': [],
    'train_dataloader.dataset.pipeline.0.data_config.rot': (0.0, 0.0),
}
LEAVES = {
    '': {
        'model.use_mask': True,
        'train_dataloader.batch_size': 1,
        'train_cfg.max_epochs': 24,
        'custom_hooks.1.init_updates': 10560,
    },
    '_base_mask': {'model.use_mask': True},
    '_base_wo_mask': {'model.use_mask': False},
    '_mask_to_wo_mask': {
        'model.use_mask': False,
        'param_scheduler.1.T_max': 4,
        'optim_wrapper.optimizer.lr': 2e-5,
        'load_from.path': 'work_dirs/fusion_occ_base_mask/epoch_24.pth',
        'load_from.min_loaded': 1.0,
    },
    '_bevdet_mask': {'model.use_mask': True, 'load_from.take': ['img_backbone']},
    '_bevdet_wo_mask': {'model.use_mask': False, 'load_from.take': ['img_backbone']},
    '_bevdet_occ_mask': {'model.use_mask': True, 'load_from.take': ['img_backbone', 'pre_process_net']},
    '_bevdet_occ_wo_mask': {'model.use_mask': False, 'load_from.take': ['img_backbone', 'pre_process_net']},
    '_ori_setting': {'custom_hooks.1.ramp': None, 'custom_hooks.0.type': 'SyncbnControlHook'},
    '_unified': UNIFIED,
    '_unified_wo_train_cam_mask': UNIFIED | {'model.use_mask': False},
    '_unified_wo_DepthSV': UNIFIED | {'model.depth_loss_weight': 0.0},
    '_unified_rayiou': UNIFIED | {'val_evaluator.1.type': 'RayIoU'},
    '_unified_condition_C': {'model.mask_extension': dict(where='occupied', radius=35.0)},
    '_unified_condition_C_full': {'model.mask_extension': dict(where='occupied', radius=None)},
    '_unified_condition_D': {'model.mask_extension': dict(where='free', radius=20.0)},
    '_unified_condition_D_prime': {'model.mask_extension': dict(where='free', radius=35.0)},
    '_unified_condition_D_full': {'model.mask_extension': dict(where='free', radius=None)},
    '_unified_calib': {'model.temperature': 1.5221},
    '_occ3d_nuscenes_swinT_student_64x64_128d': {'train_dataloader.dataset.pipeline.0.num_adjacent': 0},
    '_occ3d_nuscenes_swinT_student_cam64_nolidar': {'val_dataloader.dataset.pipeline.0.num_adjacent': 0},
}


def get(cfg, dotted):
    for part in dotted.split('.'):
        cfg = cfg[int(part)] if isinstance(cfg, (list, tuple)) else cfg[part]
    return cfg


@pytest.fixture(scope='module')
def published():
    return load_config(PUBLISHED)


def test_every_config_of_the_folder_is_known():
    found = {path.stem.removeprefix('fusion_occ') for path in FOLDER.glob('*.py')}
    assert {name for name in found if not name.startswith(('_synthetic', '_keyframe'))} == set(LEAVES)


@pytest.mark.parametrize('name', LEAVES)
def test_leaf(name, published):
    cfg = load_config(FOLDER / f'fusion_occ{name}.py')
    for dotted, value in LEAVES[name].items():
        found = get(cfg, dotted)
        assert found == value or list(found) == list(value), dotted
    if 'student' not in name:  # else another network
        changed = {dotted.split('.')[1] for dotted in LEAVES[name] if dotted.startswith('model.')}
        for field in set(published.model) | set(cfg.model):
            assert field in changed or cfg.model.get(field) == published.model.get(field), field
    assert cfg.custom_imports.imports == ['occforge'] and cfg.default_scope == 'mmdet3d'


@pytest.mark.parametrize('name', [name for name in LEAVES if 'student' in name])
def test_the_students_have_the_published_parameters(name):
    folder = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs'))
    if not (folder / 'FusionOcc_params.json').is_file():
        pytest.skip('FusionOcc_params.json not found: set OCCFORGE_SPECS to the folder that holds it')
    expected = json.loads((folder / 'FusionOcc_params.json').read_text())[f'fusion_occ{name}']
    model = MODELS.build(load_config(FOLDER / f'fusion_occ{name}.py').model)
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    for key, shape in expected.items():
        if key.startswith('lidar_encoder') and len(shape) == 5:  # published as (kx, ky, kz, in, out)
            expected[key] = [shape[4], *shape[:4]]
    assert found == expected


@pytest.fixture(scope='module')
def full_size(published):
    """The model and, from the published list of tensors, what loads a made-up checkpoint of any of its layouts."""
    folder = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs'))
    if not (folder / 'FusionOcc_params.json').is_file():
        pytest.skip('FusionOcc_params.json not found: set OCCFORGE_SPECS to the folder that holds it')
    shapes = json.loads((folder / 'FusionOcc_params.json').read_text())
    model = MODELS.build(published.model)

    def load(layout, load_from):
        # one number, seen as a tensor of the right shape: hundreds of megabytes less
        state = {name: torch.zeros(()).expand(shape) for name, shape in shapes[layout].items()}
        spec = parse_load_from(load_from)
        return load_partially(model, spec, read=lambda path: dict(state_dict=state), fingerprints=False)

    return model, load


@pytest.mark.parametrize('layout', ['fusion_occ', 'fusion_occ@spconv2_layout'])
def test_both_official_layouts_load_whole(full_size, layout):
    _, load = full_size
    report = load(layout, dict(path='fusion_occ.pth', min_loaded=1.0))
    assert not (report.mismatched or report.missing or report.unexpected)
    assert len(report.filled) == 735 and report.share == 1.0
    # sparse kernels of the other layout are turned, seen by their shape
    assert len(report.adapted) == (13 if layout == 'fusion_occ' else 0)
    assert report.loaded_parameters == 109_090_524


def test_what_bevdet_gives(full_size):
    """The users' table, measured: backbone whole, of the rest the frame encoder of the occupancy model alone."""
    _, load = full_size

    def filled(layout, load_from):
        names = load(layout, load_from).filled
        return {module: sum(name.split('.')[0] == module for name in names) for module in MODULES}

    detection, occupancy = 'bevdet-stbase-4d-stereo-512x1408-cbgs', 'bevdet-occ-stbase-4d-stereo-512x1408-24e'
    for name, layout, others in (('', detection, {}), ('_occ', occupancy, {'pre_process_net': 18})):
        expected = dict.fromkeys(MODULES, 0) | {'img_backbone': 353} | others
        for mask in ('mask', 'wo_mask'):
            cfg = load_config(FOLDER / f'fusion_occ_bevdet{name}_{mask}.py')
            assert filled(layout, cfg.load_from) == expected
        report = load(layout, 'bevdet.pth')
        weights = [name for name in report.filled if not name.endswith('num_batches_tracked')]
        left = {name for name in weights if name.split('.')[0] not in {'img_backbone', *others}}
        # where all of it is taken, one bias of 18 numbers happens to fit as well
        assert left == ({'predicter.2.bias'} if layout == occupancy else set())
        assert {name for name, *_ in report.mismatched} >= {'img_neck.conv.0.weight', 'img_neck.conv.3.weight'}


def test_the_folder_of_class_images_is_one_field():
    cfg = load_config(PUBLISHED, ['img_seg_dir=imgseg'])
    assert [step for step in cfg.train_dataloader.dataset.pipeline if step.get('img_seg_dir') == 'imgseg']


def test_checkpointing_is_one_field():
    for value in (True, False):
        cfg = load_config(PUBLISHED, [f'with_cp={value}', f'with_cp_3d={value}']).model
        parts = (cfg.img_backbone, cfg.pre_process, cfg.occ_encoder_backbone, cfg.occ_encoder_neck)
        assert [part.with_cp for part in parts] == [value] * 4


def test_checkpointing_changes_nothing():
    inputs, samples = tiny_batch()
    states, grads = [], []
    for with_cp in (False, True):
        model = tiny_model(
            occ_encoder_backbone=dict(
                type='CustomResNet3D', num_layer=[1, 1], num_channels=[8, 8], stride=[1, 2], with_cp=with_cp
            ),
            occ_encoder_neck=dict(type='LSSFPN3D', in_channels=16, out_channels=8, with_cp=with_cp),
        )
        sum(model(inputs, samples, mode='loss').values()).backward()
        states.append(copy.deepcopy(model.state_dict()))
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    # running statistics and batch counters too: the second forward pass must not count
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-6)


def test_checkpointed_swin_equals_the_plain_one():
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = MODELS.build(
            dict(
                type='SwinTransformer',
                embed_dims=8,
                depths=[1, 2],
                num_heads=[2, 2],
                strides=(4, 2),
                window_size=4,
                out_indices=(0, 1),
                drop_path_rate=0.3,  # its random numbers repeat
                with_cp=with_cp,
            )
        ).train()
        torch.manual_seed(1)
        outputs = backbone(torch.rand(2, 3, 32, 48))
        sum(output.square().sum() for output in outputs).backward()
        grads.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
    torch.testing.assert_close(grads[1], grads[0])


def test_chunked_loss_equals_the_plain_one():
    inputs, samples = tiny_batch()
    values, grads = [], []
    for loss in (dict(type='OccupancyLoss'), dict(type='ChunkedOccupancyLoss', chunk_size=700)):
        model = tiny_model(loss_occ=loss, use_mask=True)
        values.append(model(inputs, samples, mode='loss')['loss_occ'])
        values[-1].backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_extended_masks():
    semantics = torch.full((10, 10, 2), 17)
    semantics[::3] = 4
    mask = torch.zeros(10, 10, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    box = (-2.0, -2.0, 0.0, 2.0, 2.0, 0.8)  # 0.4 m voxels
    for where, wanted in (('occupied', semantics != 17), ('free', semantics == 17)):
        assert torch.equal(extend_mask(mask, semantics, 17, box, where), mask | wanted)
        expected = mask.clone()
        for i in range(10):
            for j in range(10):
                if ((i - 4.5) * 0.4) ** 2 + ((j - 4.5) * 0.4) ** 2 <= 1.0:
                    expected[i, j] |= wanted[i, j]
        assert torch.equal(extend_mask(mask, semantics, 17, box, where, 1.0), expected)
    with pytest.raises(DataError, match=r'\(5, 10, 2\), the labels \(10, 10, 2\)'):
        extend_mask(mask[:5], semantics, 17, box, 'free')


def test_an_extended_mask_supervises_more():
    inputs, samples = tiny_batch()
    model = tiny_model(use_mask=True, mask_extension=dict(where='occupied', radius=None))
    for sample in samples:
        sample.gt_occ.mask_camera = torch.zeros(GRID, dtype=torch.bool)
    assert float(model(inputs, samples, mode='loss')['loss_occ'].detach()) > 0.1
    with pytest.raises(ConfigError, match=r'mask_extension is .*expected dict'):
        tiny_model(mask_extension=dict(where='near'))


def test_temperature_divides_the_logits_alone():
    inputs, samples = tiny_batch(batch=1)
    plain, tempered = tiny_model().eval(), tiny_model(temperature=2.0).eval()
    with torch.no_grad():
        torch.testing.assert_close(tempered(inputs, samples, mode='tensor') * 2, plain(inputs, samples, mode='tensor'))
