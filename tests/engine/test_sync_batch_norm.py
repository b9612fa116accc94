import copy

import pytest
import torch
from occforge.engine import CrossRankBatchNorm, convert_sync_batchnorm
from ranks import run_ranks
from torch import distributed as torch_dist
from torch import nn


def _data(shape_a, shape_b, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 100 for shape in (shape_a, shape_b)]
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in parts]
    return [part.to(dtype) for part in parts], [weight.to(dtype) for weight in weights]


def _network(dtype):
    torch.manual_seed(1)
    layers = nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4, momentum=None)).to(dtype)
    for parameter in layers.parameters():
        nn.init.normal_(parameter)
    return layers


def _two_ranks(rank, world, parts, weights, dtype):
    layers = convert_sync_batchnorm(_network(dtype))
    x = parts[rank].clone().requires_grad_()
    output = layers(x)
    (output * weights[rank]).sum().backward()
    grads = [parameter.grad.clone() for parameter in layers.parameters()]
    for grad in grads:
        torch_dist.all_reduce(grad)
    return dict(output=output.detach(), grad_x=x.grad, grads=grads, state=layers.state_dict())


@pytest.mark.parametrize(
    'shape_a, shape_b',
    [
        ((7, 4), (2, 4)),  # rows of a sparse tensor, different counts
        ((5, 4), (0, 4)),  # nothing at all on one rank
        ((1, 4), (1, 4)),
        ((2, 4, 6), (3, 4, 6)),
    ],
)
def test_two_ranks_equal_one_process_with_both_batches(shape_a, shape_b, tmp_path):
    parts, weights = _data(shape_a, shape_b, torch.float64)
    results = run_ranks(_two_ranks, 2, tmp_path, parts, weights, torch.float64)

    layers = _network(torch.float64)
    x = torch.cat(parts).requires_grad_()
    expected = layers(x)
    (expected * torch.cat(weights)).sum().backward()

    torch.testing.assert_close(torch.cat([r['output'] for r in results]), expected.detach())
    torch.testing.assert_close(torch.cat([r['grad_x'] for r in results]), x.grad, atol=1e-9, rtol=1e-6)
    for result in results:
        for ours, theirs in zip(result['grads'], layers.parameters()):
            torch.testing.assert_close(ours, theirs.grad)
        for name, value in layers.state_dict().items():
            torch.testing.assert_close(result['state'][name], value, msg=name)


def test_float32_keeps_its_digits_with_a_large_mean(tmp_path):
    parts, weights = _data((500, 4), (300, 4))
    parts = [part * 1 + 1e4 for part in parts]
    results = run_ranks(_two_ranks, 2, tmp_path, parts, weights, torch.float32)
    expected = _network(torch.float64)(torch.cat(parts).double()).float()
    torch.testing.assert_close(torch.cat([r['output'] for r in results]), expected.detach(), atol=2e-3, rtol=1e-3)


def _nothing_anywhere(_rank, _world):
    layer = convert_sync_batchnorm(nn.BatchNorm1d(4))
    x = torch.zeros(0, 4, requires_grad=True)
    layer(x).sum().backward()
    bf16 = layer(torch.randn(5, 4).bfloat16())
    layer.eval()
    evaluated = layer(torch.ones(2, 4))
    return dict(state=layer.state_dict(), dtype=bf16.dtype, evaluated=evaluated)


def test_empty_input_on_every_rank_and_half_precision(tmp_path):
    for result in run_ranks(_nothing_anywhere, 2, tmp_path):
        assert all(value.isfinite().all() for value in result['state'].values())
        assert result['dtype'] == torch.bfloat16


def test_one_process_is_plain_batch_norm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    ours = convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(ours[1], CrossRankBatchNorm)
    x = torch.randn(2, 2, 3, 3, 3)
    assert torch.equal(ours(x), plain(x))
    plain.eval(), ours.eval()
    assert torch.equal(ours(x), plain(x))
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_conversion_keeps_parameters_modes_and_other_layers():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3), nn.Sequential(nn.SyncBatchNorm(3, affine=False)))
    model[0].eval()
    weight, mean = model[0].weight, model[0].running_mean
    convert_sync_batchnorm(model)
    assert model[0].weight is weight and model[0].running_mean is mean and not model[0].training
    assert isinstance(model[1], nn.InstanceNorm2d)
    assert isinstance(model[2][0], CrossRankBatchNorm) and model[2][0].weight is None and model[2][0].training
    again = model[0]
    assert convert_sync_batchnorm(model)[0] is again


def test_one_dimension_is_refused():
    with pytest.raises(ValueError, match='expects'):
        CrossRankBatchNorm(3)(torch.zeros(3))
