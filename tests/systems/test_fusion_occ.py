"""FusionOcc: built from its configs, trained for a step and asked for predictions on tiny random inputs."""

import copy
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmcv.transforms import Compose
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from occforge.engine.config import load_config
from occforge.errors import ConfigError
from occforge.models.averaging import flip_inputs
from occforge.systems.fusionocc import ImagePretrainHook
from torch.utils.data import DataLoader, Subset

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
SYNTHETIC = CONFIGS / 'fusion_occ/fusion_occ_synthetic.py'

GRID = (20, 20, 4)  # 0.8 m voxels
RANGE = [-8.0, -8.0, -1.0, 8.0, 8.0, 2.2]
INPUT_SIZE = (32, 64)


def _specs(name):
    folder = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs'))
    if not (folder / name).is_file():
        pytest.skip(f'{name} not found: set OCCFORGE_SPECS to the folder that holds it')
    return json.loads((folder / name).read_text())


def test_official_size_has_the_published_parameters():
    expected = _specs('FusionOcc_params.json')
    cfg = load_config(CONFIGS / '_base_/models/fusion_occ.py').model
    model = MODELS.build(cfg)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert found in [expected[name] for name in ('fusion_occ', 'fusion_occ@spconv2_layout')]
    assert sum(parameter.numel() for parameter in model.parameters()) == 109_090_524


# ---------------------------------------------------------------------------------------------------- tiny model


def tiny_config(**changes):
    """A model of a few thousand parameters that uses every option of the small config."""
    config = dict(
        type='FusionOCC',
        num_adj=0,
        out_dim=8,
        lidar_out_channel=4,
        key_ego='lidar',
        img_backbone=dict(
            type='mmdet.ResNet',
            depth=18,
            base_channels=4,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(1, 2),
            norm_eval=False,
        ),
        img_neck=dict(type='FPN_LSS', in_channels=24, out_channels=8, extra_upsample=None, input_feature_index=(0, 1)),
        img_view_transformer=dict(
            type='CrossModalLSS',
            grid_config=dict(x=[-8, 8, 0.8], y=[-8, 8, 0.8], z=[-1, 2.2, 0.8], depth=[1.0, 9.0, 1.0]),
            input_size=INPUT_SIZE,
            in_channels=8,
            mid_channels=8,
            feature_channels=4,
            depth_channels=8,
            seg_num_classes=18,
            depthnet_cfg=dict(aspp_mid_channels=0),
            camera_norm='scale',
            downsample=8,
        ),
        pre_process=None,
        lidar_encoder=dict(
            type='CustomSparseEncoder',
            point_cloud_range=RANGE,
            voxel_size=[0.4, 0.4, 0.4],
            base_channels=4,
            encoder_channels=((4, 4), (4,)),
        ),
        volume_downsample=dict(out_channels=8, stride=2),
        occ_encoder_backbone=dict(type='CustomResNet3D', num_layer=[1, 1], num_channels=[8, 8], stride=[1, 2]),
        occ_encoder_neck=dict(type='LSSFPN3D', in_channels=16, out_channels=8),
        occ_upsample=dict(type='SkipUpsample3D', out_channels=8),
        loss_occ=dict(type='OccupancyLoss', free_keep=0.5, lovasz_weight=1.0),
    )
    config.update(changes)
    return config


MODALITIES = dict(
    both=dict(),
    painted=dict(img_seg_head=True, point_painting=True),
    camera=dict(use_lidar=False),
    lidar=dict(use_camera=False),
)


def tiny_model(modality='both', seed=0, **changes):
    torch.manual_seed(seed)
    config = tiny_config(**{**MODALITIES[modality], **changes})
    if modality == 'camera':
        config['img_view_transformer']['use_depth_input'] = False
    model = MODELS.build(config)
    model.init_weights()
    return model


def tiny_batch(batch=2, frames=1, cameras=2, seed=0, drop=()):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    sensor2ego = torch.eye(4, dtype=torch.float64).repeat(batch, frames, cameras, 1, 1)
    for n in range(cameras):
        yaw = n * 2 * math.pi / cameras
        sensor2ego[:, :, n, :3, :3] = torch.tensor(
            [[math.sin(yaw), 0, math.cos(yaw)], [-math.cos(yaw), 0, math.sin(yaw)], [0, -1.0, 0]]
        )
    eye = torch.eye(3).repeat(batch, frames, cameras, 1, 1)
    height, width = INPUT_SIZE
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([600.0, 1600.0, 0.0])
    inputs = dict(
        imgs=random(batch, frames, cameras, 3, height, width),
        sensor2ego=sensor2ego,
        ego2global=pose.repeat(batch, frames, cameras, 1, 1),
        intrins=torch.tensor([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]]) * eye.new_ones(eye.shape),
        post_rots=eye,
        post_trans=torch.zeros(batch, frames, cameras, 3),
        bda=torch.eye(3).repeat(batch, 1, 1),
        points=[random(300, 5) * torch.tensor([16, 16, 3.2, 255, 31]) - torch.tensor([8, 8, 1, 0, 0])] * batch,
        sparse_depth=(random(batch, cameras, 4, 8) * 16 - 6).clamp(min=0),
        segs=(random(batch, cameras, 4, 8) * 18).to(torch.uint8),
        sample_seed=torch.arange(batch),
    )
    samples = []
    for _ in range(batch):
        occ = BaseDataElement(
            semantics=(random(*GRID) * 18).to(torch.uint8),
            mask_camera=random(*GRID) < 0.3,
            mask_lidar=random(*GRID) < 0.3,
        )
        samples.append(Det3DDataSample(gt_occ=occ, metainfo=dict(ego2global=pose.tolist())))
    return {key: value for key, value in inputs.items() if key not in drop}, samples


def pick(inputs, samples, index):
    """One sample of a batch as a batch."""
    one = {key: value[index : index + 1] for key, value in inputs.items()}
    return one, samples[index : index + 1]


ABSENT = dict(
    both=(),
    painted=(),
    camera=('points',),
    lidar=('imgs', 'sensor2ego', 'ego2global', 'intrins', 'post_rots', 'post_trans', 'sparse_depth', 'segs'),
)


@pytest.mark.parametrize('modality', MODALITIES)
def test_every_modality_trains_and_predicts(modality):
    model = tiny_model(modality)
    inputs, samples = tiny_batch(drop=ABSENT[modality])
    losses = model(inputs, samples, mode='loss')
    expected = {'loss_occ', 'loss_lovasz'} | (set() if modality == 'lidar' else {'depth_loss', 'seg_loss'})
    assert set(losses) == expected | ({'img_seg_loss'} if modality == 'painted' else set())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    inputs = {key: value for key, value in inputs.items() if key != 'segs'}
    with torch.no_grad():
        logits = model(inputs, samples, mode='tensor')
        model(inputs, samples, mode='predict')
    assert logits.shape == (2, *GRID, 18)
    for row, sample in zip(logits, samples):
        assert sample.pred_occ.semantics.dtype == torch.uint8
        assert torch.equal(sample.pred_occ.semantics.long(), row.argmax(-1))


@pytest.mark.parametrize('modality', MODALITIES)
def test_the_mean_over_flips_does_not_know_which_was_the_original(modality):
    flips = ('flip_dx', 'flip_dy') if modality == 'lidar' else ('img_flip', 'flip_dx')
    model = tiny_model(modality, tta=flips).eval()
    inputs, samples = tiny_batch(drop=(*ABSENT[modality], 'segs'))
    with torch.no_grad():
        (mean,) = model.predict_scores(inputs, samples)
        (plain,) = model.voxel_scores(inputs, samples)
        found = model.predict(inputs, samples)
        for name, axes in (('img_flip', []), ('flip_dx', [1]), ('flip_dy', [2])):
            if name in flips:
                (other,) = model.predict_scores(flip_inputs(inputs, (name,)), samples)
                torch.testing.assert_close(other.flip(axes) if axes else other, mean, rtol=1e-4, atol=1e-5)
    assert mean.shape == (2, *GRID, 18) and (mean - plain).abs().max() > 1e-3
    torch.testing.assert_close(mean.sum(-1), torch.ones(2, *GRID))
    assert torch.equal(torch.stack([sample.pred_occ.semantics for sample in found]).long(), mean.argmax(-1))


def test_without_flips_the_scores_are_those_of_the_logits():
    model = tiny_model(temperature=2.0).eval()
    inputs, samples = tiny_batch(drop=('segs',))
    with torch.no_grad():
        logits = model(inputs, samples, mode='tensor')
        torch.testing.assert_close(model.predict_scores(inputs, samples)[0], logits.softmax(-1))


def test_an_ensemble_averages_the_probabilities():
    configs = [dict(tiny_config(), data_preprocessor=dict(type='OccDataPreprocessor'))] * 2
    model = MODELS.build(dict(type='OccupancyEnsemble', members=configs)).eval()
    one, two = model.members
    inputs, samples = tiny_batch(drop=('segs',))
    with torch.no_grad():
        found = model(inputs, samples, mode='predict')
        mean = sum(member(inputs, samples, mode='tensor').softmax(-1) for member in (one, two)) / 2
    assert not torch.equal(one.predicter[2].weight, two.predicter[2].weight)
    assert torch.equal(torch.stack([sample.pred_occ.semantics for sample in found]).long(), mean.argmax(-1))
    assert model.class_axes['members.1.predicter.2'] == 0


def test_camera_only_prediction_does_not_see_the_lidar():
    model = tiny_model('camera')
    model.eval()
    inputs, samples = tiny_batch()
    without = {key: value for key, value in inputs.items() if key not in ('points', 'sparse_depth', 'segs')}
    with torch.no_grad():
        torch.testing.assert_close(
            model(inputs, samples, mode='tensor'), model(without, samples, mode='tensor'), rtol=0, atol=0
        )


def test_a_few_steps_lower_the_loss():
    model = tiny_model()
    inputs, samples = tiny_batch()
    for sample in samples:  # something to learn: a street between two walls
        semantics = torch.full(GRID, 17, dtype=torch.uint8)
        semantics[:, :, 0] = 11
        semantics[:, [3, 16]] = 15
        sample.gt_occ.semantics = semantics
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = []
    for _ in range(12):
        losses = model(inputs, samples, mode='loss')
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(losses['loss_occ'].detach()))
    assert min(history[-3:]) < 0.9 * history[0]


@pytest.mark.parametrize('use_mask', [False, True])
def test_loss_does_not_depend_on_the_grouping_of_samples(use_mask):
    # Norm layers in eval mode: batch statistics do depend on the batch.
    model = tiny_model(use_mask=use_mask)
    model.eval()
    inputs, samples = tiny_batch()
    samples[1].gt_occ.mask_camera = samples[0].gt_occ.mask_camera  # equal normalisers, so that the mean is comparable
    together = model(inputs, samples, mode='loss')['loss_occ']
    single = [model(*pick(inputs, samples, i), mode='loss')['loss_occ'] for i in range(2)]
    torch.testing.assert_close(together, sum(single) / 2, rtol=1e-5, atol=1e-6)


def test_random_draws_follow_the_sample_seed():
    model = tiny_model()
    model.train()
    inputs = tiny_batch()[0]
    bins = model.img_view_transformer.depth_bins(inputs['sparse_depth'])
    kept = model.img_view_transformer._kept(bins, 2, inputs['sample_seed'])
    swapped = model.img_view_transformer._kept(bins, 2, inputs['sample_seed'].flip(0))
    cameras = len(bins) // 2
    assert torch.equal(kept[:cameras], swapped[cameras:])
    assert not torch.equal(kept[:cameras], kept[cameras:])


def test_an_empty_mask_gives_exactly_zero_and_a_graph():
    model = tiny_model(use_mask=True)
    inputs, samples = tiny_batch()
    for sample in samples:
        sample.gt_occ.mask_camera = torch.zeros(GRID, dtype=torch.bool)
    inputs['sparse_depth'] = torch.zeros_like(inputs['sparse_depth'])
    inputs['segs'] = torch.full_like(inputs['segs'], 17)
    losses = model(inputs, samples, mode='loss')
    assert {name: float(loss.detach()) for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_sample_without_points():
    model = tiny_model()
    inputs, samples = tiny_batch()
    inputs['points'] = [inputs['points'][0], torch.zeros(0, 5)]
    losses = model(inputs, samples, mode='loss')
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_free_prior():
    model = tiny_model(free_prior=0.9)
    bias = model.predicter[-1].bias
    assert float(bias.softmax(0)[17]) == pytest.approx(0.9)
    with pytest.raises(ConfigError, match='free_prior is 1'):
        MODELS.build(tiny_config(free_prior=1))


def test_several_frames():
    model = tiny_model(num_adj=1)
    inputs, samples = tiny_batch(frames=2)
    losses = model(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    with pytest.raises(ConfigError, match='2 camera frames, the pipeline gives 1'):
        model(*tiny_batch(frames=1), mode='loss')


def test_key_ego_of_the_lidar_moves_the_cameras():
    model = tiny_model()
    inputs, samples = tiny_batch()
    moved = copy.deepcopy(samples[0].metainfo['ego2global'])
    moved[0][3] += 0.5  # the car was half a metre further when the LiDAR turned
    lidar = torch.tensor([moved] * 2, dtype=torch.float64)
    own = model.sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global'])
    shifted = model.sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global'], lidar)
    expected = own.clone()
    expected[..., 0, 3] -= 0.5
    torch.testing.assert_close(shifted, expected)


def test_bad_configs_are_refused():
    with pytest.raises(ConfigError, match='nothing is left'):
        MODELS.build(tiny_config(use_lidar=False, use_camera=False))
    with pytest.raises(ConfigError, match='exactly one of occ_encoder_neck'):
        MODELS.build(tiny_config(occ_encoder_neck=None))
    backbone = dict(tiny_config()['occ_encoder_backbone'], numC_input=7)
    with pytest.raises(ConfigError, match='numC_input is 7, but the modules before it give 8'):
        MODELS.build(tiny_config(occ_encoder_backbone=backbone))
    with pytest.raises(ConfigError, match='key_ego'):
        MODELS.build(tiny_config(key_ego='car'))
    with pytest.raises(ConfigError, match='point_painting needs use_lidar, use_camera and an img_seg_head'):
        MODELS.build(tiny_config(point_painting=True))
    with pytest.raises(ConfigError, match='coarse_camera needs volume_downsample'):
        MODELS.build(tiny_config(coarse_camera=True, volume_downsample=None))
    fine = tiny_model(coarse_camera=True)  # whose camera is still lifted to the fine grid
    with pytest.raises(ConfigError, match='camera and downsampled LiDAR volumes have the grids'):
        fine(*tiny_batch(), mode='loss')


def test_painting_teaches_the_segmentation_from_the_occupancy():
    model = tiny_model('painted', seg_loss_weight=0.0, depth_loss_weight=0.0)
    inputs, samples = tiny_batch()
    model(inputs, samples, mode='loss')['loss_occ'].backward()
    classifier = model.img_seg_head
    assert classifier.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        seen = model(inputs, samples, mode='tensor')
        classifier.weight.normal_()
        assert not torch.equal(model(inputs, samples, mode='tensor'), seen)


@pytest.mark.parametrize('offsets', [False, True])
def test_what_the_painted_points_have(offsets):
    """Class scores where ``class_axes`` says, then how clear the view is; nothing where no camera sees them."""
    encoder = dict(tiny_config()['lidar_encoder'], voxel_offsets=offsets)
    head = dict(type='PixelSegHead', in_channels=(8, 8), channels=4)
    model = tiny_model('painted', lidar_encoder=encoder, img_seg_head=head)
    inputs, samples = tiny_batch()
    with torch.no_grad():
        model.img_seg_head.classify.weight.zero_()
        model.img_seg_head.classify.bias.zero_()[3] = 30.0
    seen = []
    model.lidar_encoder.conv_input.register_forward_hook(lambda module, args, output: seen.append(args[0].features))
    model(inputs, samples, mode='loss')
    name = 'lidar_encoder.conv_input.0.weight'
    start = model.class_axes[name]['start']
    assert seen[0].shape[1] == model.state_dict()[name].shape[4] == start + model.num_classes
    classes, clear = seen[0][:, start:-1], seen[0][:, -1]
    outside = clear == 0
    assert 0 < outside.sum() < len(clear) and (classes[outside] == 0).all() and clear.max() == 1
    expected = torch.eye(model.num_classes - 1)[3].expand_as(classes[~outside])
    torch.testing.assert_close(classes[~outside], expected, rtol=1e-4, atol=1e-4)
    assert model.class_axes['img_seg_head.classify'] == 0


def test_earlier_frames_paint_without_gradients():
    """What a frame before saw is painted at the places that it had: those frames' images change the prediction."""
    model = tiny_model('painted')
    inputs, samples = tiny_batch(frames=2)
    inputs['ego2global'][:, 1, :, 0, 3] -= 1.0
    inputs['imgs'].requires_grad_()
    losses = model(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    gradient = inputs['imgs'].grad.abs().sum((0, 2, 3, 4, 5))
    assert gradient[0] > 0 and gradient[1] == 0
    model.eval()
    with torch.no_grad():
        before = model(inputs, samples, mode='tensor')
        inputs['imgs'].detach()[:, 1] = -inputs['imgs'].detach()[:, 1]
        assert not torch.equal(model(inputs, samples, mode='tensor'), before)
    with pytest.raises(ConfigError, match='asks for 1 camera frames, the pipeline gives 2'):
        tiny_model('both')(inputs, samples, mode='loss')


def test_a_frame_that_is_given_twice_paints_once():
    """At a scene's start the pipeline repeats frames."""
    model = tiny_model('painted').eval()
    inputs, samples = tiny_batch(frames=3)
    inputs['ego2global'][:, 1:, :, 0, 3] -= 1.0
    inputs['imgs'][:, 2] = inputs['imgs'][:, 1]
    once = {key: value[:, :2] if key in CAMERA_INPUTS else value for key, value in inputs.items()}
    with torch.no_grad():
        expected = model(once, samples, mode='tensor')
        assert torch.equal(model(inputs, samples, mode='tensor'), expected)
        inputs['ego2global'][:, 2, :, 0, 3] -= 1.0
        assert not torch.equal(model(inputs, samples, mode='tensor'), expected)


CAMERA_INPUTS = ('imgs', 'sensor2ego', 'ego2global', 'intrins', 'post_rots', 'post_trans')
COARSE = dict(x=[-8, 8, 1.6], y=[-8, 8, 1.6], z=[-1, 2.2, 1.6], depth=[1.0, 9.0, 1.0])


def as_double(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize('coarse_camera', [False, True])
@pytest.mark.parametrize('modality', MODALITIES)
def test_voxel_by_voxel_losses_equal_those_of_the_whole_volume(modality, coarse_camera):
    changes = dict(final_kernel=1, coarse_camera=coarse_camera)
    if coarse_camera:
        changes['img_view_transformer'] = dict(tiny_config()['img_view_transformer'], grid_config=COARSE)
    model = tiny_model(modality, **changes)
    inputs, samples = tiny_batch(drop=ABSENT[modality])
    # in double precision: biases before a batch normalisation have gradients of rounding alone
    model = model.double()
    inputs = {
        key: [x.double() for x in value] if isinstance(value, list) else as_double(value)
        for key, value in inputs.items()
    }
    results = []
    assert model.pointwise
    for model.pointwise in (True, False):
        model.zero_grad()
        losses = model(inputs, samples, mode='loss')
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad.clone() for name, p in model.named_parameters()}))
    for first, second in zip(*results):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6, msg=name)


def test_image_only_phase_trains_the_image_branch_alone():
    model = tiny_model('painted')
    inputs, samples = tiny_batch()
    whole = model(inputs, samples, mode='loss')
    model.image_only = True
    alone = model(inputs, samples, mode='loss')
    assert set(alone) == {'depth_loss', 'seg_loss', 'img_seg_loss'}
    for name, value in alone.items():  # batch statistics in both: the same losses
        torch.testing.assert_close(value, whole[name])
    sum(alone.values()).backward()
    touched = {name.split('.')[0] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {'img_backbone', 'img_neck', 'img_view_transformer', 'img_seg_head'}


def test_image_pretrain_hook_switches_between_epochs():
    model = tiny_model('painted')
    runner = SimpleNamespace(model=model, epoch=0, max_epochs=3, hooks=[])
    hook = ImagePretrainHook(epochs=2)
    phases = []
    hook.before_train(runner)
    for runner.epoch in (0, 1, 2):
        hook.before_train_epoch(runner)
        phases.append(model.image_only)
    assert phases == [True, True, False]
    runner.epoch = 1  # resumed in the middle of the first phase
    hook.before_train_epoch(runner)
    assert model.image_only
    hook.after_train(runner)
    assert not model.image_only
    with pytest.raises(ConfigError, match='no epoch is left for the whole model'):
        ImagePretrainHook(epochs=3).before_train(runner)
    with pytest.raises(ConfigError, match='no camera branch'):
        hook.before_train(SimpleNamespace(model=tiny_model('lidar'), epoch=0, max_epochs=3))
    ImagePretrainHook(epochs=0).before_train(SimpleNamespace(model=tiny_model('lidar'), epoch=0, max_epochs=3))


class Frames(torch.utils.data.Dataset):
    """A dataset whose samples are what its pipeline makes of their numbers."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return self.pipeline(dict(number=number))['number']


@TRANSFORMS.register_module()
class AddTo:
    def __init__(self, value):
        self.value = value

    def __call__(self, results):
        return dict(number=results['number'] + self.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_image_pretrain_hook_reads_with_a_pipeline_of_its_own(workers):
    """Of a wrapped dataset, in running workers too; the dataset's own is back afterwards."""
    hook = ImagePretrainHook(epochs=2, pipeline=[dict(type='AddTo', value=100)])
    dataset = Subset(Frames(Compose([dict(type='AddTo', value=10)])), [0, 1])
    loader = DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0)
    runner = SimpleNamespace(model=tiny_model('painted'), epoch=0, max_epochs=3, train_dataloader=loader, hooks=[])
    read = []
    for runner.epoch in (0, 1, 2, 1):
        hook.before_train_epoch(runner)
        read.append([int(number) for number in loader])
    assert read == [[100, 101], [100, 101], [10, 11], [100, 101]]


# ------------------------------------------------------------------------------------------------ shipped configs


@pytest.mark.parametrize('name', ['', '_camera', '_lidar', '_mask', '_nomask', '_fine'])
def test_synthetic_configs_build(name):
    cfg = load_config(CONFIGS / f'fusion_occ/fusion_occ_synthetic{name}.py')
    model = MODELS.build(cfg.model)
    assert (model.img_backbone is None) == (name == '_lidar')
    assert (model.lidar_encoder is None) == (name == '_camera')
    assert model.use_mask == (name == '_mask')


@pytest.mark.parametrize('value', [True, False])
def test_use_mask_reaches_the_model_from_line_child_and_command_line(tmp_path, value):
    text = SYNTHETIC.read_text()
    text = text.replace("'../_base_/", f"'{SYNTHETIC.parent.parent}/_base_/")
    assert '\nuse_mask = False\n' in text
    edited = tmp_path / 'edited.py'
    edited.write_text(text.replace('\nuse_mask = False\n', f'\nuse_mask = {value}\n'))
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{SYNTHETIC}'\nuse_mask = {value}\n")
    child_of_model = tmp_path / 'child_of_model.py'
    child_of_model.write_text(f"_base_ = '{SYNTHETIC}'\nmodel = dict(use_mask={value})\n")
    opposite = tmp_path / 'opposite.py'
    opposite.write_text(text.replace('\nuse_mask = False\n', f'\nuse_mask = {not value}\n'))
    for path, overrides in (
        (edited, []),
        (child, []),
        (child_of_model, []),
        (opposite, [f'use_mask={value}']),
        (opposite, [f'model.use_mask={value}']),
    ):
        cfg = load_config(path, overrides)
        assert MODELS.build(cfg.model).use_mask is value, (path, overrides)
        # the metric's mask is a field of its own
        assert cfg.val_evaluator.eval_mask == cfg.test_evaluator[0].eval_mask == 'none'
