"""tools/doctor.py with absent, broken, crashing and outdated packages, faked by modules first on the path."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCTOR = Path(__file__).parents[2] / 'tools' / 'doctor.py'
ABSENT = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)"


@pytest.fixture(scope='module')
def doctor():
    spec = importlib.util.spec_from_file_location('occforge_doctor', DOCTOR)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path, monkeypatch):
    def add(name, source):
        (tmp_path / f'{name}.py').write_text(source)
        monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))

    return add


def test_version_ranges(doctor):
    assert doctor.parse_version('2.13.0+cpu') == (2, 13, 0)
    assert doctor.parse_version('2.4.0rc1') == (2, 4, 0)
    assert doctor.satisfies('1.26.4', '>=1.23,<2') and not doctor.satisfies('2.0.1', '>=1.23,<2')
    assert not doctor.satisfies('1.22', '>=1.23,<2') and doctor.satisfies('anything', '')


@pytest.mark.parametrize(
    'source, found',
    [
        (ABSENT, 'not installed'),
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", 'libcudart'),
        ('import os; os.abort()', 'signal'),
        ('import sys; sys.exit(3)', 'exit code 3'),
    ],
)
def test_torch_absent_or_broken(doctor, fake, source, found):
    fake('torch', source)
    torch, cuda = doctor.probe_torch()
    assert torch.state == 'FAIL' and found in torch.found and torch.fix
    assert cuda.state == '-'
    for probe in (doctor.probe_ops, doctor.probe_sparse):
        (row,) = probe()
        assert row.state == 'FAIL' and row.fix, row


def test_old_torch(doctor, fake):
    fake('torch', "__version__ = '1.13.1'\nclass version: cuda = None\ndef get_num_threads(): return 1")
    assert doctor.probe_torch()[0].state == 'FAIL'


def test_wrong_numpy_and_hanging_package(doctor, fake):
    fake('numpy', "__version__ = '2.4.0'")
    (row,) = doctor.probe_package('numpy', 'numpy', '>=1.23,<2', 'pip install "numpy<2"')
    assert (row.state, row.found, row.fix) == ('FAIL', '2.4.0', 'pip install "numpy<2"')
    found, error = doctor.run_probe('import time; time.sleep(30)', timeout=0.5)
    assert found is None and 'no answer' in error


def test_one_absent_of_the_stack(doctor, fake):
    fake('mmseg', ABSENT)
    rows = {row.part: row for row in doctor.probe_stack()}
    assert rows['mmsegmentation'].state == 'FAIL' and 'not installed' in rows['mmsegmentation'].found
    assert rows['mmengine'].state == 'ok'


def test_optional_packages_never_fail(doctor, fake):
    fake('open3d', "raise OSError('libGL.so.1')")
    (row,) = doctor.probe_optional('open3d', 'open3d', '', 'a viewer')
    assert row.state == '-' and 'libGL' in row.found


def test_hidden_operators_are_slow_not_missing(doctor, monkeypatch):
    monkeypatch.setenv('OCCFORGE_DISABLE_EXT', '1')
    (row,) = doctor.probe_ops()
    assert row.state == 'slow' and 'references' in row.found


def run(*args, **environment):
    return subprocess.run(
        [sys.executable, str(DOCTOR), *args], capture_output=True, text=True, env=dict(os.environ, **environment)
    )


def test_this_installation_is_sound():
    done = run('--json')
    rows = {row['part']: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, [row for row in rows.values() if row['state'] == 'FAIL']
    for part in ('python', 'torch', 'CUDA', 'nvcc', 'mmdet3d', 'occforge.ops', 'sparse convolution', 'open3d'):
        assert part in rows


def test_exit_code_and_table_without_torch(fake):
    fake('torch', ABSENT)
    done = run()
    assert done.returncode == 1
    assert 'Traceback' not in done.stdout + done.stderr and not done.stderr
    line = next(line for line in done.stdout.splitlines() if line.split()[1:2] == ['torch'])
    assert line.startswith('FAIL') and 'not installed' in line and 'pip install' in line


def test_help_is_quick_and_needs_nothing():
    done = subprocess.run(
        [sys.executable, '-S', '-I', str(DOCTOR), '--help'], capture_output=True, text=True, timeout=10
    )
    assert done.returncode == 0 and 'usage' in done.stdout
