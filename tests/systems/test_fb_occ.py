"""FB-OCC: built from its configs, trained for a step, and its memory of sequences."""

import copy
import json
import logging
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement
from occforge.engine.checkpoint import load_weights, write_checkpoint
from occforge.engine.config import load_config
from occforge.engine.temporal import load_temporal, temporal_content, temporal_path
from occforge.errors import ConfigError, DataError
from occforge.models.averaging import flip_inputs
from occforge.systems.fbocc import HistoryHook, OccupancyStream
from occforge.systems.fbocc.history import FrameInfo, warp, warp_grid

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'


def _specs(name):
    folder = Path(os.environ.get('OCCFORGE_SPECS', ROOT.parent / 'shared' / 'specs'))
    if not (folder / name).is_file():
        pytest.skip(f'{name} not found: set OCCFORGE_SPECS to the folder that holds it')
    return json.loads((folder / name).read_text())


def test_official_size_has_the_published_parameters():
    model = MODELS.build(load_config(CONFIGS / '_base_/models/fbocc.py').model)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    for name, expected in _specs('FBOCC_params.json').items():
        assert found == expected, name
    assert sum(parameter.numel() for parameter in model.parameters()) == 68_457_727


# ---------------------------------------------------------------------------------------------------- tiny model

RANGE = dict(x=[-8.0, 8.0, 1.6], y=[-8.0, 8.0, 1.6], z=[-1.0, 2.2, 0.8])
GRID = dict(RANGE, depth=[1.0, 9.0, 1.0])
INPUT_SIZE = (32, 64)
LABEL_GRID = (20, 20, 8)
BN3D = dict(type='BN3d')


def tiny_config(**changes):
    """A model of a few thousand parameters with every part of the published one."""
    attention = dict(num_heads=2, num_points=4, num_Z_anchors=2)
    config = dict(
        type='FBOCC',
        data_preprocessor=dict(type='OccDataPreprocessor'),
        use_depth_supervision=True,
        readd=True,
        history_cat_num=3,
        single_bev_num_channels=8,
        history_norm_cfg=BN3D,
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
        img_neck=dict(type='CustomFPN', in_channels=[8, 16], out_channels=8),
        depth_net=dict(
            type='CM_DepthNet',
            in_channels=8,
            context_channels=8,
            depth_channels=8,
            mid_channels=8,
            downsample=8,
            grid_config=GRID,
        ),
        forward_projection=dict(
            type='LSSViewTransformerFunction3D', grid_config=GRID, input_size=INPUT_SIZE, downsample=8
        ),
        backward_projection=dict(
            type='BackwardProjection',
            bev_h=10,
            bev_w=10,
            in_channels=8,
            out_channels=8,
            transformer=dict(
                type='BEVFormer',
                embed_dims=8,
                encoder=dict(
                    type='bevformer_encoder',
                    num_layers=1,
                    grid_config=dict(RANGE, z=[-1.0, 2.2, 1.6]),
                    data_config=dict(input_size=INPUT_SIZE),
                    transformerlayers=dict(
                        type='BEVFormerEncoderLayer',
                        attn_cfgs=[
                            dict(type='MultiScaleDeformableAttention', embed_dims=8, num_heads=2),
                            dict(
                                type='DA_SpatialCrossAttention',
                                embed_dims=8,
                                dbound=GRID['depth'],
                                deformable_attention=attention,
                            ),
                        ],
                        ffn_cfgs=dict(feedforward_channels=16),
                    ),
                ),
            ),
            positional_encoding=dict(
                type='CustormLearnedPositionalEncoding', num_feats=4, row_num_embed=10, col_num_embed=10
            ),
        ),
        img_bev_encoder_backbone=dict(
            type='CustomResNet3D',
            depth=10,
            n_input_channels=8,
            block_inplanes=[8, 8],
            block_strides=[1, 2],
            out_indices=[0, 1],
            norm_cfg=BN3D,
        ),
        img_bev_encoder_neck=dict(type='FPN3D', in_channels=[8, 8], out_channels=8, norm_cfg=BN3D),
        occupancy_head=dict(
            type='OccHead', in_channels=8, num_level=2, out_channel=19, soft_weights=True, norm_cfg=BN3D
        ),
    )
    config.update(changes)
    return config


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = MODELS.build(tiny_config(**changes))
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv3d, torch.nn.ConvTranspose3d)):
            layer.weight.data *= 3  # what an untrained network answers would hardly depend on what it sees
    return model.eval()


def tiny_frame(sequence, number, length=4, seed=None):
    """Inputs (no batch dimension) and data sample of frame ``number`` of a drive on a curve."""
    generator = torch.Generator().manual_seed(100 * sequence + number if seed is None else seed)

    def pose_at(t):
        yaw = torch.tensor(0.05 * t + sequence)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:2, :2] = torch.tensor([[yaw.cos(), -yaw.sin()], [yaw.sin(), yaw.cos()]])
        pose[:3, 3] = torch.tensor([600.0 + 1.5 * t, 1600.0 + 0.3 * t, 0.0])
        return pose

    cameras = 2
    sensor2ego = torch.eye(4, dtype=torch.float64).repeat(1, cameras, 1, 1)
    for n in range(cameras):
        yaw = n * math.pi
        sensor2ego[:, n, :3, :3] = torch.tensor(
            [[math.sin(yaw), 0, math.cos(yaw)], [-math.cos(yaw), 0, math.sin(yaw)], [0, -1.0, 0]]
        )
    eye = torch.eye(3).repeat(1, cameras, 1, 1)
    inputs = dict(
        imgs=torch.randint(0, 256, (1, cameras, *INPUT_SIZE, 3), generator=generator, dtype=torch.uint8),
        sensor2ego=sensor2ego,
        ego2global=pose_at(number).repeat(1, cameras, 1, 1),
        intrins=torch.tensor([[41.3, 0, 31.7], [0, 41.3, 16.2], [0, 0, 1]]).repeat(1, cameras, 1, 1),
        post_rots=eye,
        post_trans=torch.zeros(1, cameras, 3),
        bda=torch.eye(3),
        sparse_depth=(torch.rand(cameras, 4, 8, generator=generator) * 16 - 6).clamp(min=0),
    )
    start = number == 0
    sample = Det3DDataSample()
    sample.set_metainfo(
        dict(
            token=f's{sequence}f{number}',
            prev_token='' if start else f's{sequence}f{number - 1}',
            cam_names=['CAM_FRONT', 'CAM_BACK'],
            ego2global=pose_at(number).tolist(),
            sequence_group_idx=sequence,
            start_of_sequence=start,
            end_of_sequence=number == length - 1,
            curr_to_prev_ego_rt=np.eye(4) if start else (pose_at(number - 1).inverse() @ pose_at(number)).numpy(),
        )
    )
    sample.gt_occ = BaseDataElement(
        semantics=torch.randint(0, 18, LABEL_GRID, generator=generator, dtype=torch.uint8),
        mask_camera=torch.rand(LABEL_GRID, generator=generator) > 0.3,
        mask_lidar=torch.rand(LABEL_GRID, generator=generator) > 0.3,
    )
    return inputs, sample


def batch_of(model, *frames):
    inputs = {key: [frame[0][key] for frame in frames] for key in frames[0][0]}
    return model.data_preprocessor(dict(inputs=inputs, data_samples=[frame[1] for frame in frames]))


def probabilities(model, *frames):
    batch = batch_of(model, *frames)
    with torch.no_grad():
        return model.predict_probability(batch['inputs'], batch['data_samples'])


def test_every_parameter_learns():
    model = tiny_model()
    model.train()
    batch = batch_of(model, tiny_frame(0, 0), tiny_frame(1, 0))
    losses = model(**batch, mode='loss')
    assert set(losses) == {
        'loss_depth',
        'loss_voxel_ce_c_0',
        'loss_voxel_sem_scal_c_0',
        'loss_voxel_geo_scal_c_0',
        'loss_voxel_lovasz_c_0',
    }
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        'backward_projection.transformer.cams_embeds',
        'forward_projection.dx',
        'forward_projection.bx',
        'forward_projection.nx',
    }


def test_200_steps_of_mixed_precision_stay_finite():
    model = tiny_model(amp_3d=True)
    model.init_weights()
    model.train()
    wrapper = dict(type='OccAmpOptimWrapper', dtype='bfloat16', clip_grad=dict(max_norm=5.0))
    optim = build_optim_wrapper(model, dict(wrapper, optimizer=dict(type='AdamW', lr=2e-3)))
    frames = [[tiny_frame(sequence, number) for number in range(4)] for sequence in range(2)]
    total = []
    for step in range(200):
        batch = batch_of(model, *(drive[step % 4] for drive in frames))
        with optim.optim_context(model):
            loss, logged = model.parse_losses(model(**batch, mode='loss'))
        assert all(math.isfinite(value) for value in logged.values()), (step, logged)
        optim.update_params(loss)
        total.append(float(loss))
    assert all(parameter.isfinite().all() for parameter in model.state_dict().values())
    assert sum(total[-20:]) < 0.9 * sum(total[:20])


def test_nothing_supervised_gives_zero_losses():
    model = tiny_model()
    inputs, sample = tiny_frame(0, 0)
    sample.gt_occ.mask_camera[:] = False
    inputs['sparse_depth'].zero_()
    losses = model(**batch_of(model, (inputs, sample)), mode='loss')
    sum(losses.values()).backward()
    assert all(float(loss) == 0 for loss in losses.values()), losses


def test_the_mask_is_a_field():
    model = tiny_model()
    sample = tiny_frame(0, 0)[1]
    by_mask = {}
    for use_mask, mask in ((True, 'mask_camera'), (True, 'mask_lidar'), (False, 'mask_camera')):
        model.use_mask, model.mask = use_mask, mask
        target = model.targets([sample], 'cpu')[0].transpose(0, 1)
        known = sample.gt_occ.get(mask) if use_mask else torch.ones_like(sample.gt_occ.mask_camera)
        assert torch.equal(target != 255, known)
        assert torch.equal(target[known], sample.gt_occ.semantics[known] + 1)
        by_mask[use_mask, mask] = target
    with pytest.raises(ConfigError, match='mask'):
        tiny_model(mask='mask_radar')


# -------------------------------------------------------------------------------------------------------- memory


def test_memory_belongs_to_sequences_and_not_to_places_in_a_batch():
    frames = {(s, n): tiny_frame(s, n) for s in range(3) for n in range(4)}
    model = tiny_model()
    alone = {key: probabilities(model, frame)[0] for key, frame in frames.items()}
    model.reset_history()
    # other company, other places; sequence 2 starts when the others are half through
    steps = [[(0, 0), (1, 0)], [(1, 1), (0, 1)], [(2, 0), (0, 2), (1, 2)], [(1, 3), (2, 1), (0, 3)], [(2, 2)], [(2, 3)]]
    for step in steps:
        for key, found in zip(step, probabilities(model, *(frames[key] for key in step))):
            torch.testing.assert_close(found, alone[key], rtol=1e-4, atol=1e-5)
    assert len(model.memory('eval')) == 0  # all sequences have ended
    # the memory matters
    lonely = tiny_frame(0, 3)
    lonely[1].set_metainfo(dict(start_of_sequence=True))
    assert (probabilities(model, lonely)[0] - alone[0, 3]).abs().max() > 1e-3


@pytest.mark.parametrize('tta', [(), ('flip_dx', 'flip_dy')])
def test_stream_gives_what_the_batches_give(tta):
    model = tiny_model(tta=tta)
    batched = [model.occupancy_head.semantics(probabilities(model, tiny_frame(0, n)))[0] for n in range(4)]
    stream, other = OccupancyStream(model), OccupancyStream(model)
    other(*tiny_frame(1, 0))
    for n in range(4):
        assert torch.equal(stream(*tiny_frame(0, n)), batched[n])
        other(*tiny_frame(1, n))
    stream.reset()
    assert torch.equal(stream(*tiny_frame(0, 0)), batched[0])


def test_frames_out_of_order_are_an_error():
    model = tiny_model()
    probabilities(model, tiny_frame(0, 0))
    with pytest.raises(DataError, match=r'the frame before it is s0f1, but sequence 0 was left at s0f0.*batch_sampler'):
        probabilities(model, tiny_frame(0, 2))
    with pytest.raises(DataError, match='sequence 1 continues, but nothing of it is remembered'):
        probabilities(model, tiny_frame(1, 2))
    model.memory('eval').joins = 1  # so many may be met in their middle
    probabilities(model, tiny_frame(1, 2))
    with pytest.raises(DataError, match='sequence 2 continues, but nothing of it is remembered'):
        probabilities(model, tiny_frame(2, 2))
    with pytest.raises(DataError, match='two frames of one sequence'):
        probabilities(model, tiny_frame(3, 0), tiny_frame(3, 1))
    frame = tiny_frame(0, 0)
    bare = Det3DDataSample()
    bare.set_metainfo(dict(token='x', cam_names=['CAM_FRONT', 'CAM_BACK']))
    with pytest.raises(DataError, match=r'sample x: .*sequence_group_idx.*sequences_split_num'):
        probabilities(model, (frame[0], bare))


def test_a_sequence_played_twice_at_once_has_two_memories():
    """A place of a batch may begin a sequence anew while another place still plays it."""
    model = tiny_model()

    def frame(number, visit):
        inputs, sample = tiny_frame(0, number)
        sample.set_metainfo(dict(sequence_visit=visit))
        return inputs, sample

    alone = [probabilities(model, frame(number, 0))[0] for number in range(3)]
    model.reset_history()
    probabilities(model, frame(0, 0))
    both = probabilities(model, frame(1, 0), frame(0, 1))
    torch.testing.assert_close(both[0], alone[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities(model, frame(2, 0))[0], alone[2], rtol=1e-4, atol=1e-5)


def test_evaluation_leaves_the_memory_of_training_alone():
    model = tiny_model()
    model.train()
    model(**batch_of(model, tiny_frame(0, 0)), mode='loss')
    kept = model.memory('train').state_dict()[0][0].clone()
    model.eval()
    probabilities(model, tiny_frame(0, 0))
    probabilities(model, tiny_frame(0, 1))
    assert torch.equal(model.memory('train').state_dict()[0][0], kept)


def test_abandoned_sequences_do_not_pile_up():
    model = tiny_model(max_sequences=2)
    for sequence in range(5):
        probabilities(model, tiny_frame(sequence, 0))
    assert len(model.memory('eval')) == 2


def test_a_model_of_single_frames_needs_no_sequences():
    model = tiny_model(history_cat_num=0)
    inputs, sample = tiny_frame(0, 2)
    bare = Det3DDataSample(gt_occ=sample.gt_occ)
    bare.set_metainfo(dict(cam_names=['CAM_FRONT', 'CAM_BACK']))
    sum(model(**batch_of(model, (inputs, bare)), mode='loss').values()).backward()
    assert not any('history' in name for name in model.state_dict())


@pytest.mark.parametrize('voxel_center', [True, False])
def test_warp_follows_the_vehicle(voxel_center):
    volume = torch.rand(1, 2, 10, 10, 4)
    lower, step = (-8.0, -8.0, -1.0), (1.6, 1.6, 0.8)
    # the vehicle drove two cells forward: what was at x is at x - 2
    motion = torch.eye(4, dtype=torch.float64)
    motion[0, 3] = 3.2
    moved = warp(volume, warp_grid((10, 10, 4), lower, step, motion, voxel_center))
    torch.testing.assert_close(moved[..., :8, :], volume[..., 2:, :], rtol=1e-5, atol=1e-5)
    assert float(moved[..., 8:, :].abs().max()) < 1e-5
    # a frame that was augmented by a flip, read from one that is not: exact from the centres of cells only
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    mirrored = warp(volume, warp_grid((10, 10, 4), lower, step, flip, voxel_center))
    expected = volume.flip(3)
    if voxel_center:
        torch.testing.assert_close(mirrored, expected, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(mirrored[..., 1:, :], expected[..., :-1, :], rtol=1e-5, atol=1e-5)


def test_history_may_be_kept_in_half_the_bits():
    full, half = tiny_model(), tiny_model(history_dtype='bfloat16')
    for n in range(3):
        a, b = (probabilities(model, tiny_frame(0, n)) for model in (full, half))
    assert half.memory('eval').state_dict()[0][0].dtype == torch.bfloat16
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_the_fusion_may_start_as_the_mean_of_the_frames():
    torch.manual_seed(0)
    model = MODELS.build(tiny_config(history_init='mean', history_cat_num=2)).eval()
    for part in (model.history_keyframe_time_conv, model.history_keyframe_cat_conv):
        part[1] = torch.nn.Identity()
    memory, still = model.memory('eval'), torch.eye(4, dtype=torch.float64)
    volumes = torch.rand(4, 1, 8, 10, 10, 4)
    for n, volume in enumerate(volumes):
        fused = model.fuse_history(volume, torch.eye(3)[None], [FrameInfo('drive', n == 0, still)], memory)
        past = volumes[[max(n - 1, 0), max(n - 2, 0)]]
        torch.testing.assert_close(fused, (volume + past.sum(dim=0)) / 3, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="history_init is 'first', expected 'random' or 'mean'"):
        MODELS.build(tiny_config(history_init='first'))


# --------------------------------------------------------------------------------------------------- test time flips


def test_flipped_ego_frame_gives_the_flipped_volume():
    model = tiny_model()
    batch = batch_of(model, tiny_frame(0, 0))
    volumes = {}
    for flips in ((), ('flip_dx',), ('flip_dy',)):
        inputs = flip_inputs(batch['inputs'], flips)
        cameras = model.cameras(inputs, batch['data_samples'])
        torch.manual_seed(0)
        context, depth = torch.rand(1, 2, 8, 4, 8), torch.rand(1, 2, 8, 4, 8)
        volumes[flips] = model.forward_projection(context, depth, *cameras)
    # the outermost cells take more than themselves on one side, by truncation
    inner = (..., slice(1, -1), slice(1, -1), slice(None))
    torch.testing.assert_close(volumes['flip_dx',].flip(3)[inner], volumes[()][inner])
    torch.testing.assert_close(volumes['flip_dy',].flip(2)[inner], volumes[()][inner])


def test_mirrored_images_see_the_same_places():
    model = tiny_model()
    batch = batch_of(model, tiny_frame(0, 0))
    mirrored = flip_inputs(batch['inputs'], ('img_flip',))
    torch.testing.assert_close(mirrored['imgs'].flip(-1), batch['inputs']['imgs'])
    plain, turned = (
        model.forward_projection.ego_points(*model.cameras(inputs, batch['data_samples']))
        for inputs in (batch['inputs'], mirrored)
    )
    # columns in reverse order, one pixel apart: at most 9 m deep and 40 pixels of focal length
    assert (plain - turned.flip(4)).abs().max() < 9 / 40 + 1e-3


def test_variants_are_averaged():
    model = tiny_model(tta=('img_flip', 'flip_dx'))
    assert model.variants == [(), ('img_flip',), ('flip_dx',), ('img_flip', 'flip_dx')]
    found = probabilities(model, tiny_frame(0, 0))
    torch.testing.assert_close(found.sum(dim=1), torch.ones_like(found[:, 0]))
    assert set(model.memories) == {'eval', 'eval+img_flip', 'eval+flip_dx', 'eval+img_flip+flip_dx'}
    with pytest.raises(ConfigError, match='tta'):
        tiny_model(tta=('flip_z',))


# ------------------------------------------------------------------------------------------------------ the hook


class _Runner:
    """What HistoryHook asks of a runner."""

    def __init__(self, model, sampler=None, iteration=0):
        self.model, self.iter, self.logger = model, iteration, logging.getLogger('test')
        loader = SimpleNamespace(batch_sampler=sampler)
        self.train_dataloader = type('Loader', (), dict(__len__=lambda _: 10, **vars(loader)))()


def test_hook_switches_the_memory_on_and_wants_sequences():
    model = tiny_model(do_history=False)
    hook = HistoryHook(start_epoch=2)
    runner = _Runner(model, SimpleNamespace(sequences=[[0]], batch_size=3, interleave=8))
    hook.before_train(runner)
    memory = model.memory('train')
    assert memory.joins == memory.max_sequences == 24  # the sequences under way when it begins to remember
    seen = []
    for runner.iter in (0, 19, 20, 21):
        hook.before_train_iter(runner, 0)
        seen.append(model.do_history)
    assert seen == [False, False, True, True]
    with pytest.raises(ConfigError, match='SequenceBatchSampler'):
        hook.before_train(_Runner(model, SimpleNamespace()))
    published = HistoryHook(temporal_start_iter=5)
    published.before_train(runner)
    for runner.iter, expected in ((5, False), (6, True)):
        published.before_train_iter(runner, 0)
        assert model.do_history == expected


def test_an_ensemble_keeps_the_memories_of_its_members_apart():
    model = MODELS.build(dict(type='OccupancyEnsemble', members=[tiny_config(), tiny_config(tta=('flip_dx',))])).eval()
    alone = [copy.deepcopy(member) for member in model.members]
    for n in range(3):
        batch = batch_of(model, tiny_frame(0, n))
        with torch.no_grad():
            expected = sum(member.predict_probability(batch['inputs'], batch['data_samples']) for member in alone) / 2
            found = model(**batch, mode='predict')
        assert torch.equal(found[0].pred_occ.semantics, expected.argmax(1)[0].to(torch.uint8))
    assert [set(member.memories) for member in model.members] == [{'eval'}, {'eval', 'eval+flip_dx'}]
    HistoryHook().after_test(_Runner(model))
    assert not any(member.memories for member in model.members)


def test_memory_survives_a_restart(tmp_path):
    def losses(model, n):
        model.train()
        batch = batch_of(model, tiny_frame(0, n), tiny_frame(1, n))
        return {name: float(loss) for name, loss in model(**batch, mode='loss').items()}

    plain = dict(depth_net=dict(tiny_config()['depth_net'], use_aspp=False))  # which has a dropout
    model = tiny_model(**plain)
    losses(model, 0), losses(model, 1)
    path = str(tmp_path / 'iter_2.pth')
    write_checkpoint(temporal_content(model, 2), temporal_path(path))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = losses(model, 2)

    resumed = tiny_model(**plain)
    resumed.load_state_dict(state)
    assert load_temporal(resumed, path, 2) is None
    assert losses(resumed, 2) == expected
    assert temporal_content(tiny_model(save_history=False), 2) is None
    assert temporal_content(tiny_model(history_cat_num=0), 2) is None


# ------------------------------------------------------------------------------------------------------ pretraining


def test_pretraining_makes_weights_for_the_image_branch():
    parts = {name: tiny_config()[name] for name in ('img_backbone', 'img_neck', 'depth_net', 'data_preprocessor')}
    pretrainer = MODELS.build(dict(type='DepthSemanticPretrainer', **parts))
    inputs, sample = tiny_frame(0, 0)
    inputs['segs'] = torch.randint(0, 18, (2, 4, 8), dtype=torch.uint8)
    losses = pretrainer(**batch_of(pretrainer, (inputs, sample)), mode='loss')
    assert set(losses) == {'loss_depth', 'loss_seg'}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in pretrainer.parameters())
    report = load_weights(tiny_model(), pretrainer.state_dict(), 'pretrained')
    taken = {name.split('.')[0] for name in pretrainer.state_dict()} - {'seg_head'}
    assert taken == {'img_backbone', 'img_neck', 'depth_net'}
    assert not report.complete
    del inputs['segs']
    with pytest.raises(ConfigError, match='segs'):
        pretrainer(**batch_of(pretrainer, (inputs, sample)), mode='loss')
    depth_alone = MODELS.build(dict(type='DepthSemanticPretrainer', num_classes=None, **parts))
    assert set(depth_alone(**batch_of(depth_alone, (inputs, sample)), mode='loss')) == {'loss_depth'}
    (found,) = depth_alone.eval()(**batch_of(depth_alone, (inputs, sample)), mode='predict')
    assert 'pred_depth' in found and 'pred_segs' not in found


# ------------------------------------------------------------------------------------------------ shipped configs


@pytest.mark.parametrize('path', sorted((CONFIGS / 'fbocc').glob('*.py')), ids=lambda path: path.stem)
def test_configs_build(path):
    cfg = load_config(path)
    model = MODELS.build(cfg.model)
    image_branch_alone = cfg.model.type == 'DepthSemanticPretrainer'
    least = 500_000 if image_branch_alone else 1_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) > least
    assert cfg.sync_bn is False


@pytest.mark.parametrize('detector', ['fbocc_synthetic', 'fbocc_synthetic_single'])
def test_the_small_pretrained_image_branch_fits(detector):
    names = ('fbocc_synthetic_depth_pretrain', detector)
    trained, wanted = (MODELS.build(load_config(CONFIGS / f'fbocc/{name}.py').model).state_dict() for name in names)
    left = [name for name, value in trained.items() if name not in wanted or wanted[name].shape != value.shape]
    assert left == ['seg_head.weight', 'seg_head.bias']


def test_the_mask_reaches_the_model():
    for override in ('use_mask=False', 'model.use_mask=False'):
        assert load_config(CONFIGS / 'fbocc/fbocc_synthetic.py', [override]).model.use_mask is False
