"""Every CUDA source compiles for sm_80 and sm_90 without a warning wherever there is an nvcc, with or without a GPU.

About 40 s a file on an idle core, so the outcome is kept in build/cuda_check/ under a hash of all that the compiler
reads of ours, the compiler's and torch's version and the flags: an unchanged file is not compiled again.
"""

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / 'csrc'
NVCC = shutil.which('nvcc') or shutil.which('nvcc', path=os.path.join(os.environ.get('CUDA_HOME', ''), 'bin'))
SOURCES = sorted(CSRC.rglob('*.cu'))
FLAGS = ['-std=c++20', '-O3', '-t2', '--expt-relaxed-constexpr', '-Xcompiler', '-Wall,-fPIC']
FLAGS += [f'-gencode=arch=compute_{arch},code=sm_{arch}' for arch in (80, 90)]


def files_read(source: Path, seen=None) -> list:
    """The file and every file of csrc/ that it includes, directly or not."""
    seen = {} if seen is None else seen
    if source not in seen:
        seen[source] = None
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', source.read_text(), re.MULTILINE):
            for included in (CSRC / name, source.parent / name):
                if included.is_file():
                    files_read(included.resolve(), seen)
    return sorted(seen)


def compiler_output(source: Path, folder: Path, version: str) -> str:
    """What nvcc says about the file (empty if it is content), from the cache where nothing has changed."""
    digest = hashlib.sha256('\n'.join([version, torch.__version__, *FLAGS]).encode())
    for path in files_read(source):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b'\0' + path.read_bytes() + b'\0')
    cache = ROOT / 'build' / 'cuda_check' / f'{source.stem}-{digest.hexdigest()[:24]}.clean'
    if cache.exists():
        return ''
    include = Path(torch.__file__).parent / 'include'
    command = [NVCC, *FLAGS, f'-I{CSRC}', f'-I{folder}', '-isystem', str(include)]
    command += ['-isystem', str(include / 'torch/csrc/api/include'), '-c', str(source)]
    done = subprocess.run([*command, '-o', str(folder / f'{source.stem}.o')], capture_output=True, text=True)
    output = (done.stdout + done.stderr).strip()
    if done.returncode:
        return output or f'nvcc ended with {done.returncode}'
    if not output:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.touch()
    return output


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cuda_check')
    generated = Path('c10/cuda/impl/cuda_cmake_macros.h')  # a CPU build of torch comes without this one header
    if not (Path(torch.__file__).parent / 'include' / generated).exists():
        (folder / generated).parent.mkdir(parents=True)
        (folder / generated).write_text('#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n')
    version = subprocess.run([NVCC, '--version'], capture_output=True, text=True, check=True).stdout
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:  # nvcc -t2 keeps two cores busy
        jobs = {source: pool.submit(compiler_output, source, folder, version) for source in SOURCES}
        yield {source: job.result() for source, job in jobs.items()}


@pytest.mark.skipif(NVCC is None, reason='nvcc is not installed')
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('source', SOURCES, ids=lambda path: path.stem)
def test_compiles_without_a_warning(source, outputs):
    assert outputs[source] == ''


def test_every_cuda_source_has_a_cpu_source():
    assert SOURCES
    for source in SOURCES:
        assert source.with_name(source.name.replace('_cuda.cu', '_cpu.cpp')).exists(), source


def test_no_kernel_runs_on_the_default_stream():
    for source in SOURCES:
        text = source.read_text()
        assert 'getCurrentCUDAStream' in text and 'CUDAGuard' in text and 'CUDAContext.h' not in text, source
        for launch in re.findall(r'<<<(.*?)>>>', text, re.DOTALL):
            depth, arguments = 0, 1
            for character in launch:
                depth += (character in '({[') - (character in ')}]')
                arguments += character == ',' and depth == 0
            assert arguments == 4, f'{source}: a launch without a stream: <<<{launch}>>>'


def test_the_cache_key_covers_included_headers():
    read = files_read(CSRC / 'voxel' / 'frustum_pool_cuda.cu')
    assert {path.name for path in read} >= {'frustum_pool_cuda.cu', 'frustum_pool_kernel.h', 'common.h'}
