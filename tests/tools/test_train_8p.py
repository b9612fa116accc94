"""test/train_8p_{full,performance}.sh: what they start, refuse and write. The training is a stand-in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from occforge.engine import load_config

ROOT = Path(__file__).parents[2]
STAND_IN = """#!{python}
import os, sys
arguments = sys.argv[1:]
if 'torch.distributed.run' not in arguments:
    os.execv({python!r}, [{python!r}, *arguments])
open({record!r}, 'w').write('\\n'.join(arguments))
work = arguments[arguments.index('--work-dir') + 1]
rows = ['phase,epoch,iter,time,mIoU', 'train,1,50,9.0,', 'train,1,100,3.0,', 'train,1,150,1.0,', 'train,1,200,0.5,']
open(work + '/metrics.csv', 'w').write('\\n'.join([*rows, 'val,1,200,,39.8']) + '\\n')
print('a training')
sys.exit(int(os.environ.get('FAIL', '0')))
"""


@pytest.fixture
def run(tmp_path):
    record, stand_in = tmp_path / 'arguments.txt', tmp_path / 'python'
    stand_in.write_text(STAND_IN.format(python=sys.executable, record=str(record)))
    stand_in.chmod(0o755)

    def start(kind, *arguments, cwd=ROOT, **environment):
        done = subprocess.run(
            [ROOT / f'test/train_8p_{kind}.sh', '--output', tmp_path / 'out', *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, 'PYTHON': str(stand_in), **environment},
        )
        return done, record.read_text().split('\n') if record.exists() else None

    return start


def test_full_training(run, tmp_path):
    done, arguments = run('full', cwd=ROOT / 'test')
    assert done.returncode == 0, done.stderr
    assert '--nproc_per_node=8' in arguments and 'train_dataloader.batch_size=4' in arguments
    assert any(argument.endswith('fbocc-r50-cbgs_depth_16f_16x4_20e.py') for argument in arguments)
    assert not any('accumulative' in argument for argument in arguments)
    # 100 iterations are left out, the others take (1.0 + 0.5) / 2 s
    for line in ('TrainingTime(ms/step): 750.0', 'FPS: 42.67', 'mIoU_overall: 39.80', 'StepsMeasured: 100'):
        assert line in done.stdout.split('\n'), line
    written = (tmp_path / 'out/FBOCC_bs4_8p_full.log').read_text()
    assert 'FPS: 42.67' in written and re.search(r'E2ETrainingTime\(s\): \d+', written)
    assert 'a training' in (tmp_path / 'out/0/train_0.log').read_text()


def test_fewer_devices_accumulate_to_the_same_global_batch(run):
    done, arguments = run('full', '--devices', '2', '--', '--cfg-options', 'data_root=/elsewhere')
    assert done.returncode == 0, done.stderr
    assert '--nproc_per_node=2' in arguments and 'data_root=/elsewhere' in arguments
    assert 'optim_wrapper.accumulative_counts=4' in arguments and 'param_scheduler.0.end=800' in arguments
    overrides = [argument for argument in arguments if '=' in argument and not argument.startswith('-')]
    cfg = load_config(ROOT / 'configs/fbocc/fbocc-r50-cbgs_depth_16f_16x4_20e.py', overrides)
    assert cfg.custom_hooks[1].type == 'OccEMAHook' and cfg.custom_hooks[1].interval == 4
    done, _ = run('full', '--devices', '3')
    assert done.returncode == 2 and '--global-batch 32 is no multiple of 3 x 4' in done.stderr


def test_performance_run(run, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine.txt').write_text('kept')
    done, arguments = run('performance', '--devices', '1', '--steps', '200', '--warmup', '150')
    assert done.returncode == 0, done.stderr
    assert any(argument.endswith('_8x4_perf.py') for argument in arguments) and 'train_cfg.max_iters=200' in arguments
    assert 'TrainingTime(ms/step): 500.0' in done.stdout and 'FPS: 8.00' in done.stdout
    assert (tmp_path / 'out/mine.txt').exists() and (tmp_path / 'out/FBOCC_bs4_1p_perf.log').exists()


def test_wrong_use_is_one_line(run):
    for arguments, message in (
        (('--steps', '100'), 'leaves nothing after --warmup 100'),
        (('--device', '1'), "unknown option '--device'"),
        (('--devices', 'many'), "--devices: a number is expected, found 'many'"),
        (('--config', 'nothing.py'), 'nothing.py: no such config file'),
        (('--steps',), '--steps: a value is missing'),
    ):
        done, started = run('performance', *arguments)
        assert done.returncode == 2 and started is None
        assert message in done.stderr and done.stderr.count('\n') == 1
    done, _ = run('performance', FAIL='3')
    assert done.returncode == 2 and 'status 3' in done.stderr
    done, _ = run('full', '--help')
    assert done.returncode == 0 and '--global-batch' in done.stdout
