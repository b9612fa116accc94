import copy

import torch
from occforge.engine.channels_last import use_channels_last
from torch import nn


def test_same_names_values_results_and_gradients():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        dict(
            maps=nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2)),
            volumes=nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ConvTranspose3d(8, 4, 2)),
            rows=nn.Linear(3, 3),
        )
    )
    other = copy.deepcopy(model)
    assert use_channels_last(other) == 4
    state, other_state = model.state_dict(), other.state_dict()
    assert list(state) == list(other_state)
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())
    for name, shape, form in (
        ('maps', (2, 3, 9, 9), torch.channels_last),
        ('volumes', (2, 3, 6, 7, 8), torch.channels_last_3d),
    ):
        x = torch.randn(shape)
        answer, other_answer = model[name](x), other[name](x)
        assert other_answer.is_contiguous(memory_format=form) and not answer.is_contiguous(memory_format=form)
        torch.testing.assert_close(answer, other_answer)
        answer.square().mean().backward()
        other_answer.square().mean().backward()
        for own, its in zip(model[name].parameters(), other[name].parameters()):
            torch.testing.assert_close(own.grad, its.grad)
