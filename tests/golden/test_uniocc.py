"""The UniOcc parts against the reference implementation's outputs."""

import numpy as np
import pytest
from cases import ENVIRONMENT, collect_checks, golden_folder, pair_files, parametrize

SYSTEM = 'UniOcc'
CHECKS = collect_checks(['uniocc_ops', 'uniocc_render'])
# Cases whose subject is not in the library yet. An entry goes as soon as its check exists.
NOT_YET_COVERED = {
    case: f'the golden case {case} has no check yet'
    for case in (
        'aug',
        'detector',
        'ema_schedules',
        'encoder3d',
        'head3d',
        'metric',
        'rays',
        'silog',
        'swin_fpnlss',
        'view_transformer',
    )
}


@pytest.mark.parametrize(('check', 'path'), parametrize(SYSTEM, CHECKS, NOT_YET_COVERED))
def test_golden(check, path):
    with np.load(path, allow_pickle=False) as npz:
        check(npz)


@pytest.mark.skipif(golden_folder(SYSTEM) is None, reason=f'{ENVIRONMENT} is not set')
def test_every_case_has_a_file_and_every_file_a_case():
    by_case, orphans = pair_files(golden_folder(SYSTEM), set(CHECKS) | set(NOT_YET_COVERED))
    assert not orphans, f'golden files without a check: {[path.name for path in orphans]}'
    empty = sorted(case for case, paths in by_case.items() if not paths)
    assert not empty, f'golden cases without a file in {golden_folder(SYSTEM)}: {empty}'
