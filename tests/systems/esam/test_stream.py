"""One scene frame by frame."""

import time

import numpy as np
import pytest
import torch
from esam_world import batch, model_config, scene, view
from mmdet3d.registry import MODELS
from mmengine import Config
from occforge.apis import Inferencer
from occforge.errors import ConfigError, DataError
from occforge.models.minkowski import voxelize_points
from occforge.systems.esam import MultilevelMemory, OnlineSegmentor
from occforge.systems.esam.stream import instance_colour


def stream(bi_fusion=False, **changes):
    torch.manual_seed(0)
    kind = 'BiFusionSegOnline' if bi_fusion else 'ScanNet200MixFormer3D_Online'
    return OnlineSegmentor(MODELS.build(model_config(kind, bi_fusion)), num_sample=600, **changes)


@pytest.mark.parametrize('bi_fusion', [False, True])
def test_numbers_of_instances_never_change(bi_fusion):
    segmentor = stream(bi_fusion)
    seen = set()
    for number in range(3):
        rgb, depth, pose, masks = view(number)
        result = segmentor.step(rgb, depth, pose, masks=masks)
        assert result.points.shape == (600, 6) and result.instance_ids.shape == (600,)
        assert set(result.merged) <= seen and not set(result.new_ids) & seen
        seen |= set(result.new_ids)
        assert set(np.unique(result.instance_ids)) - {-1} <= set(result.new_ids) | set(result.merged)
    final = segmentor.result()
    assert final.masks.shape == (len(final.ids), 1800) and set(final.ids) <= seen
    assert len(final.semantic) == len(final.points) == 1800
    assert instance_colour(3) == instance_colour(3) != instance_colour(4)


def test_reset_gives_the_same_scene_again():
    segmentor = stream()
    runs = []
    for _ in range(2):
        segmentor.reset()
        with pytest.raises(ConfigError, match='no frame has come'):
            segmentor.result()
        for number in range(2):
            rgb, depth, pose, masks = view(number)
            segmentor.step(rgb, depth, pose, masks=masks)
        runs.append(segmentor.result())
    assert np.array_equal(runs[0].masks, runs[1].masks) and np.array_equal(runs[0].scores, runs[1].scores)


def test_results_do_not_change_afterwards():
    segmentor = stream()
    for number in range(2):
        rgb, depth, pose, masks = view(number)
        segmentor.step(rgb, depth, pose, masks=masks)
        if number == 0:
            early = segmentor.result()
            copy = early.scores.copy(), early.masks.copy()
    assert np.array_equal(early.scores, copy[0]) and np.array_equal(early.masks, copy[1])


def test_two_scenes_at_once_share_a_model_and_nothing_else():
    first = stream()
    second = first.model.open_frame_stream(num_sample=600)
    alone = stream()
    alone.model.load_state_dict(first.model.state_dict())
    for number in range(3):
        rgb, depth, pose, masks = view(number)
        first.step(rgb, depth, pose, masks=masks)
        other_rgb, *other = view(number + 5)
        second.step(other_rgb, *other[:2], masks=other[2])
        alone.step(rgb, depth, pose, masks=masks)
    assert np.array_equal(first.result().masks, alone.result().masks)
    assert np.array_equal(first.result().scores, alone.result().scores)
    assert not first.model.memory.states  # the model itself keeps nothing


def test_the_inferencer_streams_frames(tmp_path):
    torch.manual_seed(0)
    config = model_config('ScanNet200MixFormer3D_Online')
    config['test_cfg'].update(stream=dict(num_sample=600), inst_score_thr=0.0)
    inferencer = Inferencer(Config(dict(model=config, test_dataloader=dict(dataset=dict()))), device='cpu')
    direct = inferencer.model.open_frame_stream()
    live = inferencer.stream()
    for number in range(3):
        rgb, depth, pose, masks = view(number)
        prediction = live.step(dict(rgb=rgb, depth=depth, pose=pose, masks=masks))
        direct.step(rgb, depth, pose, masks=masks)
    expected = direct.result()
    for name in ('masks', 'labels', 'scores', 'ids'):
        np.testing.assert_array_equal(getattr(prediction.instances, name), getattr(expected, name))
    assert prediction.instances.points.shape == (1800, 3) and prediction.name == 'frame000002'
    assert {path.suffix for path in prediction.save(tmp_path, ('npz', 'png', 'html'))} == {'.npz', '.png', '.html'}
    live.reset()
    rgb, depth, pose, masks = view(0)
    again = live.step(dict(rgb=rgb, depth=depth, pose=pose, masks=masks))
    assert again.name == 'frame000000' and again.instances.points.shape == (600, 3)
    with pytest.raises(ConfigError, match='missing a required argument'):
        live.step(dict(rgb=rgb))


def test_memory_matters_and_can_be_switched_off():
    scores = []
    for use_memory in (True, False):
        segmentor = stream(use_memory=use_memory)
        for level in segmentor.model.memory.conv_convert:
            torch.nn.init.constant_(level[1].bn.weight, 30.0)  # a trained one says more than a fresh one
        for number in (0, 0):
            rgb, depth, pose, masks = view(number)
            segmentor.step(rgb, depth, pose, masks=masks)
        scores.append(segmentor.result().scores)
    assert len(scores[0]) != len(scores[1]) or not np.allclose(scores[0], scores[1])


def test_masks_come_from_a_function_or_from_the_image_itself():
    rgb, depth, pose, masks = view(0)
    assert len(stream(mask_provider=lambda image: masks).step(rgb, depth, pose).points) == 600
    assert len(stream().step(rgb, depth, pose).points) == 600


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(depth=np.zeros((480, 640))), 'no measurement'),
        (dict(depth=np.ones((4, 4))), 'one size is expected'),
        (dict(pose=np.full((4, 4), np.nan)), 'finite'),
        (dict(masks=np.zeros((3, 5, 5), bool)), 'masks have shape'),
    ],
)
def test_bad_frames(change, message):
    rgb, depth, pose, masks = view(0)
    given = dict(dict(rgb=rgb, depth=depth, pose=pose, masks=masks), **change)
    with pytest.raises(DataError, match=message):
        stream().step(**given)


def test_needs_an_online_model():
    with pytest.raises(ConfigError, match='online model'):
        OnlineSegmentor(MODELS.build(model_config()))


def test_a_long_walk_costs_no_more_at_its_end():
    memory = MultilevelMemory([4], vmp_layer=(0,)).eval()
    generator = torch.Generator().manual_seed(0)
    times = []
    with torch.no_grad():
        for number in range(500):
            xyz = (
                torch.rand(400, 3, generator=generator) * torch.tensor([60.0, 60, 30])
                + torch.tensor([20.0, 0, 0]) * number
            )
            x = voxelize_points(xyz, torch.randn(400, 4, generator=generator), torch.zeros(400).long(), 1).tensor
            start = time.process_time()
            memory([x])
            times.append(time.process_time() - start)
    assert memory.states[0].count > 100000
    assert np.median(times[450:]) <= 1.5 * np.median(times[50:100])


def test_frames_of_a_batch_do_not_touch_each_other():
    torch.manual_seed(0)
    model = MODELS.build(model_config()).eval()
    inputs, samples = batch((0, 1))
    with torch.no_grad():
        both = model._forward(inputs, samples)
        alone = model._forward({k: v[1:] for k, v in inputs.items()}, samples[1:])
    torch.testing.assert_close(both.masks[1], alone.masks[0], atol=1e-4, rtol=1e-4)


def test_online_loss_and_prediction():
    torch.manual_seed(0)
    model = MODELS.build(model_config('ScanNet200MixFormer3D_Online'))
    losses = model.loss(*scene())
    assert set(losses) == {'inst_loss', 'seg_loss', 'merge_loss_tmp'}
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing  # every process of a training has the same gradients to share
    with torch.no_grad():
        found = model.eval().predict(*scene())[0].pred_pts_seg
    assert found.pts_instance_mask[0].shape[1] == 1800 == len(found.pts_semantic_mask[0])


def test_a_frame_without_instances_trains():
    model = MODELS.build(model_config())
    inputs, samples = batch((0, 1))
    for sample in samples:
        gt = sample.gt_instances_3d
        tail = gt.sp_masks[-7:]
        sample.gt_instances_3d = type(gt)(labels_3d=gt.labels_3d[-7:], sp_masks=tail)
        sample.gt_pts_seg.pts_instance_mask = torch.full((600,), -1)
    losses = model.loss(inputs, samples)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()


def test_superpoints_that_do_not_fit_are_refused():
    model = MODELS.build(model_config())
    inputs, samples = batch((0, 1))
    samples[0].gt_pts_seg.sp_pts_mask = torch.zeros(600).long()
    with pytest.raises(DataError, match='superpoints'):
        model.loss(inputs, samples)


def coverage(model, inputs, samples):
    """Mean best IoU of the instances of a batch."""
    with torch.no_grad():
        found = model.eval().predict(inputs, samples)
    best = []
    for sample in found:
        truth, masks = sample.gt_pts_seg.pts_instance_mask.numpy(), sample.pred_pts_seg.pts_instance_mask[0]
        for each in range(truth.max() + 1):
            own = truth == each
            best.append(max([(own & mask).sum() / (own | mask).sum() for mask in masks], default=0.0))
    return float(np.mean(best))


def test_training_lowers_the_losses_and_finds_the_instances():
    torch.manual_seed(0)
    model = MODELS.build(model_config())
    inputs, samples = batch((0, 1))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 0.5  # so few steps would leave the published 0.02 at its start
    before = coverage(model, inputs, samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    totals = []
    for _ in range(40):
        optimizer.zero_grad()
        total = sum(model.train().loss(inputs, samples).values())
        total.backward()
        optimizer.step()
        totals.append(float(total))
    assert np.mean(totals[-5:]) < 0.7 * np.mean(totals[:5])
    assert coverage(model, inputs, samples) > before + 0.1
