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
    converted, dropped = MIT.convert({pair['mit']: pair for pair in pairs}, 'a.pth')
    assert len(pairs) == 582 and not dropped
    assert {name: pair['mmdet3d_port'] for name, pair in converted.items()} == {
        pair['mmdet3d_port']: pair['mmdet3d_port'] for pair in pairs
    }


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
