"""FusionOcc with labels finer than its volume: counts for the loss, and the sub-voxel head."""

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from occforge.datasets.fine_labels import FineLabels
from occforge.errors import ConfigError, DataError
from occforge.models.losses import fine_features
from test_fusion_occ import GRID, tiny_batch, tiny_model

RATIO = 2
FINE = tuple(side * RATIO for side in GRID)
QUERIES = dict(loss_occ=dict(type='ChunkedOccupancyLoss', chunk_size=3000), query_ratio=RATIO, query_budget=2000)


def fine_batch(batch=2, form='voxels'):
    """Fine labels in place of tiny_batch's: a street, whose surface is one fine voxel thick, between two walls."""
    inputs, samples = tiny_batch(batch)
    for sample in samples:
        semantics = torch.full(FINE, 17, dtype=torch.uint8)
        semantics[:, :, 1] = 11
        semantics[:, [7, 32]] = 15
        if form == 'voxels':
            sample.gt_occ.semantics = semantics
        else:
            counts = FineLabels(semantics.numpy(), sample.gt_occ.mask_camera.numpy()).counts(GRID)
            fine = {name: torch.as_tensor(value) for name, value in counts._asdict().items()}
            sample.gt_occ = BaseDataElement(fine=BaseDataElement(**fine), mask_camera=sample.gt_occ.mask_camera)
    return inputs, samples


@pytest.mark.parametrize('use_mask', [True, False])
def test_counts_give_the_loss_of_the_voxels(use_mask):
    model = tiny_model(use_mask=use_mask, loss_occ=dict(type='OccupancyLoss'))
    model.eval()
    values = [model(*fine_batch(form=form), mode='loss')['loss_occ'] for form in ('voxels', 'counts')]
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)


@pytest.mark.parametrize('use_mask', [True, False])
def test_drawn_voxels_give_the_loss_of_all_on_average(use_mask):
    model = tiny_model(use_mask=use_mask, **QUERIES)
    model.eval()
    inputs, samples = fine_batch(1)
    with torch.no_grad():
        volume, _ = model.extract_feat(inputs, samples)
        index = torch.arange(int(np.prod(FINE)))
        logits = model.classify(fine_features(volume, index, FINE))
        semantics = samples[0].gt_occ.semantics.flatten().long()
        every = torch.nn.functional.cross_entropy(logits, semantics, reduction='none')
        if use_mask:
            mask = samples[0].gt_occ.mask_camera
            for axis in range(3):
                mask = mask.repeat_interleave(RATIO, axis)
            every = every[mask.flatten()]
        drawn = [
            float(model(dict(inputs, sample_seed=torch.tensor([seed])), samples, mode='loss')['loss_occ'])
            for seed in range(20)
        ]
    assert np.mean(drawn) == pytest.approx(float(every.mean()), abs=4 * np.std(drawn) / np.sqrt(len(drawn)) + 1e-3)


def test_the_sub_voxel_head_learns_what_a_cell_cannot_hold():
    model = tiny_model(**QUERIES)
    _, samples = fine_batch(1)
    truth = torch.full(FINE, 17, dtype=torch.uint8)
    truth[:, :, 2] = 11  # a street, half a cell thick
    truth[:, [7, 32]] = 15
    samples[0].gt_occ.semantics = truth
    volume = torch.randn(1, 8, *GRID[::-1], requires_grad=True)  # stands for what the encoder says
    optimizer = torch.optim.Adam([volume, *model.predicter.parameters()], lr=3e-2)
    for step in range(80):
        loss = model.occupancy_loss(volume, samples, torch.tensor([step]))['loss_occ']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model._predict_fine(volume[0])
    assert found.shape == FINE and found.dtype == torch.uint8
    assert (found == truth).float().mean() > 0.97
    assert ((found == 11) & (truth == 11)).sum() > 0.9 * (truth == 11).sum()


def test_prediction_equals_the_logits_voxel_by_voxel_and_skipping_free_cells_changes_little():
    model = tiny_model(**QUERIES).eval()
    inputs, samples = fine_batch(1)
    with torch.no_grad():
        model.predicter[-1].bias[17] += 1.0  # some free cells
        model(inputs, samples, mode='predict')
        found = samples[0].pred_occ.semantics
        volume, _ = model.extract_feat(inputs, samples)
        logits = model.classify(fine_features(volume, torch.arange(found.numel()), FINE))
        assert torch.equal(found.flatten().long(), logits.argmax(1))
        model.query_skip_free = True
        model(inputs, samples, mode='predict')
    skipped = samples[0].pred_occ.semantics
    differs = skipped != found
    assert (skipped[differs] == 17).all() and differs.float().mean() < 0.02


def test_errors_say_what_is_missing():
    with pytest.raises(ConfigError, match='needs loss_occ'):
        tiny_model(query_ratio=2)
    with pytest.raises(ConfigError, match=r'query_ratio is \(2, 2\)'):
        tiny_model(**dict(QUERIES, query_ratio=(2, 2)))
    model = tiny_model(**QUERIES)
    with pytest.raises(DataError, match=r'grid \(20, 20, 4\), FusionOCC.query_ratio asks for \(40, 40, 8\)'):
        model(*tiny_batch(), mode='loss')
    model = tiny_model()
    inputs, samples = fine_batch(form='counts')
    for sample in samples:
        sample.gt_occ.fine.grid = torch.tensor([10, 20, 4])
    with pytest.raises(DataError, match=r'counted on the grid \(10, 20, 4\)'):
        model(inputs, samples, mode='loss')
