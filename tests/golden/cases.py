"""Finds the golden files of a system and pairs them with their checks.

A golden file ``<case>.npz`` or ``<case>_<anything>.npz`` lies in ``$OCCFORGE_GOLDEN/<SYSTEM>/`` and belongs to the
longest case name that fits. A check is a function ``check_<case>(npz)``; it reads the constructor arguments with
``config`` and the parameters with ``parameters``, runs our module and compares.
"""

import importlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

ENVIRONMENT = 'OCCFORGE_GOLDEN'


def golden_folder(system: str):
    """Folder of the system's files, or None where the environment variable is unset."""
    root = os.environ.get(ENVIRONMENT)
    return Path(root) / system if root else None


def collect_checks(modules) -> dict:
    """``{case: function}`` of every ``check_<case>`` of the named modules beside this file; absent modules are left
    out, a case that two modules check is an error."""
    checks = {}
    for name in modules:
        if importlib.util.find_spec(name) is None:
            continue
        module = importlib.import_module(name)
        for attribute, function in vars(module).items():
            if attribute.startswith('check_') and function.__module__ == name:
                case = attribute.removeprefix('check_')
                if case in checks:
                    raise ValueError(f'{name}: the golden case {case} already has a check in another module')
                checks[case] = function
    return checks


def pair_files(folder: Path, cases) -> tuple:
    """Sort the folder's files by case.

    Returns:
        ``({case: [path, ...]}, [path of no case, ...])``; a case without a file keeps an empty list.
    """
    by_case, orphans = {case: [] for case in cases}, []
    for path in sorted(folder.glob('*.npz')):
        fitting = [case for case in cases if path.stem == case or path.stem.startswith(case + '_')]
        if fitting:
            by_case[max(fitting, key=len)].append(path)
        else:
            orphans.append(path)
    return by_case, orphans


def parametrize(system: str, checks: dict, not_yet_covered: dict) -> list:
    """One pytest parameter ``(check, path)`` a file; one skipped parameter where the variable is unset.

    ``not_yet_covered`` maps the cases that have no check yet to the reason; their files appear as skipped tests.
    """
    folder = golden_folder(system)
    if folder is None:
        return [pytest.param(None, None, marks=pytest.mark.skip(f'{ENVIRONMENT} is not set'), id='no-golden-data')]
    by_case, _ = pair_files(folder, set(checks) | set(not_yet_covered))
    return [
        pytest.param(checks[case], path, id=path.stem)
        if case in checks
        else pytest.param(None, path, marks=pytest.mark.skip(not_yet_covered[case]), id=path.stem)
        for case, paths in sorted(by_case.items())
        for path in paths
    ]


def assert_every_file_has_a_case(system: str, cases) -> None:
    """Fails for a file of the system that belongs to no case, and for a case without a file."""
    by_case, orphans = pair_files(golden_folder(system), set(cases))
    assert not orphans, f'golden files without a check: {[path.name for path in orphans]}'
    empty = sorted(case for case, paths in by_case.items() if not paths)
    assert not empty, f'golden cases without a file in {golden_folder(system)}: {empty}'


def config(npz, name: str = 'config_json') -> dict:
    """The constructor arguments stored in the file, as JSON text or as its bytes."""
    stored = npz[name]
    return json.loads(stored.tobytes() if stored.dtype == np.uint8 else str(stored))


def tensor(npz, name: str) -> torch.Tensor:
    """An array of the file as a tensor of the same type."""
    return torch.from_numpy(np.array(npz[name]))


def parameters(npz, prefix: str = 'p/') -> dict:
    """``{state_dict key: tensor}`` of the arrays whose names start with ``prefix``."""
    return {name.removeprefix(prefix): tensor(npz, name) for name in npz.files if name.startswith(prefix)}


def assert_close(actual, expected, name: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Compare a float tensor with a stored one; a stored shape of (1,) stands for a scalar."""
    actual = torch.as_tensor(actual).detach()
    expected = torch.as_tensor(np.array(expected))
    if expected.shape == (1,) and actual.ndim == 0:
        expected = expected[0]
    torch.testing.assert_close(
        actual.to(expected.dtype), expected, rtol=rtol, atol=atol, msg=lambda text: f'{name}: {text}'
    )
