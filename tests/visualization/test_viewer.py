"""The interactive page: what lies in it, and how it behaves in a real browser."""

import base64
import json
import re
import zlib

import numpy as np
import pytest
from browser import Browser, find_browser
from occforge.visualization import Layer, box_layer, occupancy_page, write_occupancy_page

NAMES = ['road', 'wall', 'tree', 'free']
COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255)]
SHAPE = (12, 10, 6)
RANGE = (-6.0, -5.0, 0.0, 6.0, 5.0, 3.0)
needs_browser = pytest.mark.skipif(
    find_browser() is None, reason='no Chromium on the PATH and OCCFORGE_BROWSER is not set'
)


def grids():
    rng = np.random.default_rng(0)
    truth = np.full(SHAPE, 3)
    truth[:, :, 0] = 0
    truth[4:6, 2:9, 1:5] = 1
    truth[9, 3, 1:4] = 2
    pred = np.where(rng.random(SHAPE) < 0.1, 2, truth)
    mask = rng.random(SHAPE) < 0.7
    return pred, truth, mask


def page_data(text):
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])


def cells(packed, kind=np.uint8):
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), kind)


def exposed_faces(grid, drawn):
    """Faces of drawn voxels that no drawn voxel covers."""
    padded = np.pad(drawn, 1)
    sides = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (1, -1)]
    return sum(int((drawn & ~side).sum()) for side in sides)


def options():
    return dict(class_names=NAMES, palette=COLOURS, point_cloud_range=RANGE)


def test_the_page_holds_the_grids_and_asks_for_nothing(tmp_path):
    pred, truth, mask = grids()
    truth[0, 0, 0] = 255  # not known
    layers = [
        Layer('points', [[1, 2, 3], [4, 5, 6]], (9, 8, 7)),
        box_layer('boxes', [[0, 0, 1, 4, 2, 2, 0]], side=1, visible=False),
    ]
    path = tmp_path / 'new' / 'page.html'
    title = '</script><b>"1" & 2'
    write_occupancy_page(
        path, {'Prediction': pred, 'Truth': truth}, mask=mask, mask_name='camera mask', layers=layers, title=title,
        **options(),
    )  # fmt: skip
    text = path.read_text()
    assert not re.search(r'(src|href)\s*=|https?:|@import|url\(', text)
    assert '</script><b>' not in text and '<title>&lt;/script&gt;' in text
    data = page_data(text)
    assert data['title'] == title and data['free'] == 3 and data['shape'] == list(SHAPE)
    assert [grid['name'] for grid in data['grids']] == ['Prediction', 'Truth']
    np.testing.assert_array_equal(cells(data['grids'][0]['cells']).reshape(SHAPE), pred)
    assert cells(data['grids'][1]['cells'])[0] == 3
    np.testing.assert_array_equal(cells(data['mask']['cells']).reshape(SHAPE), mask)
    points, boxes = data['layers']
    np.testing.assert_array_equal(cells(points['places'], np.float32), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(cells(points['colours']), [9, 8, 7] * 2)
    lines = cells(boxes['places'], np.float32).reshape(-1, 2, 3)
    assert (boxes['kind'], boxes['side'], boxes['visible']) == ('lines', 1, False)
    assert np.abs(lines).max(axis=(0, 1)).tolist() == [2, 1, 2]  # half sizes around (0, 0, 1)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(grids={'a': np.zeros((2, 2))}), 'expected a grid'),
        (
            dict(grids={'a': np.zeros((2, 2, 2)), 'b': np.zeros((2, 2, 3))}),
            r"grids\['b'\]: expected a grid \(2, 2, 2\)",
        ),
        (dict(grids={n: np.zeros((2, 2, 2)) for n in 'abc'}), 'two at most'),
        (dict(grids={'a': np.full((2, 2, 2), 4)}), r'expected class numbers 0\.\.3'),
        (dict(mask=np.zeros((2, 2, 2))), 'mask: expected the shape'),
        (dict(palette=COLOURS[:2]), 'expected 4 colours'),
        (dict(layers=[Layer('a', [[0, 0, np.nan]])]), 'not finite'),
        (dict(layers=[Layer('a', [[0, 0, 1]], kind='faces')]), "kind 'faces'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fields = dict(grids={'Truth': grids()[1]}, **options())
    with pytest.raises(ValueError, match=message):
        occupancy_page(**{**fields, **change})


@needs_browser
def test_the_page_in_a_browser(tmp_path):
    pred, truth, mask = grids()
    path = tmp_path / 'page.html'
    layer = box_layer('boxes', [[0, 0, 1, 4, 2, 2, 0]], (0, 0, 0))
    write_occupancy_page(
        path, {'Prediction': pred, 'Truth': truth}, mask=mask, mask_name='camera mask', layers=[layer], **options()
    )

    def drawn(page):
        return page.run('viewer.halves.map((half) => half.count)')

    def expected(keep):
        return [exposed_faces(grid, (grid != 3) & keep(grid)) for grid in (pred, truth)]

    with Browser(find_browser()) as page:
        page.open(path)
        assert page.run('viewer.ready.then(() => document.body.dataset.ready)') == 'yes'
        everything = expected(lambda grid: True)
        assert drawn(page) == everything

        # the classes' boxes, the mask's, the slices
        page.run("document.getElementById('class-2').click()")
        assert drawn(page) == expected(lambda grid: grid != 2)
        assert page.run("document.getElementById('count-2').textContent") == '0 / 0'
        page.run("document.getElementById('classes-none').click()")
        assert drawn(page) == [0, 0]
        page.run("document.getElementById('classes-all').click()")
        page.run("document.querySelector('#layers input').click()")
        assert drawn(page) == expected(lambda grid: mask)
        page.run("document.querySelector('#layers input').click()")
        low = np.arange(SHAPE[2]) < 2
        page.run("const input = document.getElementById('slice-z1'); input.value = 2; input.oninput()")
        assert drawn(page) == expected(lambda grid: low)
        page.run('input.value = 6; input.oninput()')
        assert drawn(page) == everything

        # from above the middle of a half shows the road's colour (its upper faces have full brightness)
        page.run("[...document.querySelectorAll('#views button')].find((b) => b.textContent === 'above').click()")
        page.run('new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))')
        assert page.run('viewer.pick(445, 350).label') == 1  # the wall before the car
        before = page.picture().astype(int)
        colours = before[:, :890].reshape(-1, 3)
        for wanted in COLOURS[:2]:
            assert (np.abs(colours - wanted).max(1) <= 3).sum() > 2000
        divider = page.run('viewer.state.split * document.getElementById("stage").clientWidth')
        page.drag((divider, 350), (divider + 200, 350))
        assert page.run('viewer.state.split') == pytest.approx((divider + 200) / 890, abs=0.02)
        moved = np.abs(page.picture().astype(int) - before).max(-1)
        assert moved[:, int(divider) + 20 : int(divider) + 180].any()  # now the prediction's, with its wrong voxels
        assert not moved[60:300, 20 : int(divider) - 30].any()

        yaw = page.run('viewer.state.yaw')
        page.drag((200, 500), (300, 450))
        assert page.run('viewer.state.yaw') == pytest.approx(yaw - 0.6)
        assert page.errors == [] and page.requests == [path.resolve().as_uri()]
