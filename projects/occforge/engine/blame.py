"""Which part of a config an error comes from."""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

_LONGEST = 40  # characters of a value
_BUILDERS = ('build_functions.py', 'runner.py')  # mmengine's, the runner's also ours


def part_of_config(error: BaseException, cfg: Config | Mapping) -> str | None:
    """The place in ``cfg`` that the innermost code on the way to ``error`` was built from, with its fields.

    Looks along the error's traceback for what a registry was building, a module of ``cfg.model`` that was running, or
    an object of a type that the config names (transforms, hooks, ...). For example
    ``model.img_neck: FPN_LSS(in_channels=160, out_channels='48')``.

    Returns:
        None where nothing of the config is on the way.
    """
    cfg = cfg.to_dict() if isinstance(cfg, Config) else cfg
    frames = [frame for each in _chain(error) for frame, _ in traceback.walk_tb(each.__traceback__)]
    model = _running_model(frames)
    names = {id(module): name for name, module in model.named_modules()} if model is not None else {}
    for frame in reversed(frames):
        inner = frame.f_locals
        owner = inner.get('self')
        built = _built(frame)
        if built is not None:
            found = _most_alike(cfg, built, untyped=frame.f_code.co_filename.endswith('runner.py'))
        elif id(owner) in names:
            found = _module_config(cfg.get('model') or {}, names[id(owner)])
        else:
            found = _most_alike(cfg, dict(type=type(owner).__name__))
        if found is not None:
            return _in_words(*found)
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was raised from; the first one last."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _built(frame) -> Mapping | None:
    """What the function builds: the dict that a registry or one of the runner's ``build_...`` was given."""
    code = frame.f_code
    if not code.co_name.startswith('build_') or not code.co_filename.endswith(_BUILDERS):
        return None
    arguments = (frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount])
    return next((given for given in arguments if isinstance(given, Mapping)), None)


def _running_model(frames) -> nn.Module | None:
    """The outermost module on the way that has been constructed."""
    owners = (frame.f_locals.get('self') for frame in frames)
    return next((owner for owner in owners if isinstance(owner, nn.Module) and '_modules' in vars(owner)), None)


def _parts(node: Any, path: str = '') -> Iterator[tuple[str, Mapping]]:
    """All dicts with a ``type`` in a config, and where they are."""
    if isinstance(node, Mapping):
        if 'type' in node:
            yield path, node
        items = node.items()
    elif isinstance(node, Sequence) and not isinstance(node, str):
        items = enumerate(node)
    else:
        return
    for key, value in items:
        yield from _parts(value, f'{path}.{key}' if path else str(key))


def _most_alike(cfg: Mapping, built: Mapping, untyped: bool = False) -> tuple[str, Mapping] | None:
    """The dict of the same type with the most fields in common: what is built has often been changed on the way.
    With ``untyped``, if there is none, a dict at the top that has no type: loaders and loops need none."""

    def common(part):
        return sum(key in built and built[key] == value for key, value in part[1].items())

    parts = [part for part in _parts(cfg) if _kind(part[1]) == _kind(built)]
    if untyped and not parts:
        tops = ((name, part) for name, part in cfg.items() if isinstance(part, Mapping) and 'type' not in part)
        parts = [part for part in tops if common(part)]
    return max(parts, key=common, default=None)


def _kind(part: Mapping) -> str:
    """The class's name: 'mmdet.ResNet' -> 'ResNet'."""
    kind = part.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')


def _module_config(model: Mapping, name: str) -> tuple[str, Mapping]:
    """The innermost config along a module's name; fields of the model are often its modules' names."""
    path, part = 'model', model
    for step in name.split('.'):
        inner = part.get(step)
        if not isinstance(inner, Mapping):
            break
        path, part = f'{path}.{step}', inner
    return path, part


def _in_words(path: str, part: Mapping) -> str:
    def short(value):
        text = repr(value) if not isinstance(value, Mapping) else f'dict({", ".join(map(str, value))})'
        return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 3]}...'

    fields = ', '.join(f'{key}={short(value)}' for key, value in part.items() if key != 'type')
    return f'{path}: {part["type"]}({fields})' if 'type' in part else f'{path}({fields})'
