#!/usr/bin/env python
"""Checks an installation: what was found, what is needed, how to fix it.

Needs nothing but Python: every probe runs in a process of its own, so a package that is absent, broken or crashes on
import spoils its own row only. Exit code 0: everything needed is there; 1: something is missing (rows marked FAIL).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

MARK = 'occforge-doctor:'
TIMEOUT = 180  # seconds; a cold import of torch over a network disk is slow

REPORT = f"""
import json
def report(**found):
    print('\\n' + {MARK!r} + json.dumps(found))
"""
OK, WARN, FAIL, NONE = 'ok', 'slow', 'FAIL', '-'

# distribution, module, accepted versions, how to fix
NEEDED = [
    ('numpy', 'numpy', '>=1.23,<2', 'pip install "numpy<2"  (nuscenes-devkit 1.2 refuses numpy 2)'),
    ('opencv-python-headless', 'cv2', '>=4.5', 'pip install "opencv-python-headless<4.12"'),
    ('pillow', 'PIL', '>=10.1', 'pip install -U pillow'),
    ('scipy', 'scipy', '>=1.7', 'pip install scipy'),
    ('pandas', 'pandas', '<3', 'pip install "pandas<3"'),
    ('numba', 'numba', '>=0.56', 'pip install numba'),
    ('setuptools', 'setuptools', '<81', 'pip install "setuptools<81"  (mmengine 0.10.7 imports pkg_resources)'),
    ('nuscenes-devkit', 'nuscenes', '>=1.1.9', 'pip install nuscenes-devkit==1.2.0'),
]
STACK = [  # these import through occforge's stand-ins, so occforge goes first
    ('mmengine', 'mmengine', '>=0.10.4,<0.11'),
    ('mmcv', 'mmcv', '>=2.1,<2.2'),
    ('mmdet', 'mmdet', '>=3.3,<3.4'),
    ('mmsegmentation', 'mmseg', '>=1.2,<2'),
    ('mmdet3d', 'mmdet3d', '>=1.4,<1.5'),
]
OPTIONAL = [
    ('torchvision', 'torchvision', '', 'pretrained torchvision backbones'),
    ('open3d', 'open3d', '', "mmdet3d's interactive viewer; the pictures of OccForge do without"),
    ('tensorboard', 'tensorboard', '', 'TensorboardVisBackend'),
]


@dataclass
class Row:
    part: str
    found: str
    needed: str
    state: str = OK
    fix: str = ''


def run_probe(code: str, timeout: float = TIMEOUT) -> tuple:
    """Run ``code`` in a fresh interpreter. Returns (what it reported or None, one line that says why not)."""
    code = REPORT + textwrap.dedent(code)
    environment = dict(os.environ, PYTHONWARNINGS='ignore', MPLBACKEND='Agg')
    try:
        done = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            errors='replace',
            timeout=timeout,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f'no answer within {timeout:.0f} s'
    except OSError as error:
        return None, str(error)
    reports = [line[len(MARK) :] for line in done.stdout.splitlines() if line.startswith(MARK)]
    if reports:
        return json.loads(reports[-1]), ''
    if done.returncode < 0:
        return None, f'the process died of signal {-done.returncode} on import'
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return None, shorten(lines[-1]) if lines else f'exit code {done.returncode} without a word'


def shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + '…'


def parse_version(text: str) -> tuple:
    """'2.13.0+cpu' -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r'\d+', re.split(r'[+a-zA-Z-]', text)[0])[:4])


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version lies in a range such as '>=1.23,<2'; an empty range takes anything."""
    found = parse_version(version)
    for clause in filter(None, wanted.split(',')):
        sign, bound = re.fullmatch(r'(>=|<)(.+)', clause).groups()
        bound = parse_version(bound)
        if (found < bound) if sign == '>=' else (found >= bound):
            return False
    return True


IMPORT = """
from importlib import import_module, metadata
module = import_module({module!r})
version = getattr(module, '__version__', None)
if not isinstance(version, str):
    try:
        version = metadata.version({distribution!r})
    except metadata.PackageNotFoundError:
        version = ''
report(version=version)
"""


def probe_package(distribution, module, wanted, fix) -> list:
    found, error = run_probe(IMPORT.format(module=module, distribution=distribution))
    if found is None:
        return [Row(distribution, describe(error, module), wanted, FAIL, fix)]
    fine = not found['version'] or satisfies(found['version'], wanted)
    return [Row(distribution, found['version'] or 'unknown version', wanted, OK if fine else FAIL, '' if fine else fix)]


def describe(error: str, module: str) -> str:
    if re.search(rf"No module named '{re.escape(module)}'", error):
        return 'not installed'
    return f'broken: {error}'


def probe_optional(distribution, module, wanted, purpose) -> list:
    found, error = run_probe(IMPORT.format(module=module, distribution=distribution))
    text = describe(error, module) if found is None else found['version'] or 'present'
    return [
        Row(distribution, text, 'optional', NONE if found is None else OK, f'for: {purpose}' if found is None else '')
    ]


def probe_python() -> list:
    version = sys.version.split()[0]
    fine = sys.version_info >= (3, 10)
    return [
        Row(
            'python',
            f'{version}  {sys.executable}',
            '>=3.10',
            OK if fine else FAIL,
            '' if fine else 'use Python 3.10 or newer',
        )
    ]


TORCH = """
import torch
cuda = torch.version.cuda
devices, problem = [], ''
if cuda:
    try:
        if torch.cuda.is_available():
            devices = [f'{torch.cuda.get_device_name(i)} (sm_{"".join(map(str, torch.cuda.get_device_capability(i)))})'
                       for i in range(torch.cuda.device_count())]
    except Exception as error:
        problem = str(error)
report(version=torch.__version__, cuda=cuda, devices=devices, problem=problem, threads=torch.get_num_threads())
"""


def probe_torch() -> list:
    found, error = run_probe(TORCH)
    if found is None:
        fix = 'pip install "torch>=2.4", or a CUDA build as pytorch.org says'
        return [
            Row('torch', describe(error, 'torch'), '>=2.4', FAIL, fix),
            Row('CUDA', 'unknown without torch', 'optional', NONE),
        ]
    fine = satisfies(found['version'], '>=2.4')
    rows = [
        Row(
            'torch',
            f'{found["version"]}, {found["threads"]} threads',
            '>=2.4',
            OK if fine else FAIL,
            '' if fine else 'pip install -U torch',
        )
    ]
    if found['devices']:
        rows.append(Row('CUDA', f'{found["cuda"]}: {", ".join(found["devices"])}', 'optional'))
    elif found['cuda']:
        text = f'torch is built for CUDA {found["cuda"]}, no GPU is visible'
        rows.append(
            Row('CUDA', text, 'optional', NONE, found['problem'] or 'check nvidia-smi and CUDA_VISIBLE_DEVICES')
        )
    else:
        rows.append(
            Row(
                'CUDA',
                'this torch is a CPU build',
                'optional',
                NONE,
                'for a GPU: a CUDA build of torch, then make clean setup',
            )
        )
    return rows


def probe_compilers() -> list:
    rows = []
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH') or '/usr/local/cuda'
    candidates = [os.path.join(home, 'bin', 'nvcc'), shutil.which('nvcc')]
    nvcc = next((path for path in candidates if path and os.access(path, os.X_OK)), None)
    if nvcc:
        release = re.search(r'release ([\d.]+)', first_output([nvcc, '--version']))
        rows.append(Row('nvcc', f'{release.group(1) if release else "?"}  {nvcc}', 'only to build CUDA operators'))
    else:
        rows.append(
            Row('nvcc', 'not found', 'only to build CUDA operators', NONE, 'install the CUDA toolkit, or set CUDA_HOME')
        )
    compiler = (
        os.environ.get('CXX') or shutil.which('g++') or shutil.which('c++') or shutil.which('clang++') or ''
    ).strip()
    if compiler:
        line = first_output([*compiler.split(), '--version']).splitlines()[:1]
        rows.append(Row('C++ compiler', shorten(line[0] if line else compiler, 70), 'only to build operators (C++20)'))
    else:
        rows.append(Row('C++ compiler', 'not found', 'only to build operators (C++20)', NONE, 'apt-get install g++'))
    return rows


def first_output(command) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors='replace', timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ''


OPS = """
import warnings
warnings.simplefilter('ignore')
import torch
from occforge.ops import _backend, scene_cast, sparse_conv
from pathlib import Path
built = sorted(path.name for path in Path(_backend._PACKAGE).glob('_C*.so'))
loaded = _backend.has_extension()
why, absent = _backend._library.missing, _backend.absent_operators()
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = sorted({name.split('.')[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith('occforge::')})
devices = {key: [name.split('::')[1] for name in names if has(name, key)] for key in ('CPU', 'CUDA')}
gpu = torch.cuda.is_available()
report(built=built, loaded=loaded, why=why, absent=absent, devices=devices, count=len(names), gpu=gpu)
"""


def probe_ops() -> list:
    build = 'make setup, or pip install --no-build-isolation -e .'
    found, error = run_probe(OPS)
    wanted = 'compiled; for CUDA, too, with a GPU'
    if found is None:
        if re.search('undefined symbol|cannot open shared object', error):
            error += ' (compiled against another torch)'
        if "No module named 'torch'" in error:
            return [Row('occforge.ops', 'unknown without torch', wanted, FAIL, 'install torch first')]
        missing = "No module named 'occforge'" in error
        return [
            Row(
                'occforge.ops',
                'not installed' if missing else f'broken: {error}',
                wanted,
                FAIL,
                'make clean setup' if not missing else build,
            )
        ]
    if not found['loaded']:
        hidden = os.environ.get('OCCFORGE_DISABLE_EXT') == '1'
        text = f'the operators {found["why"] or "are not loaded"}'
        return [
            Row('occforge.ops', f'{text}: plain-torch references run', wanted, WARN, 'unset it' if hidden else build)
        ]
    if found['absent']:
        text = f'out of date, without {", ".join(found["absent"])}: their plain-torch references run'
        return [Row('occforge.ops', text, wanted, WARN, build)]
    cpu, cuda = len(found['devices']['CPU']), len(found['devices']['CUDA'])
    text = f'{found["count"]} operators: CPU {cpu}, CUDA {cuda}  ({found["built"][0]})'
    if found['gpu'] and not cuda:
        return [Row('occforge.ops', text, wanted, WARN, 'make clean; FORCE_CUDA=1 make setup')]
    return [Row('occforge.ops', text, wanted)]


OCCFORGE = """
import occforge
occforge.register_all_modules()
from mmdet3d.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
ours = sum(getattr(m, '__module__', '').startswith('occforge') for r in (DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS)
           for m in r.module_dict.values())
report(version=occforge.__version__, where=occforge.__path__[0], ours=ours)
"""
STACK_VERSIONS = """
import occforge
from importlib import import_module
versions = {}
for name in %r:
    try:
        versions[name] = [getattr(import_module(name), '__version__', ''), '']
    except BaseException as error:
        versions[name] = ['', f'{type(error).__name__}: {error}'.splitlines()[0]]
ops = ''
if versions['mmcv'][0]:
    import mmcv.utils
    import sys, mmcv._ext
    ops = 'stand-in' if type(sys.modules['mmcv._ext']).__module__.startswith('occforge') else 'compiled'
report(versions=versions, ops=ops)
"""
PIN = 'pip install --no-deps -r requirements/mminstall.txt'


def probe_stack() -> list:
    modules = [module for _, module, _ in STACK]
    found, _ = run_probe(STACK_VERSIONS % (modules,))
    if found is None:  # occforge itself does not import: ask for each one alone
        return [row for name, module, wanted in STACK for row in probe_package(name, module, wanted, PIN)]
    rows = []
    for name, module, wanted in STACK:
        version, error = found['versions'][module]
        if error:
            rows.append(Row(name, describe(shorten(error), module), wanted, FAIL, PIN))
        else:
            fine = satisfies(version, wanted)
            if module == 'mmcv':
                version += ' (full: compiled ops)' if found['ops'] == 'compiled' else ' (lite: its compiled ops raise)'
            rows.append(Row(name, version, wanted, OK if fine else FAIL, '' if fine else PIN))
    return rows


def probe_occforge() -> list:
    found, error = run_probe(OCCFORGE)
    if found is None:
        fix = (
            'make setup, or pip install --no-build-isolation -e .'
            if 'occforge' in error
            else 'mend the rows above first'
        )
        return [Row('occforge', describe(error, 'occforge'), 'importable, registers itself', FAIL, fix)]
    text = f'{found["version"]}, {found["ours"]} classes registered  {found["where"]}'
    return [Row('occforge', text, 'importable, registers itself')]


SPARSE = """
import warnings
warnings.simplefilter('ignore')
import torch
from occforge.models import sparse
from occforge.ops import _backend
coords = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2]], dtype=torch.int32)
tensor = sparse.SparseTensor(torch.ones(2, 3), coords, (4, 4, 4), 1)
layer = sparse.SubMConv3d(3, 2, 3, bias=False)
torch.nn.init.ones_(layer.weight)
out = layer(tensor).features
assert torch.allclose(out, torch.full((2, 2), 6.0)), f'wrong result {out.tolist()}'
report(compiled=_backend.has_extension())
"""


def probe_sparse() -> list:
    found, error = run_probe(SPARSE)
    wanted = "occforge's own operator"
    if found is None:
        fix = 'mend the rows above first' if "'occforge" in error or 'torch' in error else 'make clean setup'
        return [Row('sparse convolution', f'broken: {error}', wanted, FAIL, fix)]
    if found['compiled']:
        return [Row('sparse convolution', 'own operator, compiled; one layer tried', wanted)]
    return [Row('sparse convolution', 'own layers on plain torch; one layer tried', wanted, WARN, 'make setup')]


def probe_data() -> list:
    rows = []
    for name, purpose in (('OCCFORGE_GOLDEN', 'golden tests'), ('OCCFORGE_REAL_DATA', 'tests on real samples')):
        folder = os.environ.get(name)
        if not folder:
            rows.append(Row(name, 'not set', 'optional', NONE, f'for: {purpose}'))
        elif not os.path.isdir(folder):
            rows.append(Row(name, f'no such folder: {folder}', 'optional', NONE, f'for: {purpose}'))
        else:
            rows.append(Row(name, folder, 'optional'))
    return rows


def examine(workers=None) -> list:
    """All rows, in the order of the table."""
    probes = [(probe_python,), (probe_torch,), (probe_compilers,)]
    probes += [(probe_package, *entry) for entry in NEEDED]
    probes += [(probe_stack,), (probe_ops,), (probe_sparse,), (probe_occforge,)]
    probes += [(probe_optional, *entry) for entry in OPTIONAL]
    probes += [(probe_data,)]
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(*probe) for probe in probes]
        return [row for future in futures for row in future.result()]


def table(rows, width=None) -> str:
    width = width or shutil.get_terminal_size((150, 24)).columns
    head = Row('part', 'found', 'needed', '', 'how to fix')
    columns = {field: max(len(getattr(row, field)) for row in [head, *rows]) for field in ('part', 'state', 'needed')}
    room = max(60, width - sum(columns.values()) - 8)
    columns['found'] = min(max(len(row.found) for row in rows), max(30, room * 11 // 20))
    columns['fix'] = max(24, room - columns['found'])
    order = ('state', 'part', 'found', 'needed', 'fix')
    lines = []
    for row in [head, None, *rows]:
        if row is None:
            lines.append('  '.join('-' * min(columns[field], 60) for field in order))
            continue
        cells = [textwrap.wrap(getattr(row, field), columns[field]) or [''] for field in order]
        for i in range(max(map(len, cells))):
            parts = [(cell[i] if i < len(cell) else '').ljust(columns[field]) for cell, field in zip(cells, order)]
            lines.append('  '.join(parts).rstrip())
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', action='store_true', help='print the rows as JSON')
    args = parser.parse_args()
    rows = examine()
    failed = [row for row in rows if row.state == FAIL]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(table(rows), flush=True)
        print()
        if failed:
            print(
                f'{len(failed)} of what OccForge needs is missing or broken: {", ".join(row.part for row in failed)}.'
            )
        else:
            print('Everything needed is here.')
    return 1 if failed else 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
