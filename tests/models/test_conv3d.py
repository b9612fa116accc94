import pytest
import torch
from occforge.models.conv3d import Conv3d
from torch import nn


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'options',
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding=1, stride=2),
        dict(kernel_size=(1, 3, 5), padding=(0, 1, 2), stride=(1, 2, 1)),
        dict(kernel_size=(3, 1, 3), padding=(2, 0, 1), dilation=(2, 1, 1), groups=2),
        dict(kernel_size=1),
        dict(kernel_size=1, stride=(1, 2, 2)),
        dict(kernel_size=1, groups=2),
        dict(kernel_size=1, padding=1),
        dict(kernel_size=3, padding=1, padding_mode='circular'),
        dict(kernel_size=3, padding='same'),
    ],
    ids=str,
)
@pytest.mark.parametrize('shape', [(1, 16, 4, 41, 43), (2, 16, 4, 41, 43), (1, 16, 3, 5, 6)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_as_torch(layout, shape, options, bias):
    torch.manual_seed(0)
    own = Conv3d(16, 8, bias=bias, **options)
    other = nn.Conv3d(16, 8, bias=bias, **options)
    other.load_state_dict(own.state_dict())
    x = torch.randn(shape).contiguous(memory_format=layout)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    answers = [layer(value) for layer, value in zip((own, other), inputs)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(answers[0])
    for answer in answers:
        (answer * direction).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    for one, two in zip(own.parameters(), other.parameters()):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('shape', [(2, 7, 7), (4, 6, 6), (7, 1, 7), (7, 7, 1), (3, 9, 8)], ids=str)
@pytest.mark.parametrize('autocast', [True, False], ids=['autocast', 'all bfloat16'])
def test_bfloat16_gradients_of_flat_volumes(autocast, shape, stride):
    """Memory is filled with NaN between the steps: a gradient that reads what nobody has written has it, too."""
    torch.manual_seed(0)
    layer = Conv3d(16, 16, 3, stride, padding=1)
    x = torch.randn(1, 16, *shape)
    layer(x).square().sum().backward()
    expected = layer.weight.grad.clone()
    layer, x = (layer, x) if autocast else (layer.bfloat16(), x.bfloat16())
    for _ in range(3):
        layer.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            answer = layer(x)
        assert answer.dtype == torch.bfloat16
        loss = answer.square().sum()
        left = [torch.full((10**power,), float('nan')) for power in range(2, 7) for _ in range(6)]
        del left
        loss.backward()
        assert (layer.weight.grad - expected).norm() < 0.02 * expected.norm()


def test_a_single_small_volume_reaches_onednn():
    layer, plain, x = Conv3d(64, 64, 3, padding=1), nn.Conv3d(64, 64, 3, padding=1), torch.zeros(1, 64, 4, 50, 50)
    names = []
    for convolution in (layer, plain):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            convolution(x)
        names.append({event.key for event in profile.key_averages()})
    assert 'aten::mkldnn_convolution' in names[0]
    assert 'aten::slow_conv3d' in names[1], 'torch has changed its mind: Conv3d need not turn volumes any more'


def test_one_voxel_of_channels_last_is_a_product():
    layer, x = Conv3d(64, 32, 1), torch.zeros(1, 64, 4, 50, 50).contiguous(memory_format=torch.channels_last_3d)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        answer = layer(x)
    assert 'aten::linear' in {event.key for event in profile.key_averages()}
    assert answer.is_contiguous(memory_format=torch.channels_last_3d)


def test_traced_as_a_plain_convolution():
    layer = Conv3d(64, 64, 3, padding=1)
    traced = torch.jit.trace(layer, torch.zeros(1, 64, 4, 50, 50))
    assert 'permute' not in str(traced.graph)
