"""The command lines of train.py, test.py and their launchers, on the toy training."""

import argparse
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from occforge.engine import read_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / 'tools'
TOY = REPOSITORY / 'tests' / 'data' / 'toy_config.py'
TOY_MODULES = REPOSITORY / 'tests' / 'engine'


@pytest.fixture(scope='module', autouse=True)
def _imported():
    """Import once what every forked tool needs."""
    import importlib

    import occforge  # noqa: F401

    sys.path[:0] = [str(TOY_MODULES), str(TOOLS)]
    for module in ('mmdet3d.datasets', 'mmdet3d.engine', 'mmdet3d.models', 'toy'):
        importlib.import_module(module)
    yield
    sys.path.remove(str(TOY_MODULES)), sys.path.remove(str(TOOLS))


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def start(folder, name, *arguments, environment=None):
    """Start a tool in a forked process that has torch imported already; returns its id."""
    folder.mkdir(exist_ok=True)
    files = [os.open(folder / part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for part in ('stdout', 'stderr')]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(files[0], 1), os.dup2(files[1], 2)
            sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
            os.environ.update(environment or {})
            torch.set_num_threads(1)
            # a background job's children ignore it; these must not, or they could not be interrupted
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = [name, *map(str, arguments)]
            runpy.run_path(str(TOOLS / name), run_name='__main__')
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    for file in files:
        os.close(file)
    return pid


def finish(folder, pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Result(code, (folder / 'stdout').read_text(), (folder / 'stderr').read_text())


def tool(folder, name, *arguments, environment=None):
    return finish(folder, start(folder, name, *arguments, environment=environment))


def shell(*command, timeout=120, **environment):
    path = f'{REPOSITORY / "projects"}:{TOY_MODULES}'
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=timeout)


def config_of(folder):
    """The config that the run has dumped into its work dir."""
    from occforge.engine import load_config

    return load_config(folder / 'toy_config.py')


SHORT = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.dataset.size=8']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    result = tool(folder, 'train.py', TOY, '--work-dir', folder)
    assert result.code == 0, result.err
    return folder


def loaded(folder, name):
    return read_checkpoint(folder / name)


# -------------------------------------------------------------------------------------------------- before torch
@pytest.mark.parametrize('name', ['train.py', 'test.py', 'inspect_checkpoint.py'])
def test_help_and_bad_arguments_do_not_import_torch(name, tmp_path):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    began = time.monotonic()
    result = shell(sys.executable, TOOLS / name, '--help', PYTHONPATH=str(tmp_path))
    assert result.returncode == 0 and '--cfg-options' in result.stdout
    assert time.monotonic() - began < 3  # 0.1 s where nothing else runs
    result = shell(sys.executable, TOOLS / name, 'a.py', 'b.pth', '--wrok-dir', 'x', PYTHONPATH=str(tmp_path))
    assert result.returncode == 2 and 'did you mean --work-dir?' in result.stderr
    assert os.access(TOOLS / name, os.X_OK)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['train.py', 'no.py'], 'no.py: no such config file'),
        (['train.py', TOY, '--resume', 'no.pth'], 'no.pth: no such checkpoint file'),
        (['train.py', TOY, '--resume-from', 'no.pth'], 'no.pth: no such checkpoint file'),
        (['train.py', TOY, '--load_from', 'no.pth'], 'no.pth: no such checkpoint file'),
        (['test.py', TOY, 'no.pth'], 'no.pth: no such checkpoint file'),
        (['test.py', TOY], 'checkpoint'),
        (['train.py', TOY, '--optimizer.lr'], '--optimizer.lr needs a value'),
        (['train.py', TOY, '--optimizer.lrr', '1'], 'Did you mean optim_wrapper.optimizer.lr?'),
        (['train.py', TOY, '--cfg-options', 'modle.width=3'], 'Did you mean model.width?'),
        (['train.py', TOY, '--cfg-options', '+model.widht=3'], "unexpected keyword argument 'widht'"),
        (['train.py', TOY, '--cfg-options', 'model.type=ToyModle'], 'did you mean ToyModel?'),
        (['train.py', TOY, '--cfg-options', 'optim_wrapper.optimizer.type=Adamw'], 'did you mean AdamW?'),
        (['train.py', TOY, '--cfg-options', 'train_dataloader.dataset.type=Toy'], "type='Toy' is not a registered"),
        (['train.py', TOY, '--cfg-options', 'val_evaluator=None'], 'val_evaluator'),
        (['train.py', TOY, '--cfg-options', 'train_cfg=None'], 'train_cfg is missing'),
        (['train.py', TOY, '--launcher', 'torchpack'], 'torchpack'),
        (['train.py', TOY, '--launcher', 'pytorch'], 'RANK'),
        (['train.py', TOY, '--launcher', 'slurm'], 'SLURM_PROCID'),
        (['train.py', TOY, '--amp', '--cfg-options', 'optim_wrapper.type=Other'], "'Other'"),
        (['train.py', TOY, '--auto-scale-lr'], 'base_batch_size'),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, arguments, message, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    result = tool(tmp_path, *arguments, '--work-dir', tmp_path / 'work')
    assert result.code == 2, result.err
    errors = [line for line in result.err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and message in errors[0] and 'Traceback' not in result.err


@pytest.mark.parametrize('name, said, expected', [
    ('THP_MEM_ALLOC_ENABLE', None, '1'), ('THP_MEM_ALLOC_ENABLE', '0', '0'),
    ('OPENBLAS_NUM_THREADS', None, '1'), ('OPENBLAS_NUM_THREADS', '4', '4'),
])  # fmt: skip
def test_what_the_tools_set_unless_the_user_says_otherwise(name, said, expected, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    if said is not None:
        monkeypatch.setenv(name, said)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.syspath_prepend(str(TOOLS))
    prepare = runpy.run_path(str(TOOLS / '_cli.py'))['prepare']
    prepare(argparse.Namespace(device=None, local_rank=0))
    assert os.environ[name] == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_asking_for_a_gpu_where_there_is_none(tmp_path):
    result = tool(tmp_path, 'train.py', TOY, '--device', 'cuda')
    assert result.code == 2 and result.err.startswith('error: --device cuda: torch sees no GPU')


@pytest.mark.parametrize('content', [b'', b'garbage', None])
def test_a_bad_checkpoint_is_one_line(tmp_path, content, trained):
    path = tmp_path / 'bad.pth'
    path.write_bytes((trained / 'epoch_3.pth').read_bytes()[:3000] if content is None else content)
    for arguments in (['test.py', TOY, path], ['train.py', TOY, '--load-from', path]):
        result = tool(tmp_path, *arguments, '--work-dir', tmp_path / 'work')
        errors = [line for line in result.err.splitlines() if line.startswith('error: ')]
        assert result.code == 2 and len(errors) == 1 and 'bad.pth' in errors[0] and 'Traceback' not in result.err


# -------------------------------------------------------------------------------------------------------- train.py
@pytest.mark.parametrize(
    'arguments, expected',
    [
        (['--optimizer.lr', '5e-5', '--data.workers_per_gpu', '0'], dict(lr=5e-5)),
        (['--optimizer.lr=5e-5', '--data.samples_per_gpu=2'], dict(lr=5e-5, batch=2)),
        (['--max_epochs', '2', '--seed', '7'], dict(epochs=2, seed=7)),
        (['--cfg-options', 'model.rows=True'], dict(rows=True)),
        (['--cfg-options', 'use_rows=True', '--amp'], dict(rows=True, wrapper='OccAmpOptimWrapper')),
        (['--local_rank', '0'], {}),
        (['--local-rank=0', '--device', 'cpu'], {}),
    ],
)
def test_spellings(tmp_path, arguments, expected):
    defaults = dict(lr=1e-2, batch=4, epochs=1, seed=0, rows=False, wrapper='OptimWrapper')
    short = ['--cfg-options', 'train_dataloader.dataset.size=8']
    short += [] if 'epochs' in expected else ['train_cfg.max_epochs=1']
    result = tool(tmp_path, 'train.py', *arguments, TOY, *short, '--work-dir', tmp_path / 'work')
    assert result.code == 0, result.err
    cfg = config_of(tmp_path / 'work')
    found = dict(
        lr=cfg.optim_wrapper.optimizer.lr,
        batch=cfg.train_dataloader.batch_size,
        epochs=cfg.train_cfg.max_epochs,
        seed=cfg.randomness.seed,
        rows=cfg.model.rows,
        wrapper=cfg.optim_wrapper.type,
    )
    assert found == {**defaults, **expected} and cfg.use_rows == cfg.model.rows


@pytest.mark.parametrize('option', ['--work-dir', '--run-dir', None])
def test_the_work_dir(tmp_path, option, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = [option, 'here'] if option else []
    assert tool(tmp_path / 'log', 'train.py', TOY, *SHORT, *where).code == 0
    folder = tmp_path / ('here' if option else 'work_dirs/toy_config')
    assert (folder / 'epoch_1.pth').is_file() and (folder / 'metrics.csv').is_file()


@pytest.mark.parametrize('resume', [['--resume'], ['--resume', 'auto'], ['--resume', 'PATH']])
def test_resume(tmp_path, trained, resume):
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'epoch_2.pth').write_bytes((trained / 'epoch_2.pth').read_bytes())
    (work / 'last_checkpoint').write_text(str(work / 'epoch_2.pth'))
    resume = [str(work / 'epoch_2.pth') if text == 'PATH' else text for text in resume]
    result = tool(tmp_path, 'train.py', TOY, '--work-dir', work, *resume)
    assert result.code == 0 and 'Resumed after 2 epochs, 12 iterations' in result.out + result.err
    ours, theirs = loaded(work, 'epoch_3.pth'), loaded(trained, 'epoch_3.pth')
    assert all(torch.equal(ours['state_dict'][key], value) for key, value in theirs['state_dict'].items())


@pytest.mark.parametrize('option', ['--resume-from', '--load-from', '--load_from'])
def test_resume_from_a_finished_training_and_load_from(tmp_path, trained, option):
    work = tmp_path / 'work'
    result = tool(
        tmp_path, 'train.py', TOY, '--work-dir', work, option, trained / 'epoch_3.pth', '--optimizer.lr', '0', *SHORT
    )
    assert result.code == 0, result.err
    log = result.out + result.err
    assert log.count('WARNING - ' + str(trained / 'epoch_3.pth')) == (option == '--resume-from')
    assert ('has already reached epoch 3 of 1' in log) == (option == '--resume-from')
    ours, theirs = loaded(work, 'epoch_1.pth'), loaded(trained, 'epoch_3.pth')
    assert torch.equal(ours['state_dict']['first.weight'], theirs['state_dict']['first.weight'])


def test_an_interrupt_is_quiet(tmp_path):
    work = tmp_path / 'work'
    pid = start(tmp_path, 'train.py', TOY, '--work-dir', work, '--max_epochs', '1000')
    while not (work / 'epoch_1.pth').exists():
        time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    result = finish(tmp_path, pid)
    assert result.code == 130 and result.err.rstrip().endswith('interrupted') and 'Traceback' not in result.err


# --------------------------------------------------------------------------------------------------------- test.py
def test_test_writes_results(tmp_path, trained):
    work = tmp_path / 'work'
    out = tmp_path / 'results.json'
    result = tool(tmp_path, 'test.py', TOY, trained / 'epoch_3.pth', '--work-dir', work, '--out', out)
    assert result.code == 0, result.err
    written = json.loads(out.read_text())
    assert written['metrics']['count'] == 8 and written['checkpoint'] == str(trained / 'epoch_3.pth')
    assert 'testing on' in result.out + result.err and (work / 'metrics.csv').read_text().splitlines()[1][:4] == 'test'
    error = re.search(r'error: ([\d.]+)', result.out + result.err).group(1)
    assert written['metrics']['error'] == pytest.approx(float(error), abs=1e-4)


def test_predictions_need_a_metric_that_writes_them(tmp_path, trained):
    result = tool(tmp_path, 'test.py', TOY, trained / 'epoch_3.pth', '--work-dir', tmp_path, '--out', tmp_path / 'pred')
    assert result.code == 2 and 'ToyMetric cannot write predictions' in result.err


# -------------------------------------------------------------------------------------------------------- launchers
def test_torchrun_without_a_launcher_is_one_job(tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--rdzv_backend=c10d',
               '--rdzv_endpoint=localhost:0', TOOLS / 'train.py', TOY, '--work-dir', tmp_path, *SHORT]  # fmt: skip
    result = shell(*command)
    assert result.returncode == 0, result.stderr
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert '2 processes (gloo)' in log or torch.cuda.is_available()
    assert 'total batch 8 = 4 x 2' in log and len(list(tmp_path.glob('*/*.log'))) == 1
    assert 'torch sees no GPU: 2 processes run on the CPU (gloo)' in result.stderr or torch.cuda.is_available()


@pytest.mark.slow
def test_dist_train_and_dist_test(tmp_path):
    result = shell(TOOLS / 'dist_train.sh', TOY, 2, '--work-dir', tmp_path, '--data.workers_per_gpu', 0, *SHORT)
    assert result.returncode == 0, result.stderr
    assert 'torch sees no GPU: 2 processes run on the CPU (gloo)' in result.stderr or torch.cuda.is_available()
    out = tmp_path / 'r.json'
    result = shell(TOOLS / 'dist_test.sh', TOY, tmp_path / 'epoch_1.pth', 1, '--work-dir', tmp_path, '--out', out)
    assert result.returncode == 0 and json.loads(out.read_text())['metrics']['count'] == 8


def record(folder, name):
    """A program that writes its arguments into a file."""
    (folder / name).write_text(f'#!/bin/bash\necho "$@" > {folder}/asked\n')
    (folder / name).chmod(0o755)
    return folder / name


def test_several_nodes_are_passed_on(tmp_path):
    nodes = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='29511')
    python = record(tmp_path, 'python')
    result = shell(TOOLS / 'dist_train.sh', TOY, 4, '--resume', **{**nodes, 'PYTHON': str(python)})
    assert result.returncode == 0
    asked = (tmp_path / 'asked').read_text()
    for part in ('--nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=29511 --nproc_per_node=4',
                 f'tools/train.py {TOY} --resume --launcher pytorch'):  # fmt: skip
        assert part in asked
    result = shell(TOOLS / 'dist_test.sh', TOY, TOY, 2, '--out', 'r.json', PYTHON=str(python))
    asked = (tmp_path / 'asked').read_text()
    assert '--nproc_per_node=2' in asked and f'tools/test.py {TOY} {TOY} --out r.json --launcher pytorch' in asked
    del nodes['MASTER_ADDR']
    result = shell(TOOLS / 'dist_train.sh', TOY, 4, **{**nodes, 'PYTHON': str(python)})
    assert result.returncode == 2 and 'needs MASTER_ADDR' in result.stderr


@pytest.mark.slow
def test_two_nodes(tmp_path):
    from ranks import free_port

    environment = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free_port()), PYTHON=sys.executable)
    environment = {**os.environ, **environment, 'PYTHONPATH': str(TOY_MODULES), 'OMP_NUM_THREADS': '1'}
    command = [TOOLS / 'dist_train.sh', TOY, 1, '--work-dir', tmp_path, *SHORT]
    nodes = [
        subprocess.Popen(list(map(str, command)), env={**environment, 'NODE_RANK': str(rank)}, stdout=-3, stderr=-1)
        for rank in range(2)
    ]
    errors = [node.communicate(timeout=120)[1].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert 'total batch 8 = 4 x 2' in next(tmp_path.glob('*/*.log')).read_text()


@pytest.mark.slow
def test_one_rank_raising_ends_the_job(tmp_path):
    began = time.monotonic()
    result = shell(TOOLS / 'dist_train.sh', TOY, 2, '--work-dir', tmp_path, '--cfg-options', '+model.fail_rank=1')
    assert result.returncode != 0 and 'fails on purpose' in result.stderr
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    'command, message',
    [
        (['dist_train.sh'], 'usage: dist_train.sh CONFIG GPUS'),
        (['dist_train.sh', 'no.py', '2'], 'no.py: no such config file'),
        (['dist_train.sh', TOY, 'two'], "a number of processes is expected, found 'two'"),
        (['dist_test.sh', TOY, 'no.pth', '2'], 'no.pth: no such checkpoint file'),
        (['slurm_train.sh', 'p', 'j', TOY, 'w'], 'srun is not on the PATH'),
        (['slurm_test.sh', 'p', 'j', TOY], 'usage: slurm_test.sh'),
    ],
)
def test_launchers_refuse_wrong_input_in_one_line(command, message):
    result = shell(TOOLS / command[0], *command[1:], PATH='/usr/bin:/bin')
    assert result.returncode == 2 and result.stderr.startswith('error: ') and message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_slurm(tmp_path):
    record(tmp_path, 'srun')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    result = shell(TOOLS / 'slurm_train.sh', 'gpu', 'job', TOY, tmp_path / 'work', '--amp', PATH=path, GPUS='16')
    assert result.returncode == 0, result.stderr
    asked = (tmp_path / 'asked').read_text()
    assert '-p gpu --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8' in asked
    assert f'train.py {TOY} --work-dir {tmp_path / "work"} --amp --launcher slurm' in asked
    # and a task of it, with Slurm's variables
    from ranks import free_port

    task = dict(SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0', SLURM_NODELIST='localhost',
                MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))  # fmt: skip
    arguments = (TOY, '--work-dir', tmp_path / 'work', *SHORT, '--launcher', 'slurm')
    result = tool(tmp_path, 'train.py', *arguments, environment=task)
    assert result.code == 0 and (tmp_path / 'work' / 'epoch_1.pth').is_file()
