"""The ledger behind demo.py and ablation.py: what runs again, what does not, and what is never deleted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stage_runner import StageError, StageRunner, clear_work_dir, duration, last_checkpoint, resumable


def write(path, text='x'):
    """Arguments of a Python process that appends to a file."""
    return ['-c', f'open({str(path)!r}, "a").write({text!r})']


def test_runs_once_and_again_when_something_changed(tmp_path):
    a, b = tmp_path / 'a', tmp_path / 'b'

    def both(text='x'):
        stages = StageRunner(tmp_path / 'w')
        return stages.run('a', write(a, text), [a]), stages.run('b', write(b), [b], ['a'])

    assert both() == (True, True)
    assert both() == (False, False)
    assert both('y') == (True, True)  # another command: what depends on it runs, too
    assert both('y') == (False, False)
    a.unlink()
    assert both('y') == (True, True)  # a lost output
    b.unlink()
    assert both('y') == (False, True)
    assert a.read_text() == 'y'


def test_input_that_changed_before_a_kill_is_noticed(tmp_path):
    a, b = tmp_path / 'a', tmp_path / 'b'
    stages = StageRunner(tmp_path)
    stages.run('a', write(a), [a])
    stages.run('b', write(b), [b], ['a'])
    a.unlink()
    StageRunner(tmp_path).run('a', write(a), [a])  # and here the job was killed
    assert StageRunner(tmp_path).run('b', write(b), [b], ['a'])


def test_failure_and_missing_output_are_errors_and_are_tried_again(tmp_path):
    with pytest.raises(StageError, match='exit code 3'):
        StageRunner(tmp_path).run('a', ['-c', 'import sys; sys.exit(3)'])
    with pytest.raises(StageError, match='did not write'):
        StageRunner(tmp_path).run('b', ['-c', 'pass'], [tmp_path / 'nothing'])
    assert StageRunner(tmp_path).ledger['a']['finished'] is False
    assert StageRunner(tmp_path).run('a', ['-c', 'pass'])


def test_an_interrupted_stage_goes_on_in_its_folder_a_new_one_sets_it_aside(tmp_path, capsys):
    folder = tmp_path / 'training'
    code = f"""
import sys
from pathlib import Path
half = Path({str(folder)!r}, 'half')
half.parent.mkdir(exist_ok=True)
again = half.exists()
half.touch()
sys.exit(0 if again else 1)
"""
    command = ['-c', code]
    with pytest.raises(StageError):
        StageRunner(tmp_path).run('train', command, folders=[folder])
    assert StageRunner(tmp_path).run('train', command, folders=[folder])  # goes on: the file is still there
    for number, other in enumerate(('one', 'two'), 1):  # starts anew, in an empty folder
        with pytest.raises(StageError):
            StageRunner(tmp_path).run('train', [*command, other], folders=[folder])
        kept = tmp_path / f'training_old{number}'
        assert (kept / 'half').exists() and str(kept) in capsys.readouterr().out


def test_foreign_folders_are_left_alone(tmp_path):
    folder = tmp_path / 'training'
    folder.mkdir()
    (folder / 'thesis.txt').touch()
    with pytest.raises(StageError, match='no earlier run made'):
        StageRunner(tmp_path).run('train', ['-c', 'pass'], folders=[folder])
    with pytest.raises(StageError, match=r'no stages\.json'):
        clear_work_dir(folder)
    assert (folder / 'thesis.txt').exists()
    StageRunner(tmp_path / 'mine').run('a', ['-c', 'pass'])
    clear_work_dir(tmp_path / 'mine')
    assert not (tmp_path / 'mine').exists()
    clear_work_dir(tmp_path / 'mine')


def test_broken_ledger_is_named(tmp_path):
    (tmp_path / 'stages.json').write_text('{"a": ')
    with pytest.raises(StageError, match=r'stages\.json'):
        StageRunner(tmp_path)


def test_time_before_a_kill_counts(tmp_path):
    stages = StageRunner(tmp_path)
    with pytest.raises(StageError):
        stages.run('a', ['-c', 'import os, sys; sys.exit(0 if os.path.exists("/nonexistent") else 1)'])
    ledger = json.loads((tmp_path / 'stages.json').read_text())
    ledger['a']['seconds'] = 100.0
    (tmp_path / 'stages.json').write_text(json.dumps(ledger))
    stages = StageRunner(tmp_path)
    with pytest.raises(StageError):
        stages.run('a', ['-c', 'import os, sys; sys.exit(0 if os.path.exists("/nonexistent") else 1)'])
    assert stages.ledger['a']['seconds'] > 100


def test_durations_and_checkpoints(tmp_path):
    assert [duration(s) for s in (5.4, 65, 3700)] == ['5 s', '1 min 05 s', '1 h 01 min']
    with pytest.raises(StageError, match='last_checkpoint'):
        last_checkpoint(tmp_path)
    (tmp_path / 'epoch_2.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/moved/away/epoch_2.pth')
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'
    (tmp_path / 'original').mkdir()
    (tmp_path / 'original/epoch_2.pth').touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'original/epoch_2.pth'))  # a copied folder's
    assert last_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'
    (tmp_path / 'last_checkpoint').write_text('/moved/away/epoch_3.pth')
    with pytest.raises(StageError, match='epoch_3'):
        last_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform != 'linux', reason='PR_SET_PDEATHSIG')
def test_a_killed_job_leaves_nothing_running(tmp_path):
    alive = tmp_path / 'alive'
    child = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f'from stage_runner import StageRunner; StageRunner({str(tmp_path)!r}).run("a", ["-c", {child!r}])'
    job = subprocess.Popen([sys.executable, '-c', code], cwd=Path(__file__).parents[2] / 'tools')
    deadline = time.monotonic() + 30
    while not (alive.exists() and alive.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int(alive.read_text())
    job.send_signal(signal.SIGKILL)
    job.wait()
    while time.monotonic() < deadline:
        try:
            state = Path(f'/proc/{pid}/stat').read_text().split()[2]
        except FileNotFoundError:
            break
        if state == 'Z':
            break
        time.sleep(0.1)
    else:
        pytest.fail('the stage still runs')


@pytest.mark.parametrize(
    'raised, code, said',
    [
        (StageError('a failed with exit code 3'), 1, 'error: a failed with exit code 3\nThe finished stages are kept'),
        (KeyboardInterrupt(), 130, 'stopped; the same command goes on from here'),
        (None, 0, ''),
    ],
)
def test_a_stopped_job_says_how_to_go_on(raised, code, said, capsys):
    @resumable
    def main(argv=None):
        assert argv == ['--seeds', '1']
        if raised is not None:
            raise raised
        return 0

    assert main(['--seeds', '1']) == code
    assert capsys.readouterr().err.strip().startswith(said)
