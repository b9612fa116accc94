"""The deployed graph of UniOcc's detectors: equal to the model, in standard operators, without any render operator."""

import pytest
import torch
from mmdet3d.registry import MODELS
from occforge.errors import ConfigError
from occforge.systems.uniocc.export import DeployableUniOcc, export_onnx
from test_uni_occ import GRID, build, tiny_batch, tiny_config


def _flat():
    config = tiny_config()
    return dict(
        type='RenderOcc2D',
        num_planes=4,
        out_dim=16,
        img_view_transformer=dict(
            config['img_view_transformer'], grid_config=dict(GRID, z=[-1.0, 2.2, 3.2]), collapse_z=True
        ),
        pre_process=dict(type='CustomResNet', numC_input=4, num_layer=[1], num_channels=[4], stride=[1]),
        img_bev_encoder_backbone=dict(
            type='CustomResNet', numC_input=8, num_layer=[1, 1], num_channels=[8, 16], stride=[2, 2]
        ),
        img_bev_encoder_neck=dict(
            type='FPN_LSS', in_channels=24, out_channels=16, input_feature_index=(0, 1), extra_upsample=2
        ),
    )


def _baseline():
    config = tiny_config(type='BEVStereo4DOCC')
    for name in ('nerf_head', 'use_3d_loss', 'initial_opacity'):
        del config[name]
    return MODELS.build(config)


def _inputs(seed=0):
    inputs, samples = tiny_batch(1, seed)
    inputs['intrins'] = inputs['intrins'].clone()
    inputs['intrins'][..., 0, 0] *= 1 - 0.7 * seed
    return {name: inputs[name] for name in inputs if name not in ('rays', 'sparse_depth')}, samples


@pytest.mark.parametrize('kind', ['voxels', 'flat', 'baseline'])
def test_the_graph_gives_what_the_model_gives(kind):
    model = {'voxels': build, 'flat': lambda: build(**_flat()), 'baseline': _baseline}[kind]().eval()
    graph = DeployableUniOcc(model)
    for seed in (0, 1):
        inputs, samples = _inputs(seed)
        with torch.no_grad():
            expected = model(inputs, samples, mode='tensor')
            found = graph(**graph.frame_inputs(inputs, samples))
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert len(found) == len(expected) == len(graph.output_names)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_onnxruntime_computes_the_same_from_standard_operators(tmp_path):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = build().eval()
    graph = DeployableUniOcc(model)
    export_onnx(model, graph.frame_inputs(*_inputs(0)), tmp_path / 'uniocc.onnx')
    content = onnx.load(str(tmp_path / 'uniocc.onnx'))
    onnx.checker.check_model(content)
    assert {node.domain for node in content.graph.node} == {''}
    session = runtime.InferenceSession(str(tmp_path / 'uniocc.onnx'), providers=['CPUExecutionProvider'])
    numbers = set()
    for seed in (0, 1):  # another calibration: another number of points
        frame = graph.frame_inputs(*_inputs(seed))
        numbers.add(len(frame['ranks_bev']))
        found = session.run(None, {name: value.numpy() for name, value in frame.items()})
        with torch.no_grad():
            expected = model(_inputs(seed)[0], mode='tensor')
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-3, atol=1e-3)
    assert len(numbers) == 2


def test_what_cannot_be_exported():
    model = build().eval()
    with pytest.raises(ConfigError, match='opset 11'):
        export_onnx(model, {}, 'x.onnx', opset=11)
    with pytest.raises(ConfigError, match='training mode'):
        DeployableUniOcc(model.train())


def test_the_tool_writes_and_compares(tmp_path):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    import subprocess
    import sys

    import export_onnx as tool
    from mmengine.config import Config
    from occforge.engine import write_checkpoint

    Config(dict(model=tiny_config())).dump(tmp_path / 'tiny.py')
    write_checkpoint(dict(state_dict=build().state_dict()), tmp_path / 'tiny.pth')
    files = [tmp_path / 'tiny.py', tmp_path / 'tiny.pth', '--out', tmp_path / 'a.onnx', '--frames', '2']
    done = subprocess.run(
        [sys.executable, tool.__file__, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4, done.stdout
