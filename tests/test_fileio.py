import os
import signal
import subprocess
import sys

import pytest
from occforge.errors import ConfigError, DataError, cli_errors
from occforge.fileio import atomic_write, remove_leftovers


def test_the_name_appears_with_the_whole_content(tmp_path):
    path = tmp_path / 'new' / 'file.txt'
    with atomic_write(path, 'w', encoding='utf-8') as file:
        file.write('grün')
        assert not path.exists()
    assert path.read_text(encoding='utf-8') == 'grün'
    assert [p.name for p in path.parent.iterdir()] == ['file.txt']


def test_permissions_are_those_of_a_plain_file(tmp_path):
    (tmp_path / 'plain').write_bytes(b'')
    with atomic_write(tmp_path / 'ours') as file:
        file.write(b'1')
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'plain').stat().st_mode
    os.chmod(tmp_path / 'ours', 0o640)
    with atomic_write(tmp_path / 'ours') as file:
        file.write(b'2')
    assert (tmp_path / 'ours').stat().st_mode & 0o777 == 0o640


def test_an_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b'half')
        raise RuntimeError
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_a_link_is_followed(tmp_path):
    target, link = tmp_path / 'target', tmp_path / 'link'
    target.write_bytes(b'old')
    link.symlink_to(target)
    with atomic_write(link) as file:
        file.write(b'new')
    assert link.is_symlink() and target.read_bytes() == b'new'


def test_modes_that_read_or_append_are_refused(tmp_path):
    with pytest.raises(ValueError, match='whole files'), atomic_write(tmp_path / 'file', 'ab'):
        pass


def test_a_killed_writer_keeps_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    code = (
        'import os, signal, sys\nfrom occforge.fileio import atomic_write\n'
        f'with atomic_write({str(path)!r}) as file:\n'
        '    file.write(b"half"); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    result = subprocess.run([sys.executable, '-c', code])
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == b'old'
    assert len(remove_leftovers(tmp_path, 'file')) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    path.write_bytes(b'old')

    def full(_descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'), atomic_write(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('error', [DataError('a.npz: field x\nis missing'), ConfigError('model.typ: unknown')])
def test_cli_errors_prints_one_line(error, capsys):
    with pytest.raises(SystemExit) as exit_info, cli_errors():
        raise error
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == f'error: {" ".join(str(error).split())}\n'


def test_cli_errors_names_the_missing_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info, cli_errors():
        open(tmp_path / 'absent')
    assert exit_info.value.code == 2
    assert 'absent: No such file or directory' in capsys.readouterr().err


def test_cli_errors_lets_bugs_through():
    with pytest.raises(ZeroDivisionError), cli_errors():
        raise ZeroDivisionError
