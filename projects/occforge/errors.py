"""Errors that a user can act on, and how the tools print them. Standard library only."""

import contextlib
import os
import sys
from collections.abc import Iterator


class DataError(ValueError):
    """A data file or a sample is not what it should be; the message names file, field, found and expected."""


class ConfigError(ValueError):
    """A config or a command-line field is not what it should be; the message names the field."""


@contextlib.contextmanager
def cli_errors(*also: type[BaseException]) -> Iterator[None]:
    """Around a tool's ``main``: one line on stderr and exit status 2 for errors that a user can act on.

    Those are :class:`DataError`, :class:`ConfigError`, whatever is named in ``also``, and file errors (not found,
    no permission, no space) that carry a file name. Anything else is a bug and keeps its traceback. Ctrl-C exits
    with 130 and no traceback. ``OCCFORGE_TRACEBACK=1`` in the environment keeps all tracebacks.
    """
    try:
        yield
    except (DataError, ConfigError, *also) as error:
        if os.environ.get('OCCFORGE_TRACEBACK') == '1':
            raise
        _exit(_own_words(error))
    except OSError as error:
        if error.filename is None or os.environ.get('OCCFORGE_TRACEBACK') == '1':
            raise
        _exit(f'{error.filename}: {error.strerror}')
    except KeyboardInterrupt:
        sys.stderr.write('interrupted\n')
        sys.exit(130)


def _own_words(error: BaseException) -> str:
    """The message without the traceback that torch's DataLoader puts around an error of a worker process."""
    message = str(error)
    if message.startswith('Caught ') and 'Original Traceback' in message:
        _, found, tail = message.rpartition(f'{type(error).__name__}: ')
        message = tail if found else message
    return message


def _exit(message: str) -> None:
    sys.stderr.write(f'error: {" ".join(message.split())}\n')
    sys.exit(2)
