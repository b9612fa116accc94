"""Flips at test time, and ensembles: geometry, means, wrong fields. The systems' tests have their own models' flips."""

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from occforge.errors import ConfigError
from occforge.models.averaging import check_flips, flip_inputs, flip_variants, mean_scores
from torch import nn

WIDTH, HEIGHT = 64, 32


def _rotation(generator):
    return torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]


def _pixels(inputs, n):
    """(u, v, z) of the points in augmented image ``n``, by the definitions of the fields alone."""
    points = inputs['points'][0][:, :3].double()
    ego = points @ torch.linalg.inv(inputs['bda'][0].double()).T
    pose = torch.linalg.inv(inputs['sensor2ego'][0, 0, n])
    camera = ego @ pose[:3, :3].T + pose[:3, 3]
    pixel = camera @ inputs['intrins'][0, 0, n].double().T
    pixel = torch.cat([pixel[:, :2] / pixel[:, 2:], torch.ones(len(pixel), 1)], 1)
    moved = pixel @ inputs['post_rots'][0, 0, n].double().T + inputs['post_trans'][0, 0, n].double()
    return torch.cat([moved[:, :2], camera[:, 2:]], 1)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    sensor2ego = torch.eye(4, dtype=torch.float64).repeat(1, 1, 2, 1, 1)
    for n in range(2):
        sensor2ego[0, 0, n, :3, :3] = _rotation(generator)
        sensor2ego[0, 0, n, :3, 3] = torch.randn(3, generator=generator)
    post_rots = torch.eye(3).repeat(1, 1, 2, 1, 1)
    post_rots[..., :2, :2] = torch.tensor([[0.5, 0.1], [-0.1, 0.45]])
    return dict(
        imgs=torch.rand(1, 1, 2, 3, HEIGHT, WIDTH, generator=generator),
        sensor2ego=sensor2ego,
        intrins=torch.tensor([[60.0, 0, 70], [0, 60.0, 40], [0, 0, 1]]).repeat(1, 1, 2, 1, 1),
        post_rots=post_rots,
        post_trans=torch.tensor([3.0, -5.0, 0.0]).repeat(1, 1, 2, 1),
        bda=torch.tensor([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])[None],
        points=[torch.randn(50, 5, generator=generator)],
        sparse_depth=torch.rand(1, 2, 4, 8, generator=generator),
        segs=torch.randint(0, 18, (1, 2, 8, 16), generator=generator),
    )


@pytest.mark.parametrize('flips', flip_variants(('img_flip', 'flip_dx', 'flip_dy')), ids='+'.join)
def test_points_and_images_are_mirrored_together(inputs, flips):
    before = {name: value.clone() for name, value in inputs.items() if name != 'points'}
    mirrored = flip_inputs(inputs, flips)
    for n in range(2):
        plain, found = _pixels(inputs, n), _pixels(mirrored, n)
        if 'img_flip' in flips:
            found[:, 0] = WIDTH - found[:, 0]
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)
    for name in ('imgs', 'sparse_depth', 'segs'):
        turned = mirrored[name].flip(-1) if 'img_flip' in flips else mirrored[name]
        assert torch.equal(turned, inputs[name])
    assert torch.equal(mirrored['points'][0][:, 2:], inputs['points'][0][:, 2:])
    assert all(torch.equal(inputs[name], value) for name, value in before.items())  # nothing in place
    twice = flip_inputs(mirrored, flips)
    torch.testing.assert_close(twice['bda'], inputs['bda'])
    torch.testing.assert_close(twice['post_trans'], inputs['post_trans'])
    assert torch.equal(twice['points'][0], inputs['points'][0])


def test_names_of_flips():
    assert check_flips(['flip_dx'], 'X.tta') == ('flip_dx',)
    with pytest.raises(ConfigError, match=r"X.tta has \['flip_z'\]"):
        check_flips(('flip_dx', 'flip_z'), 'X.tta')
    with pytest.raises(ConfigError, match='no cameras'):
        check_flips(('img_flip',), 'X.tta', with_images=False)


def test_means():
    ones, threes = (torch.ones(2), torch.zeros(3)), (3 * torch.ones(2), torch.ones(3))
    assert mean_scores([ones])[0] is ones[0]
    found = mean_scores([ones, threes])
    assert found[0].tolist() == [2, 2] and found[1].tolist() == [0.5, 0.5, 0.5]
    assert mean_scores([ones, threes], [1, 3])[0].tolist() == [2.5, 2.5]
    assert mean_scores([ones, threes], [0, 0.5])[0].tolist() == [3, 3]
    assert ones[0].tolist() == [1, 1]


@MODELS.register_module()
class _OneAnswer(nn.Module):
    """Says the same of every voxel."""

    class_axes = dict(answer=0)

    def __init__(self, answer, data_preprocessor=None):
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))

    def predict_scores(self, inputs, data_samples):
        return (self.answer.expand(len(data_samples), 2, 2, 1, -1),)

    @staticmethod
    def semantics_of(probability):
        return probability.argmax(-1).to(torch.uint8)


def _ensemble(*answers, **fields):
    members = [dict(type='_OneAnswer', answer=answer) for answer in answers]
    return MODELS.build(dict(type='OccupancyEnsemble', members=members, **fields))


def test_members_are_averaged():
    samples = [Det3DDataSample(), Det3DDataSample()]
    answers = ([0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.0, 0.6, 0.4])
    for weights, expected in ((None, 1), ((1, 0, 0), 0), ((0, 2, 1), 2)):
        model = _ensemble(*answers, weights=weights)
        found = model.predict({}, samples)
        assert [sample.pred_occ.semantics.tolist() for sample in found] == [[[[expected]] * 2] * 2] * 2
    assert model.class_axes == {f'members.{number}.answer': 0 for number in range(3)}
    assert set(model.state_dict()) == {f'members.{number}.answer' for number in range(3)}
    torch.testing.assert_close(
        _ensemble(*answers)._forward({}, samples)[0][0, 0, 0, 0], torch.tensor([0.7, 1.2, 1.1]) / 3
    )


def test_wrong_ensembles():
    for fields, message in (
        (dict(weights=(1, 2, 3)), 'weights is .* expected 2 numbers'),
        (dict(weights=(1, -1)), 'none below 0'),
        (dict(weights=(0, 0)), 'one above'),
    ):
        with pytest.raises(ConfigError, match=message):
            _ensemble([1.0], [0.0], **fields)
    with pytest.raises(ConfigError, match='members is empty'):
        _ensemble()
    member = dict(type='_OneAnswer', answer=[1.0])
    with pytest.raises(ConfigError, match='differ in data_preprocessor'):
        MODELS.build(dict(type='OccupancyEnsemble', members=[member, dict(member, data_preprocessor=dict(type='X'))]))
    with pytest.raises(ConfigError, match='SkipUpsample3D gives no scores'):
        part = dict(type='SkipUpsample3D', in_channels=1, skip_channels=0, out_channels=1)
        MODELS.build(dict(type='OccupancyEnsemble', members=[part]))
    with pytest.raises(ConfigError, match='for tests'):
        _ensemble([1.0]).loss({}, [])
