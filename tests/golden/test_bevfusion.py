"""The BEVFusion parts against the reference implementation's outputs."""

import numpy as np
import pytest
from cases import ENVIRONMENT, assert_every_file_has_a_case, collect_checks, golden_folder, parametrize

SYSTEM = 'BEVFusion'
CHECKS = collect_checks(['bevfusion_ops', 'bevfusion_model', 'bevfusion_data'])
# Cases whose subject is not in the library yet. An entry goes as soon as its check exists.
NOT_YET_COVERED: dict = {}


@pytest.mark.parametrize(('check', 'path'), parametrize(SYSTEM, CHECKS, NOT_YET_COVERED))
def test_golden(check, path):
    with np.load(path, allow_pickle=False) as npz:
        check(npz)


@pytest.mark.skipif(golden_folder(SYSTEM) is None, reason=f'{ENVIRONMENT} is not set')
def test_every_case_has_a_file_and_every_file_a_case():
    assert_every_file_has_a_case(SYSTEM, {*CHECKS, *NOT_YET_COVERED})
