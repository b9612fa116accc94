"""Losses over lists of voxels: equal to the plain ones, in the memory of a chunk."""

import pytest
import torch
from occforge.errors import ConfigError, DataError
from occforge.models.losses import (
    ChunkedOccupancyLoss,
    OccupancyLoss,
    chunked_cross_entropy,
    draw_fine_targets,
    fine_features,
)
from torch import nn
from torch.nn import functional as F


def classifier(channels=6, classes=5, hidden=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(channels, hidden), nn.Softplus(), nn.Linear(hidden, classes))


def grads_of(loss, *tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True)


@pytest.mark.parametrize('kind', ['labels', 'counts'])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('chunk_size', [1, 7, 100])
def test_equals_cross_entropy(kind, weighted, chunk_size):
    generator = torch.Generator().manual_seed(1)
    model = classifier().double()
    features = torch.randn(23, 6, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 5, (23,), generator=generator)
    weight = torch.rand(23, generator=generator) + 0.5 if weighted else None
    class_weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]) if weighted else None
    if kind == 'counts':
        labels = torch.randint(0, 9, (23, 5), generator=generator).float()
    loss = chunked_cross_entropy(model, (features,), labels, weight, class_weight, chunk_size)
    logits = model(features).float()
    if kind == 'counts':  # each count is so many voxels with that label
        cell, label = labels.nonzero().unbind(1)
        terms = F.cross_entropy(logits[cell], label, class_weight, reduction='none') * labels[cell, label]
        terms = torch.zeros(23).index_add(0, cell, terms)
    else:
        terms = F.cross_entropy(logits, labels, class_weight, reduction='none')
    expected = (terms if weight is None else terms * weight).sum()
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        grads_of(loss, features, *model.parameters()), grads_of(expected, features, *model.parameters())
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_cross_entropy(model, (features,), labels, weight, class_weight, chunk_size), expected
        )


def test_no_voxels_and_bad_lists():
    model = classifier()
    features = torch.zeros(0, 6, requires_grad=True)
    loss = chunked_cross_entropy(model, (features,), torch.zeros(0, dtype=torch.int64))
    assert loss == 0
    loss.backward()
    assert features.grad.shape == (0, 6)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with pytest.raises(ValueError, match='lists of the same voxels'):
        chunked_cross_entropy(model, (torch.zeros(3, 6),), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match='chunk_size'):
        chunked_cross_entropy(model, (torch.zeros(3, 6),), torch.zeros(3, dtype=torch.int64), chunk_size=0)


def peak_bytes(run) -> int:
    """Highest sum of live tensors that the run allocated, over what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            highest = max(highest, live)
    return highest


def test_memory_is_that_of_a_chunk():
    voxels, classes, hidden, chunk_size = 200_000, 18, 64, 5_000
    model, features = classifier(8, classes, hidden), torch.randn(voxels, 8, requires_grad=True)
    labels = torch.randint(0, classes, (voxels,))

    def chunked():
        chunked_cross_entropy(model, (features,), labels, chunk_size=chunk_size).backward()

    def whole():
        F.cross_entropy(model(features), labels, reduction='sum').backward()

    logits = voxels * classes * 4
    gradients = 2 * voxels * 8 * 4  # of the features: once in parts, once joined
    of_a_chunk = chunk_size * (6 * hidden + 6 * classes) * 4
    assert peak_bytes(chunked) < gradients + of_a_chunk + logits // 4
    assert peak_bytes(whole) > 4 * logits  # the comparison sees what it should


def occupancy_case(fine):
    generator = torch.Generator().manual_seed(2)
    grid = (5, 4, 3)
    shape = tuple(2 * n for n in grid) if fine else grid
    semantics = torch.randint(0, 5, (2, *shape), generator=generator).to(torch.uint8)
    mask = torch.rand(2, *shape, generator=generator) < 0.6
    return grid, semantics, mask, torch.randn(2, *grid, 6, generator=generator).requires_grad_()


@pytest.mark.parametrize('fine', [False, True])
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(class_weight=[1.0, 2.0, 0.5, 3.0, 1.0], free_keep=0.5, loss_weight=3.0),
        dict(lovasz_weight=0.7, lovasz_samples=11),
        dict(lovasz_weight=0.7, lovasz_samples=1000, free_keep=0.4),
    ],
)
@pytest.mark.parametrize('masked', [False, True])
def test_chunked_loss_equals_the_plain_one(fine, options, masked):
    grid, semantics, mask, volume = occupancy_case(fine)
    mask = mask if masked else None
    model = classifier()
    plain = OccupancyLoss(num_classes=5, free_index=4, **options)
    chunked = ChunkedOccupancyLoss(num_classes=5, free_index=4, chunk_size=9, **options)
    targets = plain.targets(semantics, mask, grid, [1, 2])
    expected = plain(model(volume.flatten(0, 3)[targets.index]), targets, masked)
    rows = volume.flatten(0, 3)
    for found in (
        chunked.forward_queries(model, (rows[targets.index],), targets, masked),
        chunked.forward_queries(lambda index: model(rows[index]), (targets.index,), targets, masked),
    ):
        assert found.keys() == expected.keys()
        for name, loss in found.items():
            torch.testing.assert_close(loss, expected[name])
            inputs = volume, *model.parameters()
            for a, b in zip(grads_of(loss, *inputs), grads_of(expected[name], *inputs)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_empty_mask_gives_zero():
    grid, semantics, mask, volume = occupancy_case(False)
    loss = ChunkedOccupancyLoss(num_classes=5, free_index=4)
    targets = loss.targets(semantics, mask & False, grid)
    found = loss.forward_queries(classifier(), (volume.flatten(0, 3)[targets.index],), targets, True)['loss_occ']
    assert found == 0
    assert not torch.autograd.grad(found, volume)[0].any()


def test_lovasz_needs_a_number_of_samples():
    with pytest.raises(ConfigError, match='lovasz_samples'):
        ChunkedOccupancyLoss(lovasz_weight=1.0)


def fine_world(seed=0):
    """(2, 16, 12, 8) labels, nine tenths free, some ignored; a mask on half the resolution."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 16, 12, 8)
    semantics = torch.randint(0, 4, shape, generator=generator)
    semantics = torch.where(torch.rand(shape, generator=generator) < 0.9, 4, semantics)
    semantics = torch.where(torch.rand(shape, generator=generator) < 0.05, 255, semantics).to(torch.uint8)
    return semantics, torch.rand(2, 8, 6, 4, generator=generator) < 0.5


@pytest.mark.parametrize('masked', ['no', 'one', 'each'])
def test_drawn_fine_voxels(masked, monkeypatch):
    from occforge.models.losses import voxel_queries

    monkeypatch.setattr(voxel_queries, '_SLAB', 3 * 12 * 8)  # slabs of 3 planes (2 where the mask has cells of 2)
    semantics, mask = fine_world()
    mask = {'no': None, 'one': mask[0], 'each': mask}[masked]
    taken = semantics != 255
    if mask is not None:
        full = mask.expand(2, *mask.shape[-3:])
        for dim in (1, 2, 3):
            full = full.repeat_interleave(2, dim=dim)
        taken &= full
    everything = draw_fine_targets(semantics, mask, 10**6, 5, 4)
    assert torch.equal(everything.index, taken.flatten().nonzero().squeeze(1))
    assert torch.equal(everything.labels, semantics[taken].long()) and (everything.weight == 1).all()
    assert everything.class_counts.tolist() == semantics[taken].bincount(minlength=5).tolist()
    assert torch.equal(everything.sample, everything.index // semantics[0].numel())

    some = draw_fine_targets(semantics, mask, 100, 5, 4, sample_seed=[3, 4])
    again = draw_fine_targets(semantics, mask, 100, 5, 4, sample_seed=[3, 4])
    assert all(torch.equal(a, b) for a, b in zip(some[:5], again[:5]))
    assert taken.flatten()[some.index].all() and len(some.index.unique()) == len(some.index)
    assert torch.equal(some.class_counts, everything.class_counts)
    assert 140 < len(some.index) < 260
    # each stands for those it was drawn from: the weights of a class sum to its number, on average over the draws
    sums = torch.zeros(5)
    for seed in range(60):
        drawn = draw_fine_targets(semantics, mask, 100, 5, 4, sample_seed=[seed, seed + 1000])
        sums.index_add_(0, drawn.labels, drawn.weight)
    torch.testing.assert_close(sums / 60, everything.class_counts.float(), rtol=0.1, atol=0)


def test_fine_targets_refuse_wrong_grids_and_labels():
    semantics, mask = fine_world()
    with pytest.raises(DataError, match='whose grid divides'):
        draw_fine_targets(semantics, mask[:, :5], 100, 5, 4)
    with pytest.raises(DataError, match='the label 9, expected 0 to 4 or 255'):
        draw_fine_targets(semantics.masked_fill(semantics == 3, 9), mask, 100, 5, 4)
    with pytest.raises(ValueError, match='must be uint8'):
        draw_fine_targets(semantics.long(), mask, 100, 5, 4)
    with pytest.raises(ValueError, match='budget'):
        draw_fine_targets(semantics, mask, 0, 5, 4)


def test_fine_features_are_trilinear():
    volume = torch.randn(2, 3, 4, 3, 5, dtype=torch.float64).requires_grad_()  # Z, Y, X
    shape = (10, 6, 8)
    index = torch.arange(2 * 10 * 6 * 8)
    found = fine_features(volume, index, shape).view(2, 10, 6, 8, 3)
    wanted = F.interpolate(volume, (8, 6, 10), mode='trilinear', align_corners=False).permute(0, 4, 3, 2, 1)
    torch.testing.assert_close(found, wanted)
    same = fine_features(volume, torch.arange(2 * 60), (5, 3, 4))
    torch.testing.assert_close(same, volume.permute(0, 4, 3, 2, 1).flatten(0, 3))
    few = torch.randint(0, 960, (40,))
    assert torch.autograd.gradcheck(lambda v: fine_features(v, few, shape), volume)
    with pytest.raises(ValueError, match='multiple'):
        fine_features(volume, index, (10, 7, 8))


def test_fine_grid_trains_in_little_memory():
    """Labels 8 x 8 x 8 finer than the volume (reduced: 320 x 320 x 64 voxels); drawn, classified in chunks."""
    coarse, shape = (40, 40, 8), (320, 320, 64)
    generator = torch.Generator().manual_seed(0)
    semantics = torch.full((1, *shape), 17, dtype=torch.uint8)
    semantics[0, :, :, :6] = torch.randint(0, 17, (*shape[:2], 6), generator=generator).to(torch.uint8)
    mask = torch.rand(1, *coarse, generator=generator) < 0.5
    volume = torch.randn(1, 8, *coarse[::-1], requires_grad=True)
    model, loss = classifier(8, 18, 32), ChunkedOccupancyLoss(chunk_size=1 << 12)

    def step():
        targets = draw_fine_targets(semantics, mask, 1 << 15, sample_seed=[0])
        losses = loss.forward_queries(
            lambda index: model(fine_features(volume, index, shape)), (targets.index,), targets, True
        )
        losses['loss_occ'].backward()

    dense_logits = semantics.numel() * 18 * 4  # 472 MB
    assert peak_bytes(step) < dense_logits // 4
    assert volume.grad.isfinite().all() and volume.grad.any()
