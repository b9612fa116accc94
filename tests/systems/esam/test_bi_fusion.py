"""Fusion that never runs without anybody noticing: every way in which that can happen."""

import numpy as np
import pytest
import torch
from esam_world import CLIP, batch, frame, model_config, scene, view
from mmdet3d.registry import MODELS
from occforge.datasets.transforms import LoadClipFeature, Pack3DDetInputs_, ProjectPointsToImage
from occforge.datasets.transforms.scannet import INTRINSICS, clip_path, project
from occforge.errors import ConfigError, DataError
from occforge.systems.esam import ClipConv1
from occforge.systems.esam.bi_fusion import sample_map
from occforge.systems.esam.clip import read_conv1


def build(kind='BiFusionSeg', **changes):
    torch.manual_seed(0)
    return MODELS.build(model_config(kind, bi_fusion=True, **changes))


def offline(encoder, images):
    """What tools/precompute_clip_feats.py stores for each image."""
    pix, mean = zip(*(encoder.backbone2d(image[None]) for image in images))
    return [each[0].half() for each in pix], [each[0].half() for each in mean]


def opened(model):
    """A model whose fusion is not at its start any more: the last layer is not zero."""
    torch.nn.init.normal_(model.bi_encoder.out_proj.weight, std=0.2)
    return model


def test_points_of_a_depth_image_project_into_it():
    inputs, _ = frame(3, points=5000)
    assert torch.isfinite(inputs['clip_uv']).all(1).float().mean() > 0.99


def test_a_pixel_comes_back_to_itself():
    _, depth, pose, _ = view(1)
    from occforge.datasets.rgbd import backproject

    u, v = np.array([0, 639, 320]), np.array([0, 479, 100])
    xyz = backproject(depth[v, u], pose, INTRINSICS['scannet'], u, v)
    np.testing.assert_allclose(project(xyz, pose, INTRINSICS['scannet']), np.stack([u, v], 1), atol=1e-2)
    behind = pose[:3, 3] - pose[:3, 2]
    assert np.isnan(project(behind[None], pose, INTRINSICS['scannet'])).all()


def test_map_is_sampled_where_its_cell_lies():
    feature_map = torch.zeros(1, 60, 80)
    feature_map[0, 10, 20] = 1.0  # its centre is pixel (8 * 20 + 3.5, 8 * 10 + 3.5)
    uv = torch.tensor([[163.5, 83.5], [171.5, 83.5], [float('nan'), float('nan')]])
    assert sample_map(feature_map, uv, (640, 480))[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)


def test_a_fresh_encoder_is_its_3d_branch():
    fused, plain = build().eval(), MODELS.build(model_config()).eval()
    state = {name.replace('bi_encoder.backbone3d.', 'backbone.'): value for name, value in fused.state_dict().items()}
    plain.load_state_dict({name: value for name, value in state.items() if not name.startswith('bi_encoder.')})
    inputs, samples = batch()
    with torch.no_grad():
        a, b = fused._forward(inputs, samples), plain._forward(inputs, samples)
    assert all(torch.equal(x, y) for x, y in zip(a.masks, b.masks))
    assert fused.bi_encoder.fallback_count == 2 and fused.bi_encoder.missing_count == 0
    assert fused.bi_encoder.projected['valid'] > 0.99 * fused.bi_encoder.projected['points'] > 0


def test_the_image_matters_once_it_is_trained():
    model = opened(build()).eval()
    inputs, samples = batch()
    with torch.no_grad():
        with_image = model._forward(inputs, samples).masks[0]
        other = dict(inputs, img=[255 - image for image in inputs['img']])
        assert not torch.allclose(with_image, model._forward(other, samples).masks[0], atol=1e-4)
        without = {name: inputs[name] for name in ('points',)}
        assert not torch.allclose(with_image, model._forward(without, samples).masks[0], atol=1e-4)


@pytest.mark.parametrize('kind', ['BiFusionSeg', 'BiFusionSegOnline'])
def test_every_trainable_part_of_the_image_branch_gets_a_gradient(kind):
    model = opened(build(kind))
    inputs, samples = scene() if kind.endswith('Online') else batch()
    sum(model.loss(inputs, samples).values()).backward()
    for name in ('conv_reduce.conv.weight', 'lin2d.0.weight', 'glob_proj.weight', 'gate.weight', 'out_proj.weight'):
        gradient = model.bi_encoder.get_parameter(name).grad
        assert gradient is not None and gradient.abs().sum() > 0, name
    assert model.bi_encoder.backbone2d.conv1.weight.grad is None
    assert not model.bi_encoder.backbone2d.conv1.weight.requires_grad


def test_the_first_step_opens_the_fusion():
    model = build()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model.loss(*batch()).values()).backward()
        optimizer.step()
    assert model.bi_encoder.conv_reduce.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('kind', ['BiFusionSeg', 'BiFusionSegOnline'])
def test_stored_features_give_what_the_image_gives(kind):
    model = opened(build(kind)).eval()
    inputs, samples = scene() if kind.endswith('Online') else batch()
    images = list(inputs['img'][0]) if kind.endswith('Online') else inputs['img']
    pix, mean = offline(model.bi_encoder, images)
    if kind.endswith('Online'):
        stored = dict(clip_pix=[torch.stack(pix)], clip_global=[torch.stack(mean)], clip_mask=[torch.ones(3).bool()])
    else:
        stored = dict(clip_pix=pix, clip_global=mean)
    stored = {**{name: inputs[name] for name in ('points', 'clip_uv')}, **stored}
    with torch.no_grad():
        model.loss(inputs, samples)
        assert model.bi_encoder.fallback_count == len(images)
        online = model.loss(inputs, samples)
        model.bi_encoder.reset_counts()
        found = model.loss(stored, samples)
    assert model.bi_encoder.fallback_count == model.bi_encoder.missing_count == 0
    for name in online:
        assert float(found[name]) == pytest.approx(float(online[name]), rel=1e-3), name


def test_a_frame_without_its_file_is_computed_and_counted():
    model = opened(build('BiFusionSegOnline')).eval()
    inputs, samples = scene()
    pix, mean = offline(model.bi_encoder, inputs['img'][0])
    mask = torch.tensor([True, False, True])
    pix, mean = torch.stack(pix) * mask[:, None, None, None], torch.stack(mean) * mask[:, None]
    mixed = dict(inputs, clip_pix=[pix], clip_global=[mean], clip_mask=[mask])
    with torch.no_grad():
        expected = model.loss(inputs, samples)
        model.bi_encoder.reset_counts()
        found = model.loss(mixed, samples)
    assert model.bi_encoder.fallback_count == 1
    assert float(found['inst_loss']) == pytest.approx(float(expected['inst_loss']), rel=1e-3)


def test_loader_finds_files_and_counts_missing_ones(tmp_path):
    folder = tmp_path / 'clip_feat' / 's' / 'color'
    folder.mkdir(parents=True)
    torch.save({'pix': torch.ones(4, 2, 2).half(), 'global': torch.ones(16).half()}, folder / '0.pt')
    image = tmp_path / '2D' / 's' / 'color'
    image.mkdir(parents=True)
    from PIL import Image

    Image.fromarray(np.full((480, 640, 3), 9, np.uint8)).save(image / '40.jpg')
    load = LoadClipFeature(data_root=str(tmp_path))
    # paths below the data root, and joined with it already
    for prefix in ('', f'{tmp_path}/'):
        results = load(dict(img_paths=[f'{prefix}2D/s/color/0.jpg', f'{prefix}2D/s/color/40.jpg']))
        assert [each is not None for each in results['clip_pix']] == [True, False]
        assert results['frame_img'].shape == (2, 3, 480, 640) and results['frame_img'][1].max() > 0
    assert load.missing == 2
    with pytest.raises(DataError, match=r'40\.pt: no such file'):
        LoadClipFeature(data_root=str(tmp_path), strict=True)(dict(img_path='2D/s/color/40.jpg'))


def test_feature_path_changes_the_folder_and_nothing_else():
    assert clip_path('/data2D/2D/a2D.jpg/2D/scene/color/7.jpg') == '/data2D/2D/a2D.jpg/clip_feat/scene/color/7.pt'
    with pytest.raises(DataError, match='no folder 2D'):
        clip_path('/data2D/color/7.jpg')


def test_projection_comes_before_augmentation():
    with pytest.raises(ConfigError, match='before the augmentations'):
        ProjectPointsToImage()(dict(transformation_3d_flow=['R']))


def test_packer_marks_frames_without_features():
    pack = Pack3DDetInputs_(keys=['clip_pix', 'clip_global', 'clip_uv'])
    packed = pack(dict(points=torch.zeros(3, 6), clip_pix=None, clip_global=None, clip_uv=np.zeros((3, 2)),
                       frame_img=np.zeros((3, 4, 4), np.uint8)))['inputs']  # fmt: skip
    assert 'clip_pix' not in packed and not packed['clip_mask'] and packed['img'].shape == (3, 4, 4)


def test_backbone_and_bi_encoder_exclude_each_other():
    with pytest.raises(ConfigError, match='exactly one of backbone and bi_encoder'):
        MODELS.build(dict(model_config('BiFusionSeg', bi_fusion=True), backbone=model_config()['backbone']))
    with pytest.raises(ConfigError, match='neck3d'):
        build(neck=dict(type='TinySA', in_channels=8))
    with pytest.raises(ConfigError, match='needs bi_encoder'):
        MODELS.build(model_config('BiFusionSeg'))


def test_parts_of_the_3d_branch_can_be_frozen():
    cfg = model_config('BiFusionSeg', bi_fusion=True)
    cfg['bi_encoder'] = dict(cfg['bi_encoder'], freeze_3d=['conv0p1s1', 'block1'])
    model = MODELS.build(cfg).train()
    trained = {name for name, p in model.bi_encoder.backbone3d.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('conv0p1s1', 'block1.')) for name in trained) and 'block2.0.conv1.kernel' in trained
    assert not model.bi_encoder.backbone3d.block1.training and model.bi_encoder.backbone3d.block2.training


def test_a_frozen_3d_branch_with_stages_that_train():
    cfg = model_config('BiFusionSeg', bi_fusion=True)
    cfg['bi_encoder'] = dict(cfg['bi_encoder'], freeze_3d='all', unfreeze_3d=['block1', 'block2'])
    model = MODELS.build(cfg).train()
    before = {name: value.clone() for name, value in model.bi_encoder.backbone3d.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model.loss(*batch()).values()).backward()
    optimizer.step()
    for name, value in model.bi_encoder.backbone3d.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(before[name], value) != name.startswith(('block1.', 'block2.')), name
    cfg['bi_encoder']['unfreeze_3d'] = ['block9']
    with pytest.raises(ConfigError, match=r"unfreeze_3d: backbone3d has no module 'block9'"):
        MODELS.build(cfg)


@pytest.mark.parametrize('name', ['visual.conv1.weight', 'vision_model.embeddings.patch_embedding.weight'])
def test_clip_weights_of_every_layout(tmp_path, name):
    weight = torch.randn(16, 3, 16, 16)
    torch.save({name: weight.half(), 'other': torch.zeros(1)}, tmp_path / 'clip.pt')
    assert torch.equal(read_conv1(str(tmp_path / 'clip.pt')), weight.half().float())
    model = ClipConv1(pretrained=str(tmp_path / 'clip.pt'), width=16)
    assert torch.equal(model.conv1.weight, weight.half().float())
    with pytest.raises(ConfigError, match='conv1 is'):
        ClipConv1(pretrained=str(tmp_path / 'clip.pt'), width=32)


def test_clip_weights_of_a_torchscript_archive(tmp_path):
    class Visual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Module()
            self.visual.conv1 = torch.nn.Conv2d(3, CLIP['width'], 16, 16, bias=False)

        def forward(self, x):
            return x

    module = Visual()
    torch.jit.script(module).save(str(tmp_path / 'clip.pt'))
    assert torch.equal(read_conv1(str(tmp_path / 'clip.pt')), module.visual.conv1.weight)


def test_a_file_without_clip_says_so(tmp_path):
    torch.save({'a.weight': torch.zeros(2)}, tmp_path / 'other.pt')
    with pytest.raises(DataError, match='no image patch embedding'):
        read_conv1(str(tmp_path / 'other.pt'))
