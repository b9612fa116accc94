"""The table of what memory is worth, and the commands that fill it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import temporal_study
from stage_runner import StageRunner

TOOLS = Path(__file__).parents[2] / 'tools'


def test_help_and_wrong_arguments():
    done = subprocess.run([sys.executable, str(TOOLS / 'temporal_study.py'), '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'single-frame' in done.stdout
    for wrong in (
        ['--pretraining', 'no.py'],
        ['--pretraining', __file__, '--no-pretraining'],
        ['--seeds', '1', '1'],
        ['--configs', 'a'],
        ['--configs', 'a=no.py'],
        ['--scenes', '0'],
    ):
        with pytest.raises(SystemExit) as end:
            temporal_study.parse_args(wrong)
        assert end.value.code == 2


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    called = []
    scores = {'single_frame': 10.0, 'eight_remembered_frames': 11.9}

    def call(self, arguments, entry):
        called.append(arguments)
        value = dict(zip(arguments[2::2], arguments[3::2]))
        if 'train.py' in arguments[0]:
            folder = Path(arguments[arguments.index('--work-dir') + 1])
            folder.mkdir(parents=True)
            (folder / 'epoch_1.pth').write_bytes(b'x')
            (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
        elif 'test.py' in arguments[0]:
            out = Path(arguments[arguments.index('--out') + 1])
            out.parent.mkdir(parents=True)
            name, _, seed = out.parts[-3].partition('_seed')
            metrics = {'mIoU/lidar_mask': scores[name] + int(seed) / 5, 'mIoU/no_mask': 99.0}
            out.write_text(json.dumps(dict(metrics=metrics, samples=1)))
        else:
            root = Path(value['--root-path'])
            root.mkdir(parents=True, exist_ok=True)
            for split in ('train', 'val'):
                (root / f'nuscenes_infos_{split}.pkl').write_bytes(b'x')
        return 0

    monkeypatch.setattr(StageRunner, '_call', call)
    assert temporal_study.main(['--seeds', '0', '1', '--work-dir', 'work']) == 0
    # means 10.1 and 12.0 with a standard error of 0.1 each
    shown = capsys.readouterr().out
    assert '| eight remembered frames | 12.0 ± 0.1 | 11.9, 12.1 | +1.9 ± 0.1 | yes |' in shown
    assert '| model | mIoU, LiDAR mask | each seed | gain over single frame | 1.5 points and 2 SE |' in shown
    trainings = [arguments for arguments in called if 'train.py' in arguments[0]]
    models = ['fbocc_synthetic_single', 'fbocc_synthetic']
    assert [Path(each[1]).stem for each in trainings] == ['fbocc_synthetic_depth_pretrain', *models, *models]
    start = ['--load-from', str(Path('work/pretraining/fbocc_synthetic_depth_pretrain/epoch_1.pth'))]
    assert [each[-2:] == start for each in trainings] == [False] + [True] * 4
    written = json.loads(Path('work/temporal.json').read_text())
    assert written['runs']['eight remembered frames']['better'] and written['metric'] == 'mIoU/lidar_mask'
    before = len(called)
    assert temporal_study.main(['--seeds', '0', '1', '--work-dir', 'work']) == 0 and len(called) == before
    assert temporal_study.main(['--seeds', '0', '--work-dir', 'bare', '--no-pretraining']) == 0
    trainings = [arguments for arguments in called[before:] if 'train.py' in arguments[0]]
    assert len(trainings) == 2 and not any('--load-from' in text for each in trainings for text in map(str, each))
