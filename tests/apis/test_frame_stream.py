"""Streams of models that take a camera's own frames and grow one scene, on a made-up model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from occforge.apis import Setting
from occforge.apis.inferencer import InferenceStream
from occforge.errors import ConfigError


class Scene:
    """Every frame adds a point for each pixel and makes them an instance."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.points, self.owner = np.zeros((0, 6)), np.zeros(0, int)

    def step(self, rgb, depth, pose, masks=None):
        count = depth.size
        places = np.stack([np.arange(count), depth.ravel(), np.zeros(count)], -1) + np.asarray(pose)[:3, 3]
        self.points = np.concatenate([self.points, np.concatenate([places, rgb.reshape(-1, 3)], 1)])
        self.owner = np.concatenate([self.owner, np.full(count, self.owner.max(initial=-1) + 1)])

    def result(self):
        numbers = np.unique(self.owner)
        masks = self.owner == numbers[:, None]
        return SimpleNamespace(points=self.points, masks=masks, labels=numbers % 2, scores=np.full(len(numbers), 0.9),
                               semantic=self.owner % 2, ids=numbers)  # fmt: skip


@pytest.fixture
def stream():
    inferencer = SimpleNamespace(model=SimpleNamespace(open_frame_stream=Scene), setting=Setting(('chair', 'table')))
    return InferenceStream(inferencer)


def frame(x=0.0):
    pose = np.eye(4)
    pose[0, 3] = x
    return dict(rgb=np.full((2, 3, 3), 7, np.uint8), depth=np.ones((2, 3)), pose=pose)


def test_a_scene_grows_and_starts_anew(stream, tmp_path):
    with pytest.raises(ConfigError, match='no frame yet'):
        stream.result()
    first = stream.step(frame())
    second = stream.step(frame(x=10.0))
    assert (first.name, second.name) == ('frame000000', 'frame000001') and stream.result() is second
    assert first.instances.masks.shape == (1, 6) and second.instances.masks.shape == (2, 12)
    np.testing.assert_array_equal(second.instances.points[6:, 0], np.arange(6) + 10)
    assert second.instances.class_names == ('chair', 'table')
    assert len(second.save(tmp_path, ['npz', 'ply', 'png', 'html'])) == 4
    stream.reset()
    assert stream.step(frame()).instances.masks.shape == (1, 6)


def test_an_instance_keeps_its_colour_while_others_come_before_it(stream):
    stream.step(frame())
    whole = stream.step(frame(x=10.0)).instances
    assert whole.ids.tolist() == [0, 1]
    late = replace(whole, masks=whole.masks[1:], labels=whole.labels[1:], scores=whole.scores[1:], ids=whole.ids[1:])
    assert np.array_equal(late._coloured()[6:], whole._coloured()[6:])
    assert not np.array_equal(whole._coloured()[0], whole._coloured()[6])


@pytest.mark.parametrize('change, message', [(dict(colour=1), "unexpected keyword argument 'colour'"),
                                             (dict(rgb=None), "missing a required argument: 'depth'")])  # fmt: skip
def test_wrong_frames(stream, change, message):
    wrong = {**frame(), **change}
    if 'rgb' in change:
        del wrong['depth']
    with pytest.raises(ConfigError, match=f'a frame of this model: .*{message}'):
        stream.step(wrong)
