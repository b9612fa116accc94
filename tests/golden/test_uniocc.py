"""The UniOcc parts against the reference implementation's outputs."""

import numpy as np
import pytest
from cases import ENVIRONMENT, assert_every_file_has_a_case, collect_checks, golden_folder, parametrize

SYSTEM = 'UniOcc'
CHECKS = collect_checks(['uniocc_data', 'uniocc_model', 'uniocc_ops', 'uniocc_render'])


@pytest.mark.parametrize(('check', 'path'), parametrize(SYSTEM, CHECKS, {}))
def test_golden(check, path):
    with np.load(path, allow_pickle=False) as npz:
        check(npz)


@pytest.mark.skipif(golden_folder(SYSTEM) is None, reason=f'{ENVIRONMENT} is not set')
def test_every_case_has_a_file_and_every_file_a_case():
    assert_every_file_has_a_case(SYSTEM, CHECKS)
