"""Checkpoints of ESAM: other layouts, other routes, wrong ones."""

import sys
from pathlib import Path

import pytest
import torch
from esam_world import model_config
from mmdet3d.registry import MODELS
from occforge.engine import load_config, load_partially, parse_load_from, write_checkpoint
from occforge.errors import ConfigError
from occforge.models.minkowski import from_minkowski, to_minkowski

sys.path.insert(0, str(Path(__file__).parents[3] / 'tools' / 'converters'))
from esam_official import CONVERTER

ROOT = Path(__file__).parents[3]


def build(*args, **kwargs):
    return MODELS.build(model_config(*args, **kwargs))


@pytest.mark.parametrize('size', [1, 2, 3, 5])
def test_kernel_layouts_are_inverse(size):
    weight = torch.randn(4, size, size, size, 3)
    kernel = to_minkowski(weight)
    assert kernel.shape == ((3, 4) if size == 1 else (size**3, 3, 4))
    assert torch.equal(from_minkowski(kernel, size), weight)
    if size == 3:  # x is the fastest tap
        assert torch.equal(kernel[1], weight[:, 1, 0, 0].t())


@pytest.mark.parametrize('prefix', ['', 'model.', 'module.', 'module.model.'])
def test_official_file_loads_whole(prefix):
    source, target = build('ScanNet200MixFormer3D_Online'), build('ScanNet200MixFormer3D_Online')
    state, dropped = CONVERTER.convert({prefix + k: v for k, v in source.state_dict().items()}, 'a.pth')
    assert not dropped
    target.load_state_dict(state, strict=True)


def test_spconv_kernels_load_too():
    source, target = build(), build()
    state = {}
    for name, value in source.state_dict().items():
        size = {8: 2, 27: 3, 125: 5}.get(len(value)) if name.endswith('.kernel') and value.dim() == 3 else None
        if size:
            state[name.removesuffix('kernel') + 'weight'] = from_minkowski(value, size)
        else:
            state[name] = value
    target.load_state_dict(state, strict=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_route_2_gives_route_3_its_3d_branch(tmp_path):
    neck = dict(type='TinySA', in_channels=8)
    source = build('ScanNet200MixFormer3D_Online', neck=neck)
    write_checkpoint(dict(meta={}, state_dict=source.state_dict()), str(tmp_path / 'mv.pth'))
    cfg = model_config('BiFusionSegOnline', bi_fusion=True)
    cfg['bi_encoder'] = dict(cfg['bi_encoder'], neck3d=neck)
    target = MODELS.build(cfg)
    hook = load_config(str(ROOT / 'configs/ESAM/ESAM_online_bifusion_scannet.py')).custom_hooks[0]
    assert hook.type == 'PartialLoadHook' and hook.min_loaded == 0.9
    given = dict(path=str(tmp_path / 'mv.pth'), key_map=hook.key_map, take=hook['take'])
    report = load_partially(target, parse_load_from(dict(given, min_loaded=0.9)))
    assert not report.unexpected
    for name, value in source.state_dict().items():
        name = name.replace('backbone.', 'bi_encoder.backbone3d.') if name.startswith('backbone.') else name
        name = name.replace('neck.', 'bi_encoder.neck3d.') if name.startswith('neck.') else name
        assert torch.equal(target.state_dict()[name], value), name
    # a map that names nothing is an error
    with pytest.raises(ConfigError):
        load_partially(target, parse_load_from(dict(given, key_map=['backbone -> nowhere'], min_loaded=0.9)))


def test_single_frames_give_the_online_model_its_start(tmp_path):
    source, target = build(), build('ScanNet200MixFormer3D_Online')
    write_checkpoint(dict(meta={}, state_dict=source.state_dict()), str(tmp_path / 'sv.pth'))
    report = load_partially(target, parse_load_from(str(tmp_path / 'sv.pth')))
    assert {name.split('.')[0] for name in report.missing} == {'memory', 'merge_head'}


def test_wrong_norm_of_the_merge_head_is_named():
    other = model_config('ScanNet200MixFormer3D_Online')
    other['merge_head'] = dict(other['merge_head'], norm='batch')
    with pytest.raises(ConfigError, match=r"merge_head\.norm='batch'"):
        build('ScanNet200MixFormer3D_Online').load_state_dict(MODELS.build(other).state_dict())
