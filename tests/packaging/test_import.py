"""What importing may and may not do, tried in fresh interpreters."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import occforge
import pytest

PACKAGE = Path(occforge.__file__).parent
# what torch itself imports; nothing else may be needed by occforge.ops
TORCH_AND_ITS_OWN = (
    'torch torchgen functorch typing_extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec'.split()
)


def run(code, *flags, **environment):
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE.parent), OMP_NUM_THREADS='1') | environment
    done = subprocess.run([sys.executable, *flags, '-c', code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def torch_alone(tmp_path):
    """A module path on which there is torch with what it needs, and nothing else."""
    for name in TORCH_AND_ITS_OWN:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        source = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (tmp_path / source.name).symlink_to(source)
    libraries = Path(importlib.util.find_spec('torch').origin).parents[1]
    for folder in [*libraries.glob('nvidia*'), *libraries.glob('triton*')]:  # beside a CUDA build
        (tmp_path / folder.name).symlink_to(folder)
    return f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(PACKAGE.parent)!r}]\n'


def test_ops_need_torch_alone(torch_alone):
    code = (
        torch_alone
        + """
import importlib.util
assert importlib.util.find_spec('mmengine') is None and importlib.util.find_spec('numpy') is None
import occforge
import occforge.ops
assert occforge.__version__
import torch
assert not torch.cuda.is_initialized()
print('fine')
"""
    )
    assert run(code, '-I', '-S').endswith('fine\n')


def test_ops_fail_for_a_foreign_module_only(torch_alone):
    """The check above means something: numpy cannot be imported there."""
    code = (
        torch_alone
        + "import importlib.util; print(importlib.util.find_spec('cv2'), importlib.util.find_spec('torch') is not None)"
    )
    assert run(code, '-I', '-S') == 'None True\n'


def test_import_compiles_nothing_touches_no_gpu_needs_no_option():
    out = run("""
import sys
from importlib.machinery import PathFinder

class WithoutOptions(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split('.')[0] in ('open3d', 'torchvision', 'spconv', 'cumm', 'plyfile', 'onnx', 'triton'):
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutOptions
started = []
def watch(event, args):
    if event in ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn'):
        command = str(args[0])
        if not any(tool in command for tool in ('ldconfig', 'uname', 'lscpu')):  # the platform module's questions
            started.append((event, args[:2]))
sys.addaudithook(watch)
import occforge
import torch
assert not torch.cuda.is_initialized()
compilers = [entry for entry in started if any(word in str(entry) for word in ('gcc', 'g++', 'c++', 'nvcc', 'ninja'))]
assert not compilers, compilers
occforge.register_all_modules()
from mmdet3d.registry import HOOKS
assert 'PredictionVisHook' in HOOKS.module_dict
print('fine')
""")
    assert out.endswith('fine\n')


@pytest.mark.parametrize('before', ['', "import mmengine.hooks; assert mmengine.registry.HOOKS.get('LoggerHook')"])
def test_registries_import_when_they_are_asked(before):
    """The import alone brings in no module of a system, ours or mmdet3d's: it takes a fraction of a second."""
    out = run(f"""
import sys
{before}
known = set(sys.modules)
import occforge
heavy = [n for n in set(sys.modules) - known if n.startswith(('mmdet3d.models', 'mmdet3d.datasets', 'mmdet.models'))]
assert not heavy, heavy
assert not [n for n in sys.modules if n.startswith('occforge.models')]
from mmdet3d.registry import DATASETS, METRICS, MODELS
from mmengine.registry import LOOPS, RUNNERS
assert MODELS.get('FusionOCC').__module__ == 'occforge.systems.fusionocc.fusion_occ'
assert 'NuScenesOccDataset' in DATASETS and METRICS.get('RayIoU') and 'OccEpochTrainLoop' in LOOPS
assert RUNNERS.get('OccRunner') is occforge.engine.OccRunner
print('fine')
""")
    assert out.endswith('fine\n')


def test_an_attribute_that_there_is_not():
    with pytest.raises(AttributeError, match="module 'occforge' has no attribute 'modles'"):
        _ = occforge.modles


def test_without_the_library_one_warning(tmp_path):
    """No compiled operators: the package imports, and the first question for them warns once."""
    copy = tmp_path / 'occforge'
    copy.mkdir()
    for path in PACKAGE.iterdir():
        if not path.name.startswith('_C') and path.name != '__pycache__':
            (copy / path.name).symlink_to(path)
    # a symlinked __init__ resolves to its own place, so the search for the library is pointed at the copy
    (copy / 'ops').unlink()
    (copy / 'ops').mkdir()
    for path in (PACKAGE / 'ops').glob('*.py'):
        (copy / 'ops' / path.name).write_text(path.read_text())
    out = run(
        """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import occforge.ops
    ours = [w for w in caught if 'occforge' in str(w.message)]
    assert not ours, ours
    import torch
    from occforge.ops import cast_rays
    grid, one = torch.full((4, 4, 4), 17, dtype=torch.uint8), torch.ones(1, 3)
    for _ in range(2):
        cast_rays(grid, one, one, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    ours = [w for w in caught if 'occforge' in str(w.message)]
assert len(ours) == 1, ours
assert 'pip install' in str(ours[0].message)
print('fine')
""",
        PYTHONPATH=str(tmp_path),
    )
    assert out.endswith('fine\n')
