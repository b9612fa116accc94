"""The data of shrunk configs, made once a session."""

import pytest
from occforge.datasets import synthetic_city, synthetic_rooms
from occforge.datasets.preparation import nuscenes_converter
from occforge.datasets.preparation.scannet import prepare
from shrink import POINTS, shrink_city


@pytest.fixture(scope='session')
def worlds(tiny_city, tmp_path_factory):
    """{name: folder}: 'city' with the nuScenes rig, 'other' with four cameras and 80 beams, 'rooms'. Read only."""
    root = tmp_path_factory.mktemp('worlds')
    synthetic_city.generate(
        root / 'other', scenes=2, keyframes=2, image_size=(200, 112), rig='four_cameras_80_beams', split='1:1',
        workers=2, progress=False,
    )  # fmt: skip
    metainfo, data_lists, _ = nuscenes_converter.make_infos(root / 'other', quiet=True)
    nuscenes_converter.write_infos(root / 'other', metainfo, data_lists)
    rooms = root / 'rooms'
    synthetic_rooms.generate(rooms / 'exports', rooms=2, frames=2, held_out=1, quiet=True)
    for stage in ('sv', 'mv'):
        prepare('scannet200', stage, rooms / 'exports', rooms / f'scannet200-{stage}', num_sample=POINTS, quiet=True)
    city, other = shrink_city(tiny_city, root / 'small'), shrink_city(root / 'other', root / 'small_other')
    return dict(city=city, other=other, rooms=rooms)
