"""Writing files so that no reader ever sees half of one. Standard library only."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'wb', durable: bool = True, **open_args) -> Iterator[IO]:
    """Open a temporary file beside ``path``; when the block ends well it is flushed to disk and takes the name.

    Whatever happens in between (an exception, a full disk, a kill), ``path`` holds either its old content or the
    whole new one. After an exception the temporary file is removed; a kill leaves it behind under
    ``.<name>.<random>.tmp``, which :func:`remove_leftovers` clears.

    Args:
        path: final name. Missing parent folders are made. A link is followed: the file it points to is replaced.
        mode: 'wb' or 'w'.
        durable: wait until the disk has the file, so that a power cut cannot lose it either. That wait, tens of
            milliseconds a file, is most of the time of writing thousands of small files that can be made again;
            they set False and call :func:`os.sync` once at the end.
        **open_args: ``encoding``, ``newline`` and so on, passed to :func:`open`.

    Raises:
        ValueError: for a mode that reads or appends.
        OSError: as :func:`open`, ``write`` and :func:`os.replace` raise it.
    """
    if mode not in ('wb', 'w', 'wt'):
        raise ValueError(f"atomic_write writes whole files: mode must be 'wb' or 'w', not {mode!r}")
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(descriptor, mode, **open_args) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, _file_mode(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(path.parent)


def remove_leftovers(folder: str | os.PathLike, prefix: str = '') -> list[Path]:
    """Delete temporary files that killed writers left in ``folder``; returns what was deleted.

    Only call it where no other process writes into the folder at the same time.
    """
    leftovers = sorted(Path(folder).glob(f'.{prefix}*.tmp'))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


def _file_mode(path: Path) -> int:
    """Permissions of the file to be replaced, else those that a plain ``open`` would give (mkstemp gives 0600)."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; not every file system allows syncing a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):  # e.g. network shares; the rename is still atomic for every reader
        os.fsync(descriptor)
    os.close(descriptor)
