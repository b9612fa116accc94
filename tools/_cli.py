"""What the tools share.

Standard library alone at import: --help and bad arguments must not wait for torch.
"""

import argparse
import difflib
import os
import platform
import re
import sys
from pathlib import Path

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
# Fields of older configs that have no dot and are understood as overrides.
PLAIN_OVERRIDES = ('max_epochs', 'seed', 'freeze_encoder')


def use_this_checkout() -> None:
    """Prefer the package beside this tool to an installed one."""
    projects = Path(__file__).resolve().parent.parent / 'projects'
    if (projects / 'occforge').is_dir():
        sys.path.insert(0, str(projects))


def processor_name() -> str:
    """The CPU's name, for tables of times; ``platform.processor`` is empty on most Linux systems."""
    try:
        described = Path('/proc/cpuinfo').read_text()
    except OSError:
        described = ''
    named = re.search(r'^model name\s*: *(\S.*)$', described, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def positive(text: str) -> int:
    """Type of arguments that are whole numbers of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
    return int(text)


def fail(message: str) -> None:
    sys.stderr.write(f'error: {message}\n')
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage; no abbreviated options, which would swallow misspelt overrides."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> None:
        fail(f'{message} (--help lists the arguments)')


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', '--work_dir', '--run-dir', '--run_dir', dest='work_dir', metavar='DIR')
    parser.add_argument(
        '--cfg-options',
        '--cfg_options',
        dest='cfg_options',
        nargs='+',
        metavar='KEY=VALUE',
        help='override fields that the config has, a.b=c; lists as a=[1,2], list elements as a.0.b=c; +a.b=c adds one',
    )
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        help='how the processes were started; torchrun is recognised without it',
    )
    parser.add_argument(
        '--device',
        choices=('auto', 'cpu', 'cuda'),
        default='auto',
        help='auto: a GPU where torch sees one; cuda: an error where it does not',
    )
    parser.add_argument(
        '--allow-unsafe-pickle',
        nargs='?',
        const='*',
        metavar='SHA256',
        help='load a checkpoint that wants to run code (any, or only the file with this SHA-256), with a warning that '
        'names it; runs what its author wrote',
    )
    # set by older launchers; the environment tells the same
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse; ``--a.b value`` and ``--a.b=value`` become overrides, any other unknown option is an error."""
    rest, overrides = [], []
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    while arguments:
        argument = arguments.pop(0)
        name, equals, value = argument.partition('=')
        if name in ('--cfg-options', '--cfg_options'):  # by hand: argparse would also take a config that follows
            options = [value] if equals else []
            while arguments and '=' in arguments[0] and not arguments[0].startswith('--'):
                options.append(arguments.pop(0))
            if not options:
                parser.error(f'{name} needs KEY=VALUE' + (f', found {arguments[0]!r}' if arguments else ''))
            overrides += options
        elif not name.startswith('--') or not ('.' in name or name[2:] in PLAIN_OVERRIDES):
            rest.append(argument)
        else:
            if not equals:
                if not arguments or arguments[0].startswith('--'):
                    parser.error(f'{name} needs a value')
                value = arguments.pop(0)
            overrides.append(f'{name[2:]}={value}')
    args, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        known = [text for action in parser._actions for text in action.option_strings]
        unknown = next((text for text in unknown if text.startswith('-')), unknown[0])
        near = difflib.get_close_matches(unknown.split('=')[0], known, n=1)
        parser.error(f'unknown argument {unknown}' + (f', did you mean {near[0]}?' if near else ''))
    args.cfg_options = overrides
    return args


def prepare(args: argparse.Namespace, *files: tuple[str, str | None]) -> None:
    """What can be checked and set before torch is imported: files exist, the device is chosen."""
    for role, name in files:
        if name is not None and '://' not in name and not os.path.isfile(name):
            fail(f'{name}: no such {role} file')
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # huge pages for tensors above 2 MB, where the kernel leaves that to programs: torch reads it at its first tensor
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    limit_numpy_threads()


def limit_numpy_threads() -> None:
    """numpy's matrix products on one thread, unless the user says otherwise; before numpy is imported.

    Pools and loaders work in processes, and each of these would start a thread for every core: the synthetic city
    takes some 5 % less time without.
    """
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')


def set_up(args: argparse.Namespace, default_folder: str | None = None):
    """Load the config and settle device, launcher and work dir; imports torch. Returns the config.

    Raises:
        ConfigError: bad config or override, no GPU where one was asked for, two tasks and no launcher.
    """
    import torch
    from occforge.engine import load_config, trust_pickles
    from occforge.engine.dist import detect_launcher
    from occforge.engine.runner import default_work_dir
    from occforge.errors import ConfigError

    if args.device == 'cuda' and not torch.cuda.is_available():
        build = 'a CPU build of torch' if torch.version.cuda is None else f'torch for CUDA {torch.version.cuda}'
        raise ConfigError(f'--device cuda: torch sees no GPU ({build}); use --device cpu, or check nvidia-smi')
    if args.allow_unsafe_pickle is not None:
        trust_pickles(args.allow_unsafe_pickle)
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = detect_launcher(args.launcher)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = default_folder or default_work_dir(args.config)
    return cfg


def build_runner(cfg):
    """The config's runner. A field that a class does not accept is an error of the config, in one line."""
    from mmengine.registry import RUNNERS
    from occforge.engine import OccRunner

    if cfg.get('runner_type') not in (None, 'OccRunner'):
        return run(lambda: RUNNERS.build(cfg), cfg)
    return run(lambda: OccRunner.from_cfg(cfg), cfg)


def run(phase, cfg):
    """Call ``phase`` (train or test), turning faults of building from the config into config errors, in one line that
    names the part of the config. Other errors keep their traceback, with that part behind it."""
    from occforge.engine.blame import part_of_config
    from occforge.errors import ConfigError, DataError

    try:
        return phase()
    except (ConfigError, DataError, OSError):
        raise
    except Exception as error:
        part = part_of_config(error, cfg)
        if is_config_fault(error):
            words = describe(error) if part is None else f'{describe(error)}, while building {part}'
            raise ConfigError(f'{cfg.filename}: {words}') from error
        if part is not None and hasattr(error, 'add_note'):  # from Python 3.11 on
            error.add_note(f'in the config {cfg.filename}: {part}')
        raise


def is_config_fault(error: BaseException) -> bool:
    """Whether the error arose while a registry built something, or mmengine checked its arguments."""
    if not isinstance(error, (TypeError, KeyError, ValueError, AssertionError, AttributeError, ImportError)):
        return False
    import traceback

    for frame, _ in traceback.walk_tb(error.__traceback__):
        if re.search(r'mmengine.(registry.build_functions|optim.optimizer.\w+)\.py$', frame.f_code.co_filename):
            return frame.f_code.co_name not in ('update_params', 'backward', 'step')
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.endswith(os.path.join('mmengine', 'runner', 'runner.py'))


def _registered(registry) -> set[str]:
    return set(registry.module_dict).union(*(_registered(child) for child in registry.children.values()))


def describe(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    unknown = re.match(r'(\S+) is not in the (\S+) registry', text)
    if unknown:
        from mmengine.registry import Registry, root

        kind = unknown[2].split('::')[-1]
        roots = [registry for registry in vars(root).values() if isinstance(registry, Registry)]
        names = {name for registry in roots if registry.name == kind for name in _registered(registry)}
        near = difflib.get_close_matches(unknown[1], names, n=1)
        hint = f', did you mean {near[0]}?' if near else ''
        return f'type={unknown[1]!r} is not a registered {kind}{hint}'
    return ' '.join(text.split()) or type(error).__name__
