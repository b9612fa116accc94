import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from occforge.errors import ConfigError, DataError
from occforge.models import OccDataPreprocessor


def packed(seed, points=5, size=(4, 6)):
    rng = np.random.default_rng(seed)
    sample = Det3DDataSample()
    sample.gt_occ = BaseDataElement(semantics=torch.zeros(2, 2, 2, dtype=torch.uint8))
    return dict(
        inputs=dict(
            imgs=torch.from_numpy(rng.integers(0, 255, (2, 3, *size, 3), dtype=np.uint8)),
            ego2global=torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4) * 1e3,
            points=torch.rand(points, 5),
            sample_seed=torch.tensor(2**62 + seed),
        ),
        data_samples=sample,
    )


def test_batch_layout():
    samples = [packed(0, 5), packed(1, 9)]
    batch = MODELS.build(dict(type='OccDataPreprocessor'))(pseudo_collate(samples))
    inputs = batch['inputs']
    assert inputs['imgs'].shape == (2, 2, 3, 3, 4, 6) and inputs['imgs'].dtype == torch.float32
    assert inputs['ego2global'].dtype == torch.float64 and inputs['ego2global'].shape == (2, 2, 3, 4, 4)
    assert [len(p) for p in inputs['points']] == [5, 9] and isinstance(inputs['points'], list)
    assert inputs['sample_seed'].tolist() == [2**62, 2**62 + 1]
    assert batch['data_samples'][1].gt_occ.semantics.dtype == torch.uint8


@pytest.mark.parametrize('order', ['rgb', 'bgr', 'bgr-with-rgb-stats'])
def test_channel_order(order):
    """One pixel R, G, B = 10, 20, 30, by hand."""
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 3)
    found = OccDataPreprocessor(mean=(1, 2, 3), std=(10, 20, 40), channel_order=order).normalise(pixel).flatten()
    expected = {
        'rgb': [9 / 10, 18 / 20, 27 / 40],
        'bgr': [27 / 40, 18 / 20, 9 / 10],
        'bgr-with-rgb-stats': [29 / 10, 18 / 20, 7 / 40],
    }
    assert torch.allclose(found, torch.tensor(expected[order]))


def test_wrong_input_is_named():
    with pytest.raises(DataError, match=r"'imgs'.*\(2, 3, 4, 6, 3\).*\(2, 3, 8, 6, 3\)"):
        OccDataPreprocessor()(pseudo_collate([packed(0), packed(1, size=(8, 6))]))
    with pytest.raises(ConfigError, match='channel_order'):
        OccDataPreprocessor(channel_order='grb')


def test_nothing_of_it_is_in_a_checkpoint():
    assert not OccDataPreprocessor().state_dict()
