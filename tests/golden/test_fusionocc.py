"""The FusionOcc parts and the shared occupancy base against the reference implementation's outputs."""

import numpy as np
import pytest
from cases import (
    ENVIRONMENT,
    assert_every_file_has_a_case,
    collect_checks,
    golden_folder,
    pair_files,
    parametrize,
)

SYSTEM = 'FusionOcc'
CHECKS = collect_checks(['fusionocc_ops', 'fusionocc_lidar', 'fusionocc_base', 'fusionocc_model', 'fusionocc_rays'])
# Cases whose subject is not in the library yet. An entry goes as soon as its check exists.
NOT_YET_COVERED = {}


@pytest.mark.parametrize(('check', 'path'), parametrize(SYSTEM, CHECKS, NOT_YET_COVERED))
def test_golden(check, path):
    with np.load(path, allow_pickle=False) as npz:
        check(npz)


@pytest.mark.skipif(golden_folder(SYSTEM) is None, reason=f'{ENVIRONMENT} is not set')
def test_every_case_has_a_file_and_every_file_a_case():
    assert_every_file_has_a_case(SYSTEM, {*CHECKS, *NOT_YET_COVERED})


def test_longest_case_name_wins(tmp_path):
    for name in ('occ_loss_0', 'occ_loss', 'occ_loss_fine_mask_0', 'other_0'):
        (tmp_path / f'{name}.npz').touch()
    by_case, orphans = pair_files(tmp_path, ['occ_loss', 'occ_loss_fine_mask', 'miou'])
    assert {case: [path.stem for path in paths] for case, paths in by_case.items()} == {
        'occ_loss': ['occ_loss', 'occ_loss_0'],
        'occ_loss_fine_mask': ['occ_loss_fine_mask_0'],
        'miou': [],
    }
    assert [path.stem for path in orphans] == ['other_0']
