"""Builds the ``occforge`` package and its operators (csrc/).

Environment: ``FORCE_CUDA=1`` builds the CUDA kernels although no GPU is visible; ``OCCFORGE_NO_CUDA=1`` never does;
``TORCH_CUDA_ARCH_LIST`` and ``MAX_JOBS`` as in torch; ``DEBUG=1`` builds with -O0 -g; ``OCCFORGE_SANITIZE=1`` builds
the CPU operators with AddressSanitizer and UBSan (``make test-asan`` runs the tests on them); ``OCCFORGE_NO_EXT=1``
builds no operators at all (the plain-torch references then run).

A wheel also carries configs/ and tools/, under ``occforge/.mim`` as the OpenMMLab packages do.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = Path('csrc')


def flag(name: str) -> bool:
    return os.environ.get(name, '0').upper() in ('1', 'ON', 'YES', 'TRUE')


def import_torch():
    """torch of the environment that the package goes into, also from inside pip's isolated build environment.

    An extension only works with the very torch it was compiled against, so fetching another one as a build
    requirement would build something that cannot be loaded.
    """
    try:
        import torch
    except ImportError:
        sys.path.append(sysconfig.get_paths()['purelib'])
        try:
            import torch
        except ImportError:
            sys.exit(
                'occforge: torch is needed to compile the operators and is not installed in this environment. '
                'Install torch first, or set OCCFORGE_NO_EXT=1 to install without compiled operators.'
            )
    return torch


def extensions():
    if flag('OCCFORGE_NO_EXT'):
        return [], {}
    torch = import_torch()
    from torch.utils import cpp_extension

    debug, sanitize = flag('DEBUG'), flag('OCCFORGE_SANITIZE')
    with_cuda = not (flag('OCCFORGE_NO_CUDA') or sanitize) and (
        flag('FORCE_CUDA') or (torch.version.cuda is not None and torch.cuda.is_available())
    )
    if with_cuda and torch.version.cuda is None:
        sys.exit(
            f'occforge: a CUDA build was asked for (FORCE_CUDA) and this torch ({torch.__version__}) is a CPU build. '
            'Install a CUDA build of torch, or unset FORCE_CUDA.'
        )
    if with_cuda and cpp_extension.CUDA_HOME is None:
        sys.exit(
            'occforge: a CUDA build needs nvcc and none was found. Install the CUDA toolkit and set CUDA_HOME, '
            'or set OCCFORGE_NO_CUDA=1.'
        )
    if any('ccache' in os.environ.get(name, '') for name in ('CC', 'CXX')):
        os.environ['TORCH_NO_COMPILER_WRAPPER'] = '1'  # torch would put a second ccache before the user's

    patterns = ['*.cpp', '*/*.cpp'] + (['*/*.cu'] if with_cuda else [])
    sources = sorted(str(path) for pattern in patterns for path in CSRC.glob(pattern))
    cxx = ['-std=c++20', '-O0' if debug else '-O3', '-g' if debug else '-g0', '-Wall', '-Wno-unknown-pragmas']
    # Nobody asks for errno or the floating-point exception flags; without them a choice of two values needs no branch.
    cxx += ['-fno-math-errno', '-fno-trapping-math']
    cxx += ['-fopenmp'] if torch.backends.openmp.is_available() else []
    link = ['-g'] if debug or sanitize else ['-s']
    if sanitize:  # no vptr check: it needs the type information of torch's own classes
        checks = ['-fsanitize=address,undefined', '-fno-sanitize=vptr']
        cxx += [*checks, '-fno-sanitize-recover=undefined', '-fno-omit-frame-pointer', '-O1', '-g1']
        link += checks
    args = {'cxx': cxx, 'nvcc': ['-std=c++20', '-O0' if debug else '-O3', '-t2'] + (['-g', '-G'] if debug else [])}
    kind = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    extension = kind(
        'occforge._C',
        sources,
        include_dirs=[str(ROOT / 'csrc')],
        extra_compile_args=args,
        extra_link_args=link,
        depends=sorted(str(path) for path in CSRC.rglob('*.h')),
    )
    return [extension], {'build_ext': cpp_extension.BuildExtension}


def requirements(name: str):
    lines = (line.split('#')[0].strip() for line in (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines())
    found = []
    for line in filter(None, lines):
        found += requirements(line.split()[1].removesuffix('.txt')) if line.startswith('-r ') else [line]
    return found


def version() -> str:
    scope = {}
    exec((ROOT / 'projects/occforge/version.py').read_text(), scope)
    return scope['__version__']


class BuildPackage(build_py):
    """Adds configs/ and tools/ to what is built; an editable install finds them where they are."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        for name in ('configs', 'tools'):
            target = Path(self.build_lib, 'occforge', '.mim', name)
            shutil.rmtree(target, ignore_errors=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns('__pycache__', '*.pyc', '.*'))


ext_modules, cmdclass = extensions()
cmdclass['build_py'] = BuildPackage
setup(
    name='occforge',
    version=version(),
    description='3D occupancy, detection and instance segmentation systems as a plugin of mmdet3d',
    long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    package_dir={'': 'projects'},
    packages=find_packages('projects'),
    package_data={'occforge': ['**/*.json', '**/*.npz', '**/*.txt', '**/*.html']},
    install_requires=requirements('runtime'),
    extras_require={name: requirements(name) for name in ('optional', 'tests')},
    ext_modules=ext_modules,
    cmdclass=cmdclass,
    zip_safe=False,
)
