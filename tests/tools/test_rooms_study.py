"""The tables of ESAM's routes on synthetic rooms, and the commands that fill them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rooms_study

TOOLS = Path(__file__).parents[2] / 'tools'
SCORES = {'3D': 0.3, '3D_Tiny_SA': 0.31, 'Bi_Fusion': 0.36, 'Bi_Fusion_queue_2': 0.34}


def test_help_and_wrong_arguments():
    done = subprocess.run([sys.executable, str(TOOLS / 'rooms_study.py'), '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and 'three routes' in done.stdout
    for wrong in (['--seeds', '1', '1'], ['--rooms', '1'], ['--frames', '0'], ['--clip-ckpt', 'no.pt']):
        with pytest.raises(SystemExit) as end:
            rooms_study.parse_args(wrong)
        assert end.value.code == 2


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Commands in place of being run: their outputs are made up."""
    monkeypatch.chdir(tmp_path)
    commands = []

    def value(arguments, name):
        return arguments[arguments.index(name) + 1]

    def call(self, arguments, entry):
        commands.append(arguments)
        if 'train.py' in arguments[0]:
            folder = Path(value(arguments, '--work-dir'))
            folder.mkdir(parents=True)
            (folder / 'epoch_1.pth').write_bytes(b'x')
            (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
        elif 'test.py' in arguments[0]:
            out = Path(value(arguments, '--out'))
            out.parent.mkdir(parents=True)
            name, _, seed = out.parts[-3].partition('_')[2].rpartition('_seed')
            metrics = dict.fromkeys(rooms_study.MORE.values(), 0.5)
            out.write_text(json.dumps(dict(metrics={**metrics, 'all_ap_50%': SCORES[name] + int(seed) / 500})))
        elif 'synthetic_rooms' in arguments:
            folder = Path(value(arguments, '--root-path'), 'meta_data')
            folder.mkdir(parents=True)
            (folder / 'scannetv2_val.txt').touch()
        elif 'create_data.py' in arguments[0]:
            out = Path(value(arguments, '--out-dir'))
            out.mkdir(parents=True)
            for split in ('train', 'val'):
                (out / f'{arguments[1]}_oneformer3d_infos_{split}.pkl').touch()
        else:
            Path(value(arguments, '--data-root'), 'clip_feat').mkdir()
        return 0

    monkeypatch.setattr(rooms_study.StageRunner, '_call', call)
    return commands


def test_the_commands(called, capsys):
    command = ['--seeds', '0', '1', '--work-dir', 'work', '--cfg-options', 'max_epochs=1']
    assert rooms_study.main(command) == 0
    shown = capsys.readouterr().out
    # means 30.1 and 36.1 with a standard error of 0.1 each
    assert '| single frames | AP50 | each seed | gain over 3D | 3 points and 2 SE | AP |' in shown
    assert '| Bi-Fusion | 36.1 ± 0.1 | 36.0, 36.2 | +6.0 ± 0.1 | yes | 50.0 |' in shown
    assert '| 3D + Tiny-SA | 31.1 ± 0.1 | 31.0, 31.2 | +1.0 ± 0.1 | no |' in shown
    assert shown.count('| Bi-Fusion, queue=2 | 34.1 ± 0.1 |') == 1
    trainings = [arguments for arguments in called if 'train.py' in arguments[0]]
    assert len(trainings) == 2 * (3 + 4) and all('max_epochs=1' in each for each in trainings)
    online = [each for each in trainings if 'online' in each[1]]
    for each in online:  # each from its own route's single frames, of its seed
        source, folder = each[each.index('--load-from') + 1], each[each.index('--work-dir') + 1]
        name, _, seed = Path(folder).parts[-2].partition('_')[2].rpartition('_seed')
        assert Path(source).parts[-3] == f'sv_{name.removesuffix("_queue_2")}_seed{seed}'
        assert ('model.memory.queue=2' in each) == name.endswith('queue_2')
        assert {'data_root=work/data/mv/', 'rec_root=work/data/rec', f'randomness.seed={seed}'} <= set(each)
    assert json.loads(Path('work/rooms.json').read_text())['runs']['mv']['Bi-Fusion']['better']
    before = len(called)
    assert rooms_study.main(command) == 0 and len(called) == before


def test_one_stage_alone(called):
    assert rooms_study.main(['--seeds', '3', '--stages', 'sv', '--work-dir', 'work']) == 0
    assert not any('online' in each[1] or 'scannet200_mv' in each for each in called)
    assert set(json.loads(Path('work/rooms.json').read_text())['runs']) == {'sv'}
