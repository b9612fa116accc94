"""The wheel: what is in it, that it works away from the checkout, and what setup.py says when it cannot build."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build_environment(**more):
    environment = {
        k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'FORCE_CUDA', 'OCCFORGE_NO_EXT', 'DEBUG')
    }
    return environment | more


def setup_py(*args, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, 'setup.py', *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=build_environment(**environment),
    )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel of this checkout. Objects that `make setup` left in build/ are used again, so this takes seconds."""
    out = tmp_path_factory.mktemp('wheel')
    objects = ROOT / 'build' / f'temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}'
    stages = [
        ('egg_info', '--egg-base', out),
        ('build', '--build-lib', out / 'lib', '--build-temp', objects),
        ('bdist_wheel', '--bdist-dir', out / 'bdist', '--dist-dir', out / 'dist'),
    ]
    done = setup_py('-q', *(str(word) for stage in stages for word in stage))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (out / 'dist').glob('*.whl')
    return path


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split('/')[0] for name in names}
    assert len(top) == 2 and 'occforge' in top, top  # nothing beside the package and its metadata
    assert any(name.startswith('occforge/_C') and name.endswith('.so') for name in names)
    for path in (ROOT / 'projects' / 'occforge').rglob('*'):
        if path.is_file() and path.suffix in ('.py', '.json'):
            assert f'occforge/{path.relative_to(ROOT / "projects/occforge")}' in names, path
    for folder in ('configs', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            if '__pycache__' not in path.parts and not any(
                part.startswith('.') for part in path.relative_to(ROOT).parts
            ):
                assert f'occforge/.mim/{path.relative_to(ROOT)}' in names
    assert not [name for name in names if name.endswith(('.cpp', '.cu', '.pyc', '.pkl', '.pth'))]


def test_works_elsewhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    code = """
import occforge, torch
from pathlib import Path
where = Path(occforge.__file__).resolve()
from mmdet3d.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
occforge.register_all_modules()
ours = {c.__name__ for r in (DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS) for c in r.module_dict.values()
        if getattr(c, '__module__', '').startswith('occforge')}
from occforge.ops import _backend
assert _backend.has_extension()
assert any(name.startswith('occforge::') for name in torch._C._dispatch_get_all_op_names())
from occforge.ops import cast_rays
grid = torch.full((4, 4, 4), 17, dtype=torch.uint8)
grid[3, 0, 0] = 5
hit = cast_rays(grid, torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[1.0, 0, 0]]), (0., 0., 0.), (1., 1., 1.))
assert hit.label.tolist() == [5], hit
print(where)
print(' '.join(sorted(ours)))
"""
    environment = build_environment(PYTHONPATH=str(tmp_path / 'site'), OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    where, ours = done.stdout.splitlines()[-2:]
    assert where.startswith(str(tmp_path)), where
    import occforge
    from mmdet3d.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS

    occforge.register_all_modules()
    here = {
        c.__name__
        for r in (DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS)
        for c in r.module_dict.values()
        if getattr(c, '__module__', '').startswith('occforge')
    }
    assert here <= set(ours.split())


def test_forced_cuda_without_cuda_torch_says_so():
    torch = pytest.importorskip('torch')
    if torch.version.cuda is not None:
        pytest.skip('this torch is a CUDA build')
    done = setup_py('--version', FORCE_CUDA='1')
    assert done.returncode != 0
    assert 'FORCE_CUDA' in done.stderr and 'CPU build' in done.stderr and 'Traceback' not in done.stderr


def test_without_operators_nothing_is_compiled(tmp_path):
    done = setup_py('-q', 'build', '--build-base', str(tmp_path), OCCFORGE_NO_EXT='1')
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.rglob('*.so')) and list(tmp_path.rglob('occforge/version.py'))


def test_source_distribution_has_everything_to_build(tmp_path):
    done = setup_py(
        '-q', 'egg_info', '--egg-base', str(tmp_path), 'sdist', '--dist-dir', str(tmp_path), OCCFORGE_NO_EXT='1'
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (archive,) = tmp_path.glob('*.tar.gz')
    shutil.unpack_archive(archive, tmp_path / 'x')
    (root,) = (tmp_path / 'x').iterdir()
    for folder, patterns in {
        'csrc': ('*.cpp', '*.cu', '*.h'),
        'requirements': ('*.txt',),
        'configs': ('*.py',),
    }.items():
        for pattern in patterns:
            for path in (ROOT / folder).rglob(pattern):
                assert (root / path.relative_to(ROOT)).is_file(), path
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        if (ROOT / name).exists():
            assert (root / name).is_file(), name


@pytest.mark.slow
@pytest.mark.parametrize('debug', ['0', '1'])
def test_pip_wheel_from_a_clean_copy(tmp_path, debug):
    """`pip wheel .` compiles from nothing, in release and in debug form."""
    copy = tmp_path / 'repo'
    ignore = shutil.ignore_patterns(
        '.git', '.venv', 'build', 'dist', 'data', 'work_dirs', '__pycache__', '*.so', '*.egg-info'
    )
    shutil.copytree(ROOT, copy, ignore=ignore)
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        str(tmp_path),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=build_environment(DEBUG=debug))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob('*.whl')
    assert any(name.endswith('.so') for name in zipfile.ZipFile(path).namelist())
