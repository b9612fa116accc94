"""What every tool is held to: help at once and without torch, one clear line and status 2 for wrong input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_train_and_test import tool

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
CONFIG = str(ROOT / 'configs/fusion_occ/fusion_occ_synthetic.py')
NAMES = sorted(
    str(path.relative_to(TOOLS))
    for path in TOOLS.rglob('*.py')
    if not path.name.startswith('_') and path.name != 'stage_runner.py'
)
HELP = """
import os, runpy, sys
sys.argv = [sys.argv[1], '--help']
sys.path.insert(0, os.path.dirname(sys.argv[0]))
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as stop:
    assert not stop.code
assert 'torch' not in sys.modules and 'mmengine' not in sys.modules
"""
# tool: arguments that name something that is not there ('missing' is in all of them)
WRONG = {
    'ablation.py': ['--configs', 'a=missing.py', 'b=missing.py'],
    'analysis/analyze_logs.py': ['missing'],
    'analysis/check_calibration.py': ['missing.pkl'],
    'analysis/estimate_memory.py': ['missing.py'],
    'analysis/get_flops.py': ['missing.py'],
    'analysis/label_prior.py': ['missing.pkl', 'missing.pkl'],
    'analysis/step_time.py': ['missing', '--samples', '4'],
    'benchmarks/esam.py': ['missing.py'],
    'benchmarks/loader.py': ['missing.py'],
    'benchmarks/model.py': ['missing.py'],
    'benchmarks/table.py': ['missing.json'],
    'browse_dataset.py': ['missing.py', '--out-dir', 'pictures'],
    'check_data.py': ['missing'],
    'converters/bevfusion_mit.py': ['missing.pth', 'out.pth'],
    'converters/bevfusion_mit_boxes.py': ['missing.pth', 'out.pth'],
    'converters/bevfusion_to_mit.py': ['missing.pth', 'out.pth'],
    'converters/custom_rig.py': ['missing'],
    'converters/esam_official.py': ['missing.pth', 'out.pth'],
    'converters/fusion_occ_official.py': ['missing.pth', 'out.pth'],
    'create_data.py': ['nuscenes', '--root-path', 'missing'],
    'create_data_bevdet.py': ['--root-path', 'missing'],
    'create_img_seg.py': ['missing.pkl'],
    'create_occ_labels.py': ['--root-path', 'missing'],
    'create_ray_labels.py': ['missing.pkl'],
    'create_sweep_infos.py': ['missing.pkl', '--out', 'sweeps.pkl'],
    'demo.py': ['--config', 'missing.py'],
    'demo_inference.py': [CONFIG, 'missing.pth'],
    'esam_stream.py': ['missing.py', 'missing.pth', 'missing', '--out', 'page.html'],
    'eval_occ.py': ['missing', 'missing'],
    'export_onnx.py': [CONFIG, 'missing.pth'],
    'fly_through.py': ['missing.npz', '--out', 'flight.png'],
    'inspect_checkpoint.py': ['missing.pth', CONFIG],
    'mask_study.py': ['--config', 'missing.py'],
    'precompute_clip_feats.py': ['--info-pkl', 'missing.pkl', '--data-root', '.', '--random-weights'],
    'temporal_study.py': ['--configs', 'a=missing.py', 'b=missing.py'],
    'test.py': [CONFIG, 'missing.pth'],
    'train.py': ['missing.py'],
    'transfer_study.py': ['--source', 'missing.pth'],
    'visualize_infos.py': ['missing.pkl', '--out-dir', 'pictures'],
    'visualize_results.py': ['missing', 'missing.pkl', '--out-dir', 'pictures'],
}
# these read none
NO_FILES = {'benchmarks/metrics.py', 'benchmarks/occupancy_loss.py', 'benchmarks/ops.py', 'doctor.py', 'rooms_study.py'}


@pytest.mark.parametrize('name', NAMES)
def test_help_needs_no_torch(name):
    done = subprocess.run([sys.executable, '-c', HELP, TOOLS / name], capture_output=True, text=True)
    assert done.returncode == 0 and 'usage' in done.stdout.lower(), done.stderr


def test_all_are_tried():
    assert set(WRONG) | NO_FILES == set(NAMES)


@pytest.mark.parametrize('name', WRONG)
def test_what_is_missing_is_named_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str((TOOLS / name).parent))
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir())
    result = tool(tmp_path / 'said', name, *WRONG[name])
    lines = result.err.strip().splitlines()
    assert result.code == 2 and 'missing' in lines[-1], result.err
    assert 'Traceback' not in result.err
    # argparse prints how a tool is used above its error
    errors = [line for line in lines if 'error:' in line]
    assert len(errors) == 1 and (len(lines) == 1 or lines[0].startswith('usage:')), result.err
    assert set(os.listdir()) - before == {'said'}  # nothing half done is left


@pytest.mark.parametrize('name', sorted(NO_FILES | {'train.py', 'create_data.py', 'eval_occ.py'}))
def test_an_option_that_there_is_not(name):
    done = subprocess.run([sys.executable, TOOLS / name, '--no-such-option'], capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr and 'error:' in done.stderr
