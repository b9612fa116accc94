"""OccupancyLoss: hand numbers, fine masks, drawn voxels, Lovasz-softmax."""

import math

import pytest
import torch
from mmseg.models.losses.lovasz_loss import lovasz_softmax as mmseg_lovasz
from occforge.errors import ConfigError, DataError
from occforge.models.losses import OccupancyLoss, cell_class_counts, lovasz_softmax
from torch.nn import functional as F

GRID = (4, 3, 2)


def random_case(classes=5, seed=0, batch=2, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, *grid, classes, generator=generator)
    semantics = torch.randint(0, classes, (batch, *grid), generator=generator).to(torch.uint8)
    mask = torch.rand(batch, *grid, generator=generator) < 0.4
    return logits, semantics, mask


def run(module, logits, semantics, mask, seeds=None):
    targets = module.targets(semantics, mask, logits.shape[1:4], seeds)
    return module(logits.flatten(0, 3)[targets.index], targets, masked=mask is not None)


def test_numbers_by_hand():
    # two classes; logits (ln 3, 0) give probabilities 3/4 and 1/4
    logits = torch.tensor([math.log(3.0), 0.0]).expand(1, 1, 1, 4, 2).clone()
    semantics = torch.tensor([0, 0, 1, 1]).view(1, 1, 1, 4)
    mask = torch.tensor([True, False, True, False]).view(1, 1, 1, 4)
    module = OccupancyLoss(num_classes=2, free_index=1)
    right, wrong = -math.log(0.75), -math.log(0.25)
    assert float(run(module, logits, semantics, None)['loss_occ']) == pytest.approx((right + wrong) / 2)
    assert float(run(module, logits, semantics, mask)['loss_occ']) == pytest.approx((right + wrong) / 2)
    only_wrong = torch.tensor([False, False, True, False]).view(1, 1, 1, 4)
    assert float(run(module, logits, semantics, only_wrong)['loss_occ']) == pytest.approx(wrong)
    weighted = OccupancyLoss(num_classes=2, free_index=1, class_weight=[1.0, 3.0])
    expected = (2 * right + 2 * 3 * wrong) / (2 + 6)
    assert float(run(weighted, logits, semantics, None)['loss_occ']) == pytest.approx(expected)


def test_ignored_labels_do_not_count():
    logits, semantics, _ = random_case()
    semantics[:, 0] = 255
    loss = run(OccupancyLoss(num_classes=5, free_index=4), logits, semantics, None)['loss_occ']
    expected = F.cross_entropy(logits.flatten(0, 3), semantics.flatten().long(), ignore_index=255)
    torch.testing.assert_close(loss, expected)


def test_an_unknown_label_is_named():
    semantics = random_case()[1]
    semantics[1, 2, 0, 0] = 9
    with pytest.raises(DataError, match='the label 9, expected 0 to 4 or 255'):
        OccupancyLoss(num_classes=5, free_index=4).targets(semantics, None, GRID)


@pytest.mark.parametrize('weights', [None, [1.0, 2.0, 0.5, 3.0, 1.5]])
@pytest.mark.parametrize('labels_ratio', [(1, 1, 1), (2, 2, 2), (4, 3, 2)])
@pytest.mark.parametrize('mask_ratio', [None, (1, 1, 1), (2, 3, 2), (4, 6, 2)])
def test_fine_labels_and_masks_equal_repeated_logits(weights, labels_ratio, mask_ratio):
    fine = tuple(math.lcm(a, b) for a, b in zip(labels_ratio, mask_ratio or (1, 1, 1)))
    if any(f not in (a, b) for f, a, b in zip(fine, labels_ratio, mask_ratio or (1, 1, 1))):
        pytest.skip('neither ratio is a multiple of the other')
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, *GRID, 5, generator=generator).requires_grad_()

    def volume(ratio):
        return (2, *(g * r for g, r in zip(GRID, ratio)))

    semantics = torch.randint(0, 5, volume(labels_ratio), generator=generator).to(torch.uint8)
    semantics[0, 0, 0, 0] = 255
    mask = None if mask_ratio is None else torch.rand(volume(mask_ratio), generator=generator) < 0.5

    def expand(tensor, ratio):
        for dim, (f, r) in enumerate(zip(fine, ratio), start=1):
            tensor = tensor.repeat_interleave(f // r, dim=dim)
        return tensor

    fine_logits = expand(logits, (1, 1, 1)).flatten(0, 3)
    fine_labels = expand(semantics, labels_ratio).flatten().long()
    weight = (fine_labels != 255).float() if weights is None else torch.tensor(weights)[fine_labels.clamp(max=4)]
    weight = weight * (fine_labels != 255)
    if mask is not None:
        weight = weight * expand(mask, mask_ratio).flatten()
    entropy = F.cross_entropy(fine_logits, fine_labels.clamp(max=4), reduction='none')
    expected = (weight * entropy).sum() / weight.sum()
    (expected_grad,) = torch.autograd.grad(expected, logits)

    loss = run(OccupancyLoss(num_classes=5, free_index=4, class_weight=weights), logits, semantics, mask)['loss_occ']
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_one_mask_for_all_samples():
    logits, semantics, mask = random_case()
    module = OccupancyLoss(num_classes=5, free_index=4)
    shared = run(module, logits, semantics, mask[0])['loss_occ']
    repeated = run(module, logits, semantics, mask[:1].expand(2, -1, -1, -1))['loss_occ']
    torch.testing.assert_close(shared, repeated)


def test_wrong_grids_are_refused():
    semantics = torch.zeros(9, 6, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match='expected the logits'):
        cell_class_counts(semantics, None, GRID, 5)
    fine, mask = torch.zeros(8, 9, 4, dtype=torch.uint8), torch.ones(12, 9, 4)
    with pytest.raises(DataError, match='along each axis one must be an integer multiple'):
        cell_class_counts(fine, mask, GRID, 5)


def test_an_empty_mask_gives_zero_with_a_graph():
    logits, semantics, mask = random_case()
    logits.requires_grad_()
    losses = run(OccupancyLoss(num_classes=5, free_index=4, lovasz_weight=1.0), logits, semantics, mask & False)
    assert {name: float(value.detach()) for name, value in losses.items()} == dict(loss_occ=0.0, loss_lovasz=0.0)
    sum(losses.values()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_drawing_free_voxels_keeps_the_expectation():
    grid = (20, 20, 4)
    logits, semantics, _ = random_case(grid=grid, batch=1)
    semantics[:, 5:] = 4
    exact = OccupancyLoss(num_classes=5, free_index=4)
    drawn = OccupancyLoss(num_classes=5, free_index=4, free_keep=0.2, near_free_keep=0.6)
    expected = float(run(exact, logits, semantics, None)['loss_occ'])
    values = [float(run(drawn, logits, semantics, None, [seed])['loss_occ']) for seed in range(200)]
    assert sum(values) / len(values) == pytest.approx(expected, rel=0.01)
    targets = drawn.targets(semantics, None, grid, [7])
    flat = semantics.flatten()[targets.index]
    assert (flat != 4).sum() == (semantics != 4).sum()  # all that is not free
    assert sorted(set(targets.weight[flat == 4].tolist())) == pytest.approx([1 / 0.6, 5.0])
    assert torch.equal(targets.index, drawn.targets(semantics, None, grid, [7]).index)
    near = F.max_pool3d((semantics != 4).float()[:, None], 3, 1, 1).flatten()[targets.index].bool()
    assert torch.equal(targets.weight == 1 / torch.tensor(0.6), (flat == 4) & near)


def test_lovasz_equals_mmseg_and_repeated_voxels():
    generator = torch.Generator().manual_seed(1)
    probability = torch.randn(60, 5, generator=generator).softmax(1).requires_grad_()
    labels = torch.randint(0, 4, (60,), generator=generator)  # class 4 is absent
    loss = lovasz_softmax(probability, labels)
    expected = mmseg_lovasz(probability.t().reshape(1, 5, 60, 1), labels.view(1, 60, 1), classes='present')
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, probability)[0] for value in (loss, expected)))
    weight = torch.randint(1, 4, (60,), generator=generator)
    repeated = lovasz_softmax(probability.repeat_interleave(weight, 0), labels.repeat_interleave(weight))
    torch.testing.assert_close(lovasz_softmax(probability, labels, weight.float()), repeated)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match='class_weight has 3 entries, expected 5'):
        OccupancyLoss(num_classes=5, class_weight=[1, 1, 1])
    with pytest.raises(ConfigError, match=r'free_keep is 0'):
        OccupancyLoss(free_keep=0)
