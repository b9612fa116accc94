"""AdamW whose kernels move by orthogonalised momentum."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from occforge.engine import MuonAdamW
from occforge.engine.muon import orthogonalize
from torch import nn


@pytest.mark.parametrize('shape', [(24, 24), (16, 200), (200, 16), (3, 12, 40)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrix)
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    inside = u.mT @ found.double() @ vh.mT  # diagonal where the singular vectors are the same
    values = inside.diagonal(dim1=-2, dim2=-1)
    # a square random matrix has singular values below 0.01 of its norm, which five iterations do not lift to 1
    assert 0.65 < values.median() < 1.25 and values.max() < 1.25 and values.min() > 0.05
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-4


@pytest.mark.parametrize('shape', [(64, 64 * 27), (200, 16), (48, 48)])
def test_the_gathered_polynomials_are_the_iteration(shape):
    """Step by step in float64, as published, with singular values over four orders of magnitude."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(*shape, generator=generator) * torch.logspace(0, -4, shape[1])
    x = matrix.double() / matrix.double().norm()
    x = x.mT if shape[0] > shape[1] else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    expected = x.mT if shape[0] > shape[1] else x
    assert (orthogonalize(matrix) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_of_any_scale_and_of_nothing():
    matrix = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalize(1e-4 * matrix), orthogonalize(matrix), rtol=1e-3, atol=1e-4)
    assert not orthogonalize(torch.zeros(4, 9)).any()


def _problem():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(40, 16, generator=generator), torch.randn(40, generator=generator)], generator


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch.optim.Muon is newer than this torch')
def test_matrices_move_as_torch_moves_them():
    """torch's own Muon, in bfloat16 inside, on a matrix; torch's AdamW on a vector."""
    (matrix, vector), generator = _problem()
    ours = [nn.Parameter(matrix.clone()), nn.Parameter(vector.clone())]
    theirs = [nn.Parameter(matrix.clone()), nn.Parameter(vector.clone())]
    optimizer = MuonAdamW(ours, lr=2e-2, weight_decay=0.1)
    muon = torch.optim.Muon(theirs[:1], lr=2e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn='match_rms_adamw')
    adamw = torch.optim.AdamW(theirs[1:], lr=2e-2, weight_decay=0.1)
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for step in (optimizer, muon, adamw):
            step.step()
    moved = (theirs[0] - matrix).norm()
    assert (ours[0] - theirs[0]).norm() < 0.01 * moved
    assert torch.equal(ours[1], theirs[1])


def test_kernels_count_as_matrices_of_their_outputs():
    kernel = torch.randn(6, 4, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    gradient = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(4))
    moved = []
    for shape in (kernel.shape, (6, 108)):
        parameter = nn.Parameter(kernel.reshape(shape).clone())
        parameter.grad = gradient.reshape(shape)
        MuonAdamW([parameter], lr=1e-2).step()
        assert parameter.grad is not None
        moved.append(parameter.detach().reshape(-1))
    assert torch.equal(*moved)
    # the step's root mean square is AdamW's 0.2
    assert 0.12 * 1e-2 < (moved[0] - kernel.reshape(-1)).square().mean().sqrt() < 0.26 * 1e-2


def test_resumes_where_it_stopped():
    def train(parameters, optimizer, steps):
        for step in steps:
            for index, parameter in enumerate(parameters):
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(10 * step + index)
                )
            optimizer.step()

    start, _ = _problem()
    whole = [nn.Parameter(value.clone()) for value in start]
    train(whole, MuonAdamW(whole, lr=1e-2), range(6))

    parts = [nn.Parameter(value.clone()) for value in start]
    first = MuonAdamW(parts, lr=1e-2)
    train(parts, first, range(3))
    state = copy.deepcopy(first.state_dict())
    second = MuonAdamW(parts, lr=1e-2)
    second.load_state_dict(state)
    train(parts, second, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_a_config_names_it():
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 1, 3))
    model[2].weight.requires_grad_(False)
    wrapper = build_optim_wrapper(
        model, dict(type='OptimWrapper', optimizer=dict(type='MuonAdamW', lr=1e-2), clip_grad=dict(max_norm=5.0))
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    wrapper.update_params(model(torch.randn(1, 2, 8, 8, 8)).square().mean())
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters())]
    assert changed == [name != '2.weight' for name, _ in model.named_parameters()]


def test_a_wrong_momentum_is_refused():
    with pytest.raises(ValueError, match=r'MuonAdamW.momentum is 1.5, expected a number in \[0, 1\)'):
        MuonAdamW([nn.Parameter(torch.zeros(2))], momentum=1.5)
