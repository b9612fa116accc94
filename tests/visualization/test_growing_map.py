"""A map that grows: what is kept, its colours over time, the page's slider in a real browser."""

import json
import re

import numpy as np
import pytest
from browser import Browser, find_browser
from occforge.visualization import GrowingMap, Layer, instance_palette, occupancy_page


def pose(x):
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


def grown():
    """Three frames of a wall: each sees two thirds of what the one before it saw, and as much that is new."""
    rng, scene = np.random.default_rng(0), GrowingMap(cell=0.1)
    for t in range(3):
        places = np.stack([rng.uniform(t, t + 3, 4000), rng.uniform(0, 1, 4000), rng.uniform(0, 2, 4000)], 1)
        numbers = np.floor(places[:, 0]).astype(int) - 1  # one instance a metre, the first metre has none
        scene.add(np.concatenate([places, np.full((4000, 3), 50.0 * t)], 1), numbers, pose(t))
    return scene


def until(condition):
    """A promise that waits for a condition."""
    return f'new Promise((done) => {{ const look = () => {condition} ? done() : setTimeout(look, 20); look(); }})'


def test_only_new_cells_are_added():
    scene = grown()
    assert len(scene) == 3 and np.all(np.diff(scene.steps) > 0)
    cells = np.floor(scene.points[:, :3].astype(np.float64) / 0.1).astype(int)
    assert len(np.unique(cells, axis=0)) == len(cells) == scene.steps[-1]
    late = scene.points[scene.steps[0] :]
    assert late[:, 0].min() < 3 and np.mean(late[:, 0] > 3) > 0.5  # what was missed before, and mostly what is new


def test_an_instance_keeps_its_colour():
    scene = grown()
    palette = instance_palette(10)
    for number in range(4):
        assert np.unique(scene.colours[scene.numbers == number], axis=0).tolist() == [palette[number].tolist()]
    assert len(np.unique(scene.colours[scene.numbers < 0], axis=0)) == 1
    pictures = list(scene.pictures((120, 80)))
    assert len(pictures) == 3 and pictures[0].shape == (80, 120, 3)
    background = pictures[-1][0, 0]
    drawn = [(picture != background).any(-1) for picture in pictures]
    assert drawn[0].sum() < drawn[1].sum() < drawn[2].sum()


def test_wrong_input():
    with pytest.raises(ValueError, match='do not fit'):
        GrowingMap().add(np.zeros((3, 6)), np.zeros(2))
    with pytest.raises(ValueError, match='no point has come yet'):
        GrowingMap().write_html('map.html')
    with pytest.raises(ValueError, match='too far'):
        GrowingMap().add(np.full((1, 3), 1e6), np.zeros(1))
    for steps in ([2, 1], [4], []):
        with pytest.raises(ValueError, match='steps have to rise up to 3 places'):
            occupancy_page({}, layers=[Layer('a', np.zeros((3, 3)), steps=steps)])


def test_the_page_holds_the_steps(tmp_path):
    scene = grown()
    scene.write_html(tmp_path / 'map.html', title='wall')
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', (tmp_path / 'map.html').read_text(), re.S)[1])
    assert [layer['name'] for layer in data['layers']] == ['instances', 'colours', "camera's way"]
    assert data['layers'][0]['steps'] == scene.steps.tolist() and data['layers'][2]['steps'] == [0, 2, 4]


@pytest.mark.skipif(find_browser() is None, reason='no Chromium on the PATH and OCCFORGE_BROWSER is not set')
def test_the_slider_in_a_browser(tmp_path):
    scene = grown()
    scene.write_html(tmp_path / 'map.html')
    with Browser(find_browser(), (900, 600)) as page:
        page.open(tmp_path / 'map.html')
        page.run(until("get('time') && layers.length"))
        assert page.run("get('step').textContent") == 'step 3 of 3'
        seen = []
        for step in (0, 1, 2):
            page.run(f"get('time').value = {step}; get('time').oninput(); paint()")
            assert page.run('present(layers[0])') == scene.steps[step]
            picture = page.picture()[:, :560]
            seen.append(int((picture != picture[5, 5]).any(-1).sum()))
        assert seen[0] < seen[1] < seen[2]
        page.run("get('time').value = 0; get('time').oninput(); get('play').onclick()")
        page.run(
            'new Promise((done) => { const look = () => state.step === 2 ? done() : setTimeout(look, 20); look(); })'
        )
        assert not page.errors
