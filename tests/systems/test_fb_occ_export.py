"""The deployed graph of FB-OCC: equal to the model, in standard operators, remembering as the stream does."""

import subprocess
import sys

import export_onnx
import pytest
import torch
from mmengine.config import Config
from occforge.engine import write_checkpoint
from occforge.errors import ConfigError
from occforge.systems.fbocc import DeployableFBOCC, DeployedStream, OccupancyStream
from occforge.systems.fbocc import export_onnx as write_onnx
from test_fb_occ import tiny_config, tiny_frame, tiny_model


@pytest.mark.parametrize('changes', [{}, dict(readd=False), dict(backward_projection=None), dict(history_cat_num=0)])
def test_the_graph_gives_what_the_stream_gives(changes):
    model = tiny_model(**changes)
    stream, deployed = OccupancyStream(model), DeployedStream(model)
    for _ in range(2):
        for n in range(4):
            assert torch.equal(deployed(*tiny_frame(0, n)), stream(*tiny_frame(0, n)))
        stream.reset(), deployed.reset()


def test_memory_of_an_ended_drive_does_not_matter():
    model = tiny_model()
    deployed = DeployedStream(model)
    first = deployed.frame(*tiny_frame(0, 0))
    noise = {name: torch.randn_like(first[name]) for name in ('history_bev', 'history_sweep_time')}
    with torch.no_grad():
        for a, b in zip(deployed.graph(**first), deployed.graph(**{**first, **noise})):
            assert torch.equal(a, b)
    # newest first, and each a frame older
    deployed.logits(*tiny_frame(0, 0))
    deployed.logits(*tiny_frame(0, 1))
    assert deployed._memory[1].tolist() == [[0, 1, 1]]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """(model, file) of the tool, for the six cameras of its made-up drive."""
    pytest.importorskip('onnxscript')
    folder = tmp_path_factory.mktemp('onnx')
    model = tiny_model()
    Config(dict(model=tiny_config())).dump(folder / 'tiny.py')
    write_checkpoint(dict(state_dict=model.state_dict()), folder / 'tiny.pth')
    command = [
        sys.executable,
        export_onnx.__file__,
        folder / 'tiny.py',
        folder / 'tiny.pth',
        '--out',
        folder / 'a.onnx',
    ]
    done = subprocess.run([*map(str, command), '--frames', '2'], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4 and done.stdout.count('100.0000%') == 2, done.stdout
    return model, folder / 'a.onnx'


def test_onnxruntime_computes_the_same(exported):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    rows = set()

    def run(frame):
        rows.add(len(frame['query_index']))
        assert list(frame) == [each.name for each in session.get_inputs()]
        return [torch.from_numpy(each) for each in session.run(None, {key: x.numpy() for key, x in frame.items()})]

    ours, theirs = DeployedStream(model), DeployedStream(model, run)
    for n, (inputs, sample) in enumerate(export_onnx.made_up_frames(model, 4)):
        inputs['intrins'][..., 0, 0] *= 1 + 0.3 * n  # another calibration: other numbers of points and rows
        a, b = ours.logits(inputs, sample), theirs.logits(inputs, sample)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        for x, y in zip(ours._memory, theirs._memory):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)
    assert len(rows) > 1


def test_the_file_has_standard_operators_alone(exported):
    onnx = pytest.importorskip('onnx')
    content = onnx.load(str(exported[1]))
    onnx.checker.check_model(content)
    assert {node.domain for node in content.graph.node} == {''}
    assert [each.version for each in content.opset_import if not each.domain] == [20]
    assert [each.name for each in content.graph.output] == DeployableFBOCC(exported[0]).output_names


def test_what_cannot_be_exported():
    model = tiny_model()
    with pytest.raises(ConfigError, match='opset 18'):
        write_onnx(model, {}, 'x.onnx', opset=18)
    with pytest.raises(ConfigError, match='training mode'):
        DeployableFBOCC(model.train())
