"""Runs the commands of a longer job one after another, and leaves out those that have already finished.

Standard library only. Used by demo.py and the studies.
"""

import ctypes
import functools
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _make_die_with_parent():
    """A function for a new process: be terminated when this one dies, so that a killed job leaves nothing running.

    Without it, calling the job again would have two trainings write into one folder. Linux only; None elsewhere.
    """
    if sys.platform != 'linux':
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


_DIE_WITH_PARENT = _make_die_with_parent()


class StageError(Exception):
    """A command failed; its own output says why."""


def resumable(main):
    """Decorator of a tool's ``main``: a failed stage is a message and exit status 1, Ctrl-C one and 130."""

    @functools.wraps(main)
    def guarded(argv=None) -> int:
        try:
            return main(argv)
        except StageError as error:
            print(
                f'\nerror: {error}\nThe finished stages are kept: the same command goes on from here.', file=sys.stderr
            )
            return 1
        except KeyboardInterrupt:
            print('\nstopped; the same command goes on from here', file=sys.stderr)
            return 130

    return guarded


def write_atomically(path, text: str) -> None:
    """Write a text file under a temporary name in the same folder, then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with open(temporary, 'w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def duration(seconds: float) -> str:
    """'3 min 05 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes:02d} min'
    return f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'


class StageRunner:
    """A ledger of commands in ``<work_dir>/stages.json``.

    A stage is done when the very same command has ended well before, on the same runs of the stages that it depends
    on, and its outputs are still there. One that was interrupted is called again and may go on where it was; one whose
    command or input has changed starts anew, and what it had made before is moved aside.

    Args:
        work_dir: folder of the ledger.
    """

    def __init__(self, work_dir):
        self.path = Path(work_dir) / 'stages.json'
        self.ledger = {}
        if self.path.exists():
            try:
                self.ledger = json.loads(self.path.read_text())
            except ValueError:
                raise StageError(f'{self.path} is not readable JSON; delete it, or use --fresh') from None
        self.seconds = {}

    def run(self, name: str, arguments, outputs=(), after=(), folders=()) -> bool:
        """Run ``python <arguments>`` in the current folder unless it is done. Returns whether it ran.

        Args:
            name: of the stage, unique in this ledger.
            arguments: of the Python interpreter, as a list.
            outputs: files that must exist afterwards.
            after: names of the stages whose outputs it reads.
            folders: that belong to this stage alone; when it starts anew they become <folder>_old1 and so on.

        Raises:
            StageError: the command failed, an output is missing, or a folder holds something that no stage made.
        """
        arguments = [str(argument) for argument in arguments]
        entry = dict(command=shlex.join(['python', *arguments]))
        entry['inputs'] = {other: self.ledger[other]['stamp'] for other in after}
        old = self.ledger.get(name, {})
        same = all(old.get(key) == value for key, value in entry.items())
        if same and old['finished'] and all(Path(path).exists() for path in outputs):
            self.seconds[name] = old['seconds']
            print(f'[{name}] done before ({duration(old["seconds"])}): {entry["command"]}', flush=True)
            return False
        print(f'\n[{name}] $ {entry["command"]}', flush=True)
        interrupted = same and not old['finished']
        if not interrupted:
            self._set_aside(name, folders)
        # what a stage had used before it was killed counts: the summary must not flatter
        entry.update(seconds=old['seconds'] if interrupted else 0.0, finished=False, stamp=time.time_ns())
        self.ledger[name] = entry
        code = self._call(arguments, entry)
        if code:
            raise StageError(f'{name} failed with exit code {code}: {entry["command"]}')
        missing = [str(path) for path in outputs if not Path(path).exists()]
        if missing:
            raise StageError(f'{name} ended well but did not write {", ".join(missing)}: {entry["command"]}')
        entry['finished'] = True
        self._save()
        self.seconds[name] = entry['seconds']
        print(f'[{name}] {duration(entry["seconds"])}', flush=True)
        return True

    def _set_aside(self, name, folders) -> None:
        for folder in map(Path, folders):
            if not folder.exists() or not any(folder.iterdir()):
                continue
            if name not in self.ledger:
                raise StageError(f'{folder} holds files that no earlier run made; move them, or change --work-dir')
            number = next(n for n in itertools.count(1) if not folder.with_name(f'{folder.name}_old{n}').exists())
            kept = folder.with_name(f'{folder.name}_old{number}')
            folder.rename(kept)
            print(f'[{name}] not what ran before: its files are kept in {kept}', flush=True)

    def _call(self, arguments, entry) -> int:
        before, start = entry['seconds'], time.monotonic()
        self._save()
        process = subprocess.Popen([sys.executable, *arguments], preexec_fn=_DIE_WITH_PARENT)
        try:
            while True:
                try:
                    return process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    entry['seconds'] = round(before + time.monotonic() - start, 2)
                    self._save()  # survives a kill
        except KeyboardInterrupt:
            process.wait()  # it got the signal, too, and ends by itself
            raise
        finally:
            entry['seconds'] = round(before + time.monotonic() - start, 2)
            self._save()

    def _save(self) -> None:
        write_atomically(self.path, json.dumps(self.ledger, indent=1) + '\n')


def clear_work_dir(work_dir) -> None:
    """Delete a work dir that a stage runner made (``--fresh``).

    Raises:
        StageError: it was made by something else: a mistyped path must not cost anybody a folder.
    """
    work_dir = Path(work_dir)
    if not work_dir.exists():
        return
    if any(work_dir.iterdir()) and not (work_dir / 'stages.json').exists():
        raise StageError(f'--fresh: {work_dir} has no stages.json, so it was not made by this tool and stays')
    shutil.rmtree(work_dir)


def read_results(path) -> dict:
    """The results file of OccupancyMetric."""
    return json.loads(Path(path).read_text())


def last_checkpoint(work_dir) -> Path:
    """The checkpoint that a finished training left in its work dir.

    Raises:
        StageError: there is none.
    """
    pointer = Path(work_dir) / 'last_checkpoint'
    if not pointer.exists():
        raise StageError(f'{pointer} is missing: the training in {work_dir} left no checkpoint')
    named = Path(pointer.read_text().strip())
    for path in (Path(work_dir) / named.name, named):  # the work dir may have been moved or copied since
        if path.exists():
            return path
    raise StageError(f'{pointer} names {named}, which does not exist')
