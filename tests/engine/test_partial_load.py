"""Starting from a checkpoint that does not quite fit: what goes in, and what the report says of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from occforge.engine import LoadSpec, load_partially, parse_load_from, write_checkpoint
from occforge.engine.partial_load import convert_kernel, inflate_kernel, interpolate_positions, kernel_layout
from occforge.errors import ConfigError, DataError
from occforge.models.sparse import SparseTensor, SubMConv3d
from torch import nn

GOLDEN = Path(__file__).parents[1] / 'data' / 'load_reports'
NUSCENES = ('car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle', 'pedestrian',
            'traffic_cone')  # fmt: skip
OURS = ('pedestrian', 'car', 'bus', 'truck', 'cyclist', 'tricycle', 'traffic_cone', 'barrier')
SIX = ('front_left', 'front', 'front_right', 'back_left', 'back', 'back_right')
FOUR = ('front', 'left', 'right', 'back')


class Head(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 3)
        self.heatmap = nn.Conv2d(8, classes, 1)
        self.class_encoding = nn.Conv1d(classes, 8, 1)


class Rig(nn.Module):
    """A camera and a LiDAR branch, a lift with a buffer that follows the config, a head by class."""

    class_axes = {'head.heatmap': 0, 'head.class_encoding.weight': 1}

    def __init__(self, classes=NUSCENES, cameras=6, depth=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.img_backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.lidar_encoder = nn.Sequential(SubMConv3d(5, 8, 3), SubMConv3d(8, 8, 1))
        self.camera_embed = nn.Parameter(torch.randn(cameras, 4))
        self.view_transform = nn.Linear(4, 8)
        self.view_transform.register_buffer('frustum', torch.randn(depth, 2, 3))
        self.head = Head(len(classes))
        for module in self.modules():  # not zeros and ones
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                module.num_batches_tracked.fill_(7 + seed)


def checkpoint(model, classes=NUSCENES, **more):
    return dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes)), **more)


def plain(state):
    """Without the layer versions, as after any dict comprehension."""
    return dict(state.items())


def equal(a, b):
    return torch.equal(a.float(), b.float())


# ------------------------------------------------------------------------------------------- the ten of the test plan
def case_prefix(source):
    content = dict(model={f'mask3d.{name}': value for name, value in source.lidar_encoder.state_dict().items()})
    return content, Rig(seed=1), dict(key_map=['mask3d -> lidar_encoder'], take=['encoders.lidar'])


def case_classes(source):
    return checkpoint(source), Rig(OURS, seed=1), dict(class_aliases=dict(cyclist='bicycle'))


def case_voxel_size(source):
    return checkpoint(source), Rig(depth=8, seed=1), dict(leave=['*.frustum'])


def case_sparse_layout(source):
    state = {
        name: value.permute(1, 2, 3, 4, 0) if value.dim() == 5 else value for name, value in source.state_dict().items()
    }
    return dict(state_dict=state, meta=dict(CLASSES=NUSCENES)), Rig(seed=1), {}


def case_extra_head(source):
    content = checkpoint(source)
    content['state_dict'].update({'map_head.weight': torch.ones(6, 8), 'map_head.bias': torch.ones(6)})
    del content['state_dict']['head.shared.bias']
    return content, Rig(seed=1), {}


def case_ema_keys(source):
    state = {f'module.{name}': value for name, value in source.state_dict().items()}
    content = dict(state_dict=Rig(seed=5).state_dict(), ema_state_dict=dict(steps=torch.tensor(3), **state))
    return content, Rig(seed=1), dict(entry='ema_state_dict')


def case_data_parallel(source):
    return {f'module.{name}': value for name, value in source.state_dict().items()}, Rig(seed=1), {}


def case_half_precision(source):
    state = {n: v.half() if v.is_floating_point() else v for n, v in source.state_dict().items()}
    return dict(state_dict=state), Rig(seed=1), {}


def case_camera_count(source):
    axes = {'camera_embed': dict(axis=0, source=SIX, target=FOUR)}
    aliases = dict(left='front_left', right='front_right')
    return checkpoint(source), Rig(cameras=4, seed=1), dict(class_axes=axes, class_aliases=aliases)


def case_unnamed_classes(source):
    return dict(state_dict=source.state_dict()), Rig(OURS, seed=1), {}


CASES = {name.removeprefix('case_'): case for name, case in list(globals().items()) if name.startswith('case_')}


@pytest.fixture
def source():
    return Rig(seed=0)


def load(tmp_path, content, model, options, classes=None):
    path = tmp_path / 'file.pth'
    write_checkpoint(content, path)
    spec = parse_load_from(dict(path=str(path), **options))
    return load_partially(model, spec, classes)


@pytest.mark.parametrize('name', list(CASES))
def test_the_report_is_the_golden_one(tmp_path, source, name):
    content, model, options = CASES[name](source)
    classes = OURS if 'classes' in name else NUSCENES
    report = load(tmp_path, content, model, options, classes).as_dict()
    for file in report['files']:
        assert file.pop('bytes') > 0 and len(file.pop('sha256')) == 64
        file['path'] = os.path.basename(file['path'])
    report = json.loads(json.dumps(report))
    if os.environ.get('OCCFORGE_WRITE_GOLDEN'):
        (GOLDEN / f'{name}.json').write_text(json.dumps(report, indent=1) + '\n')
    assert report == json.loads((GOLDEN / f'{name}.json').read_text())


@pytest.mark.parametrize('name', list(CASES))
def test_what_was_loaded_is_what_the_file_holds(tmp_path, source, name):
    content, model, options = CASES[name](source)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load(tmp_path, content, model, options, OURS if 'classes' in name else NUSCENES)
    after, theirs = model.state_dict(), source.state_dict()
    for key in report.loaded:
        assert equal(after[key], theirs[key]), key
    for key in [*report.missing, *report.kept, *(key for key, *_ in report.mismatched)]:
        assert torch.equal(after[key], before[key]), key
    if name == 'half_precision':
        assert {each.how for each in report.adapted} == {'float16 to float32'}
        for each in report.adapted:
            assert torch.equal(after[each.name], theirs[each.name].half().float())
    if name == 'sparse_layout':
        for each in report.adapted:
            assert equal(after[each.name], theirs[each.name]), each.name


def test_an_empty_file(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'')
    with pytest.raises(DataError, match=r'a.pth: damaged or not a checkpoint \(0 bytes\)'):
        load_partially(Rig(), parse_load_from(str(tmp_path / 'a.pth')))
    write_checkpoint(dict(state_dict={}), tmp_path / 'b.pth')
    with pytest.raises(DataError, match=r'b.pth: .*holds no weights'):
        load_partially(Rig(), parse_load_from(str(tmp_path / 'b.pth')))
    write_checkpoint(dict(meta=dict(epoch=1)), tmp_path / 'c.pth')
    with pytest.raises(DataError, match=r'c.pth: holds no tensors, its keys are meta'):
        load_partially(Rig(), parse_load_from(str(tmp_path / 'c.pth')))


# ------------------------------------------------------------------------------------------------------------ classes
def test_class_rows_move_by_name(tmp_path, source):
    content, model, options = case_classes(source)
    fresh = Rig(OURS, seed=1)
    report = load(tmp_path, content, model, options, OURS)
    for row, name in enumerate(OURS):
        name = 'bicycle' if name == 'cyclist' else name
        if name == 'tricycle':
            assert torch.equal(model.head.heatmap.weight[row], fresh.head.heatmap.weight[row])
            assert torch.equal(model.head.class_encoding.weight[:, row], fresh.head.class_encoding.weight[:, row])
            continue
        old = NUSCENES.index(name)
        assert torch.equal(model.head.heatmap.weight[row], source.head.heatmap.weight[old])
        assert torch.equal(model.head.heatmap.bias[row], source.head.heatmap.bias[old])
        assert torch.equal(model.head.class_encoding.weight[:, row], source.head.class_encoding.weight[:, old])
    assert 'head.class_encoding.bias' in report.loaded  # (hidden): no class axis
    assert report.adapted[0].how == '7 class rows by name on axis 0, 1 new (tricycle)'


def test_the_order_of_equally_many_classes(tmp_path, source):
    model = Rig(seed=1)
    load(tmp_path, checkpoint(source), model, {}, NUSCENES[::-1])
    assert torch.equal(model.head.heatmap.weight, source.head.heatmap.weight.flip(0))
    assert torch.equal(model.head.class_encoding.weight, source.head.class_encoding.weight.flip(1))


def test_new_classes_may_start_from_the_mean_and_background_stays_last(tmp_path, source):
    model = Rig(OURS + ('background',), seed=1)
    bigger = Rig(NUSCENES + ('background',))
    load(tmp_path, checkpoint(bigger), model, dict(new_classes='mean'), OURS)
    new = OURS.index('tricycle')
    torch.testing.assert_close(model.head.heatmap.weight[new], bigger.head.heatmap.weight[:10].mean(0))
    assert torch.equal(model.head.heatmap.bias[-1], bigger.head.heatmap.bias[-1])


def test_class_columns_between_others(tmp_path):
    """A layer that takes two numbers, a score for each class, and one number more."""

    class Painted(nn.Module):
        class_axes = dict(layer=dict(axis=1, start=2))

        def __init__(self, classes):
            super().__init__()
            self.layer = nn.Linear(2 + classes + 1, 3)

    source, model = Painted(3), Painted(4)
    options = dict(source_classes=['a', 'b', 'c'], class_aliases=dict(new='b'))
    fresh = model.layer.weight[:, 4].clone()
    load(tmp_path, dict(state_dict=source.state_dict()), model, options, ['c', 'new', 'other', 'a'])
    theirs, ours = source.layer.weight, model.layer.weight
    for column, origin in ((0, 0), (1, 1), (2, 4), (3, 3), (5, 2), (6, 5)):
        assert torch.equal(ours[:, column], theirs[:, origin]), column
    assert torch.equal(ours[:, 4], fresh) and torch.equal(model.layer.bias, source.layer.bias)


def test_class_rows_without_names_are_left_out_with_the_reason(tmp_path, source):
    content, model, _ = case_classes(source)
    del content['meta']
    report = load(tmp_path, content, model, {}, OURS)
    assert {name for name, *_ in report.mismatched} == {
        'head.heatmap.weight', 'head.heatmap.bias', 'head.class_encoding.weight',
    }  # fmt: skip
    assert set(report.reasons.values()) == {'the file does not name its classes (source_classes)'}
    report = load(tmp_path, content, model, dict(source_classes=NUSCENES, classes=OURS))
    assert not report.mismatched


def test_what_looks_like_class_rows_is_pointed_out(tmp_path, source, monkeypatch):
    monkeypatch.setattr(Rig, 'class_axes', {})
    report = load(tmp_path, checkpoint(source), Rig(OURS, seed=1), {}, OURS)
    assert 'class_axes={name: 1} moves them by name' in report.reasons['head.class_encoding.weight']


# ----------------------------------------------------------------------------------------------------- sparse kernels
LAYOUTS = {
    'spconv': lambda kernel: kernel,
    'mmcv': lambda kernel: kernel.permute(1, 2, 3, 4, 0),
    'minkowski': lambda kernel: kernel.permute(3, 2, 1, 4, 0).flatten(0, 2),
}


@pytest.mark.parametrize('channels', [(5, 8), (3, 3), (2, 3)])
@pytest.mark.parametrize('kernel', [1, 2, 3, (1, 2, 3)])
@pytest.mark.parametrize('layout', list(LAYOUTS))
def test_kernels_of_every_layout(layout, kernel, channels):
    layer = SubMConv3d(*channels, kernel) if kernel in (1, 3) else _AnyKernel(*channels, kernel)
    stored = LAYOUTS[layout](layer.weight.detach()).contiguous()
    found = kernel_layout(stored.shape, layer)
    assert found in (layout, 'either') or stored.shape == layer.weight.shape
    if found == layout:
        back, how = convert_kernel(stored, found, layer)
        assert torch.equal(back, layer.weight) and bool(how) == (layout != 'spconv')


class _AnyKernel(nn.Module):
    def __init__(self, inside, out, kernel):
        super().__init__()
        self.in_channels, self.out_channels = inside, out
        kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
        self.weight = nn.Parameter(torch.randn(out, *kernel, inside))


class _LastLayout(nn.Module):
    """A layer that stores (kx, ky, kz, in, out) itself, as mmcv's does."""

    def __init__(self, inside, out):
        super().__init__()
        self.in_channels, self.out_channels = inside, out
        self.weight = nn.Parameter(torch.randn(3, 3, 3, inside, out))


@pytest.mark.parametrize('layout', list(LAYOUTS))
def test_a_model_in_the_older_layout_takes_kernels_of_every_layout(layout):
    layer = _LastLayout(5, 8)
    first = layer.weight.detach().permute(4, 0, 1, 2, 3)
    stored = LAYOUTS[layout](first).contiguous()
    back, how = convert_kernel(stored, kernel_layout(stored.shape, layer), layer)
    assert torch.equal(back, layer.weight) and bool(how) == (layout != 'mmcv')


class Cubes(nn.Module):
    """One kernel whose two layouts have one shape, and one that tells them apart."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.cube, self.other = SubMConv3d(3, 3, 3), SubMConv3d(3, 4, 3)


@pytest.mark.parametrize('versions', [True, False])
@pytest.mark.parametrize('layout', ['spconv', 'mmcv'])
def test_no_kernel_is_permuted_twice(tmp_path, layout, versions):
    source, model = Cubes(0), Cubes(1)
    state = source.state_dict()
    if layout == 'mmcv':
        state = {name: LAYOUTS['mmcv'](v).contiguous() if v.dim() == 5 else v for name, v in state.items()}
    elif not versions:
        state = plain(state)
    for _ in range(2):  # loading again does the same
        load(tmp_path, dict(state_dict=state), model, {})
        for name, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


def test_minkowski_names_and_layers(tmp_path):
    class Small(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.conv0, self.final = SubMConv3d(3, 4, 3, bias=False), nn.Linear(4, 4, bias=False)

    source, model = Small(0), Small(1)
    state = {'backbone.conv0.kernel': LAYOUTS['minkowski'](source.conv0.weight.detach()).contiguous(),
             'backbone.final.kernel': source.final.weight.detach().t().contiguous()}  # fmt: skip
    report = load(tmp_path, dict(state_dict=state), model, dict(prefix='backbone'))
    assert torch.equal(model.conv0.weight, source.conv0.weight)
    assert torch.equal(model.final.weight, source.final.weight)
    assert {each.name for each in report.adapted} == {'conv0.weight', 'final.weight'}


def test_a_minkowski_kernel_computes_what_it_did(golden_conv):
    """The official operator's kernel and output at its input coordinates, as one 3x3x3 submanifold layer."""
    layer = SubMConv3d(3, 4, 3, bias=False)
    kernel = torch.from_numpy(golden_conv['k3_kernel'])
    with torch.no_grad():
        layer.weight.copy_(convert_kernel(kernel, kernel_layout(kernel.shape, layer), layer)[0])
    coords = torch.from_numpy(golden_conv['in_coords'])
    lowest = coords[:, 1:].min(0).values
    shifted = torch.cat([coords[:, :1], coords[:, 1:] - lowest], 1).int()
    size = (shifted[:, 1:].max(0).values + 1).tolist()
    x = SparseTensor(torch.from_numpy(golden_conv['in_feats']), shifted, size, int(coords[:, 0].max()) + 1)
    found = {tuple(key): row for key, row in zip(coords.tolist(), layer(x).features.detach())}
    for key, row in zip(golden_conv['k3_out_coords'].tolist(), golden_conv['k3_out']):
        np.testing.assert_allclose(found[tuple(key)].numpy(), row, atol=1e-5)


@pytest.fixture
def golden_conv():
    folder = os.environ.get('OCCFORGE_GOLDEN')
    if not folder:
        pytest.skip('OCCFORGE_GOLDEN is not set')
    return np.load(Path(folder) / 'ESAM' / 'conv_layout.npz', allow_pickle=False)


def test_dense_kernels_are_never_permuted(tmp_path):
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Linear(2, 2))
    state = {'0.weight': torch.randn(3, 3, 3, 3, 4), '1.weight': torch.ones(2, 2)}
    report = load(tmp_path, dict(state_dict=state), model, {})
    assert report.mismatched == [('0.weight', (3, 3, 3, 3, 4), (4, 3, 3, 3, 3))]


# ------------------------------------------------------------------------------------------- positions, inflation, ...
def test_relative_position_tables_are_resized_as_images():
    table = torch.randn((2 * 7 - 1) ** 2, 3)
    resized, how = interpolate_positions(table, ((2 * 12 - 1) ** 2, 3))
    expected = F.interpolate(table.t().reshape(1, 3, 13, 13), (23, 23), mode='bicubic', align_corners=False)
    torch.testing.assert_close(resized, expected.reshape(3, -1).t())
    assert how == 'interpolated 13x13 to 23x23'


@pytest.mark.parametrize('tokens', [0, 1])
def test_position_embeddings_keep_what_is_no_position(tokens):
    embedding = torch.randn(1, tokens + 49, 8)
    resized, _ = interpolate_positions(embedding, (1, tokens + 16, 8))
    assert torch.equal(resized[:, :tokens], embedding[:, :tokens])
    grid = embedding[:, tokens:].transpose(1, 2).reshape(1, 8, 7, 7)
    expected = F.interpolate(grid, (4, 4), mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(resized[:, tokens:], expected)
    constant = interpolate_positions(torch.full((49, 8), 2.0), (100, 8))[0]
    torch.testing.assert_close(constant, torch.full((100, 8), 2.0))


def test_positions_that_are_no_square_are_refused():
    assert interpolate_positions(torch.zeros(50 - 3, 8), (16, 8)) == (None, '47 and 16 positions are not square grids')
    assert interpolate_positions(torch.zeros(49, 8), (16, 4))[0] is None


def test_an_inflated_kernel_answers_constant_input_as_before():
    kernel, image = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 5, 5)
    flat = F.conv2d(image, kernel)
    for center in (False, True):
        inflated, _ = inflate_kernel(kernel, (4, 3, 5, 3, 3), center)
        volume = image.unsqueeze(2).expand(1, 3, 5, 5, 5)
        torch.testing.assert_close(F.conv3d(volume, inflated).squeeze(2), flat)
    more, _ = inflate_kernel(kernel, (4, 6, 3, 3))
    torch.testing.assert_close(F.conv2d(torch.cat([image, image], 1), more), flat)
    assert inflate_kernel(kernel, (5, 3, 3, 3))[0] is None


def test_policies_by_rule(tmp_path, source):
    model = Rig(seed=1)
    model.img_backbone[0] = nn.Conv2d(6, 4, 3)
    model.view_transform = nn.Linear(6, 8)
    model.lidar_encoder[0] = SubMConv3d(6, 8, 3)
    before = model.view_transform.weight.detach().clone()
    rules = [
        dict(tensors='img_backbone.0', policy='inflate'),
        dict(tensors='lidar_encoder.0.weight', policy='overlap', fill='zero'),
        dict(tensors=['view_transform.weight'], policy='overlap'),
        dict(tensors='camera_embed', policy='skip'),
    ]
    report = load(tmp_path, checkpoint(source), model, dict(rules=rules, leave=['*.frustum']), NUSCENES)
    torch.testing.assert_close(model.img_backbone[0].weight[:, 3:], source.img_backbone[0].weight / 2)
    assert torch.equal(model.lidar_encoder[0].weight[..., :5], source.lidar_encoder[0].weight)
    assert not model.lidar_encoder[0].weight[..., 5].any()
    assert torch.equal(model.view_transform.weight[:, :4], source.view_transform.weight)
    assert torch.equal(model.view_transform.weight[:, 4:], before[:, 4:])
    assert report.kept == ['camera_embed'] and report.share == 1


# ---------------------------------------------------------------------------------------------- sources, shares, words
def test_several_sources_into_one_model(tmp_path, source):
    image, lidar, model = Rig(seed=2), Rig(seed=3), Rig(seed=1)
    write_checkpoint(dict(state_dict=image.img_backbone.state_dict()), tmp_path / 'image.pth')
    write_checkpoint(checkpoint(lidar), tmp_path / 'lidar.pth')
    spec = parse_load_from(
        dict(
            sources=[
                dict(path=str(tmp_path / 'image.pth'), to='encoders_camera.body'),
                dict(path=str(tmp_path / 'lidar.pth'), prefix='lidar_encoder', to='lidar_encoder'),
            ]
        )
    )
    with pytest.raises(ConfigError, match=r"to='encoders_camera.body' names nothing in the model"):
        load_partially(model, spec)
    spec.sources[0].to = 'img_backbone'
    report = load_partially(model, spec)
    assert torch.equal(model.img_backbone[0].weight, image.img_backbone[0].weight)
    assert torch.equal(model.lidar_encoder[0].weight, lidar.lidar_encoder[0].weight)
    assert not report.missing and report.share == 1 and 'head.shared.weight' in report.kept
    assert [Path(file['path']).name for file in report.files] == ['image.pth', 'lidar.pth']


def test_the_first_source_that_has_a_tensor_gives_it(tmp_path):
    first, second, model = Rig(seed=2), Rig(seed=3), Rig(seed=1)
    write_checkpoint(dict(state_dict=first.state_dict()), tmp_path / 'a.pth')
    write_checkpoint(dict(state_dict=second.state_dict()), tmp_path / 'b.pth')
    spec = parse_load_from([str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')])
    with pytest.raises(ConfigError, match=r'b.pth: nothing'):  # it would be dead weight
        load_partially(model, spec)
    spec.sources[0].leave = ['img_backbone']
    load_partially(model, spec)
    assert torch.equal(model.img_backbone[0].weight, second.img_backbone[0].weight)
    assert torch.equal(model.head.shared.weight, first.head.shared.weight)


def test_too_small_a_share_is_an_error_and_changes_are_named(tmp_path, source):
    content, model, _ = case_classes(source)
    del content['meta']
    with pytest.raises(ConfigError, match=r'only 93.4% of the wanted 2072 parameters .*\(head.heatmap.weight: \(10, 8'):
        load(tmp_path, content, model, dict(min_loaded=0.99))
    assert load(tmp_path, content, model, dict(min_loaded=0.8)).share > 0.8


def test_a_source_that_gives_nothing_is_an_error(tmp_path, source):
    with pytest.raises(ConfigError, match=r'nothing in it fits the model. Names .* \(after renaming\): x.camera_embed'):
        load(tmp_path, checkpoint(source), Rig(), dict(key_map=[dict(regex='^', to='x.')]))
    with pytest.raises(ConfigError, match="nothing in it is under prefix 'bakbone'"):
        load(tmp_path, checkpoint(source), Rig(), dict(prefix='bakbone'))
    wide = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match=r'weight is \(2, 3\) in the file, \(3, 3\) in the model'):
        load(tmp_path, dict(state_dict=nn.Linear(3, 2).state_dict()), wide, {})


@pytest.mark.parametrize(
    'value, message',
    [
        (dict(path='a', keymap=[]), r'load_from.keymap: no such field, did you mean key_map\?'),
        (dict(leave=['a']), 'exactly one of path and sources'),
        (dict(path='a', sources=[]), 'exactly one of path and sources'),
        (dict(sources=[]), 'no file is named'),
        (dict(sources=[dict(prefix='a')]), r'load_from.sources.0: a path or dict\(path=...\)'),
        (7, 'a path or a dict is expected, found 7'),
        (dict(path='a', key_map=['a=b']), r"key_map.0: 'a -> b' or dict\(regex=, to=\)"),
        (dict(path='a', key_map=[dict(regex='(', to='')]), 'no regular expression'),
        (dict(path='a', rules=[dict(tensors='x', policy='guess')]), "'guess' is not one of auto, skip"),
        (dict(path='a', min_loaded=50), 'a share from 0 to 1'),
        (dict(path='a', new_classes='zero'), "'init' or 'mean'"),
    ],
)
def test_a_wrong_field_is_one_clear_error(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_load_from(value)


@pytest.mark.parametrize('options', [dict(take=['headd']), dict(class_axes={'headd': 0}), dict(to='headd')])
def test_a_name_that_names_nothing_is_an_error(tmp_path, source, options):
    with pytest.raises(ConfigError, match=r"'headd' names nothing in the model. Did you mean head\?"):
        load(tmp_path, checkpoint(source), Rig(), options)


def test_renames_apply_to_the_start_of_a_name_and_in_turn():
    spec = parse_load_from(dict(path='a', key_map=['decoder -> pts_backbone', 'heads.object -> bbox_head',
                                                   dict(regex=r'\.linear1\.', to='.ffn.0.')]))  # fmt: skip
    rename = spec.sources[0].rename
    assert rename('decoder.blocks.0') == 'pts_backbone.blocks.0'
    assert rename('decoder2.blocks.0') == 'decoder2.blocks.0'
    assert rename('heads.object.decoder.0.linear1.weight') == 'bbox_head.decoder.0.ffn.0.weight'
    assert isinstance(spec, LoadSpec)


def test_the_log_shows_what_was_done(tmp_path, source):
    content, model, options = case_classes(source)
    content['state_dict']['map_head.weight'] = torch.ones(1)
    report = load(tmp_path, content, model, options, OURS)
    text = '\n'.join(report.lines())
    assert 'file.pth: 21 of 21 tensors of the model loaded (3 of them adapted)' in text
    assert '~ adapted: head.class_encoding.weight ((8, 10, 1) -> (8, 8, 1), 7 class rows by name on axis 1' in text
    assert '? in the file alone: map_head.weight' in text
    assert max(map(len, report.lines())) < 250
