"""Converters of checkpoints: nothing is lost, nothing is run, what comes out loads."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from occforge.engine import read_checkpoint, write_checkpoint
from occforge.errors import DataError
from test_train_and_test import TOOLS, TOY, tool

sys.path.insert(0, str(TOOLS / 'converters'))
from _frame import Converter
from bevfusion_mit import CONVERTER as MIT
from bevfusion_mit import fold_boxes
from bevfusion_mit_boxes import CONVERTER as BOXES
from bevfusion_to_mit import CONVERTER as TO_MIT
from fusion_occ_official import CONVERTER as OFFICIAL


@pytest.mark.parametrize(
    'old, new',
    [
        ('encoders.camera.backbone.patch_embed.projection.weight', 'img_backbone.patch_embed.projection.weight'),
        ('encoders.lidar.backbone.conv_input.0.weight', 'pts_middle_encoder.conv_input.0.weight'),
        ('decoder.backbone.blocks.0.0.weight', 'pts_backbone.blocks.0.0.weight'),
        ('heads.object.decoder.0.multihead_attn.in_proj_weight', 'bbox_head.decoder.0.cross_attn.attn.in_proj_weight'),
        ('heads.object.decoder.0.linear2.bias', 'bbox_head.decoder.0.ffn.layers.1.bias'),
        ('heads.object.decoder.0.norm3.weight', 'bbox_head.decoder.0.norms.2.weight'),
        ('heads.map.classifier.6.weight', 'map_head.classifier.6.weight'),
    ],
)
def test_names_of_mits_bevfusion(old, new):
    assert list(MIT.convert({old: torch.ones(1)}, 'a.pth')[0]) == [new]


def test_all_names_of_mits_bevfusion():
    golden = os.environ.get('OCCFORGE_GOLDEN')
    keymap = Path(golden or '.').parent / 'specs' / 'BEVFusion_keymap.json'
    if not golden or not keymap.is_file():
        pytest.skip('the list of all names is not here')
    pairs = json.loads(keymap.read_text())
    state = {pair['mit']: torch.zeros(pair['mit_shape']) for pair in pairs}
    converted, dropped = MIT.convert(state, 'a.pth')
    assert len(pairs) == 582 and not dropped
    found = {name: list(value.shape) for name, value in converted.items()}
    assert found == {pair['mmdet3d_port']: pair['port_shape'] for pair in pairs}
    back, _ = TO_MIT.convert(converted, 'b.pth')
    assert {name: value.shape for name, value in back.items()} == {name: v.shape for name, v in state.items()}


def mit_state():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        'encoders.lidar.backbone.conv_input.0.weight': (3, 3, 3, 5, 16),
        'encoders.lidar.backbone.conv_out.0.weight': (1, 1, 3, 128, 128),
        'heads.object.decoder.0.self_attn.out_proj.weight': (8, 8),
        'heads.object.decoder.0.linear1.weight': (8, 8),
        'heads.object.prediction_heads.0.dim.1.weight': (3, 64, 1),
        'heads.object.prediction_heads.0.dim.1.bias': (3,),
        'heads.object.prediction_heads.0.rot.1.weight': (2, 64, 1),
        'heads.object.prediction_heads.0.rot.1.bias': (2,),
        'heads.map.classifier.6.weight': (6, 16, 1, 1),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_mits_kernels_and_boxes():
    state = mit_state()
    ours = MIT.convert(state, 'a.pth')[0]
    kernel = ours['pts_middle_encoder.conv_input.0.weight']
    assert kernel.shape == (16, 3, 3, 3, 5)
    assert torch.equal(kernel[7, 0, 1, 2], state['encoders.lidar.backbone.conv_input.0.weight'][0, 1, 2, :, 7])
    # decoded: what MIT's head says, and what the folded one says of the same features
    features = torch.randn(64, generator=torch.Generator().manual_seed(1))

    def outputs(weights, prefix, name):
        name = f'{prefix}.prediction_heads.0.{name}.1.'
        return weights[name + 'weight'][..., 0] @ features + weights[name + 'bias']

    width, length, height = outputs(state, 'heads.object', 'dim')
    assert torch.allclose(outputs(ours, 'bbox_head', 'dim'), torch.stack([length, width, height]))
    yaw, turned = (torch.atan2(*outputs(*each, 'rot')) for each in ((state, 'heads.object'), (ours, 'bbox_head')))
    difference = (turned - (-yaw - torch.pi / 2)) / (2 * torch.pi)
    assert abs(difference - difference.round()) < 1e-6


def test_there_and_back_is_bit_identical():
    state = mit_state()
    back = TO_MIT.convert(MIT.convert(state, 'a.pth')[0], 'b.pth')[0]
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)
    ours = MIT.convert(state, 'a.pth')[0]
    again = MIT.convert(TO_MIT.convert(ours, 'b.pth')[0], 'a.pth')[0]
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_boxes_of_the_first_conversion_are_folded():
    ours = MIT.convert(mit_state(), 'a.pth')[0]
    unfolded = fold_boxes(ours)
    assert all(torch.equal(value, ours[name]) for name, value in BOXES.convert(unfolded, 'c.pth')[0].items())
    name = 'bbox_head.prediction_heads.0.rot.1.bias'
    assert not torch.equal(unfolded[name], ours[name])


def test_what_has_no_place_is_an_error():
    converter = Converter('', key_map=['a -> b'], targets=['b'], drop=['*.grid'])
    converted, dropped = converter.convert({'a.x': 1, 'a.grid': 2}, 'f.pth')
    assert converted == {'b.x': 1} and dropped == ['a.grid']
    with pytest.raises(DataError, match=r'f.pth: 1 of 2 tensors have no place in the new layout \(c.y\)'):
        converter.convert({'a.x': 1, 'c.y': 2}, 'f.pth')
    with pytest.raises(DataError, match=r'a.x and b.x both become b.x'):
        converter.convert({'a.x': 1, 'b.x': 2}, 'f.pth')


def test_the_command(tmp_path):
    state = {'encoders.camera.backbone.first.weight': torch.ones(2)}
    write_checkpoint(dict(state_dict=state, meta=dict(CLASSES=('car',))), tmp_path / 'in.pth')
    command = ['converters/bevfusion_mit.py', tmp_path / 'in.pth', tmp_path / 'out.pth']
    result = tool(tmp_path, *command)
    assert result.code == 0 and '1 tensors written' in result.out, result.err
    out = read_checkpoint(tmp_path / 'out.pth')
    assert list(out['state_dict']) == ['img_backbone.first.weight'] and out['meta']['CLASSES'] == ('car',)
    result = tool(tmp_path, *command)
    assert result.code == 2 and 'exists already (--force replaces it)' in result.err
    result = tool(tmp_path, *command, '--force', '--config', TOY)
    assert result.code == 2 and 'nothing in it fits the model' in result.err  # not a BEVFusion


def test_fusion_occ_in_the_published_layout():
    specs = Path(os.environ.get('OCCFORGE_SPECS', TOOLS.parents[1] / 'shared' / 'specs')) / 'FusionOcc_params.json'
    if not specs.is_file():
        pytest.skip('FusionOcc_params.json not found: set OCCFORGE_SPECS to the folder that holds it')
    shapes = json.loads(specs.read_text())
    ours = {name: torch.zeros(()).expand(shape) for name, shape in shapes['fusion_occ@spconv2_layout'].items()}
    name = 'lidar_encoder.encoder_layers.encoder_layer1.2.0.weight'
    ours[name] = torch.randn(ours[name].shape)
    published, dropped = OFFICIAL.convert(ours, 'a.pth')
    assert {key: list(value.shape) for key, value in published.items()} == shapes['fusion_occ'] and not dropped
    assert torch.equal(published[name][0, 1, 2], ours[name][:, 0, 1, 2].T)
    again, _ = OFFICIAL.convert(published, 'a.pth')
    assert all(again[key].shape == value.shape for key, value in published.items())
