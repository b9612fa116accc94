"""Configs: reading, overriding from the command line, fields that follow each other.

mmengine's configs, with three traps closed:

* a variable of a base file that a child or the command line overrides does not reach the places that used it:
  ``linked_fields`` says which fields belong together (:func:`load_config`);
* a mistyped override silently adds a key: here it is an error that names the nearest one;
* YAML 1.1 reads ``1e-4`` as a string: it becomes a number, with a note.
"""

import ast
import difflib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction

from ..errors import ConfigError
from .mit_config import is_mit_config, read_merged, translate

_ABSENT = object()
_YAML_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+')

# Fields that a runner understands although a config need not have them.
_OPTIONAL_FIELDS = {
    'work_dir', 'load_from', 'resume', 'resume_from', 'launcher', 'auto_scale_lr', 'randomness', 'experiment_name',
    'find_unused_parameters', 'sync_bn', 'channels_last', 'model_wrapper_cfg', 'compile', 'activation_checkpointing',
    'efficient_conv_bn_eval', 'custom_hooks', 'visualizer', 'log_level', 'log_processor', 'env_cfg', 'default_hooks',
    'data_preprocessor', 'param_scheduler', 'freeze', 'freeze_encoder',
}  # fmt: skip
_OPTIONAL_NESTED = {
    'randomness.seed', 'randomness.deterministic', 'randomness.diff_rank_seed',
    'optim_wrapper.clip_grad', 'optim_wrapper.clip_grad.max_norm', 'optim_wrapper.clip_grad.norm_type',
    'optim_wrapper.accumulative_counts', 'optim_wrapper.paramwise_cfg', 'optim_wrapper.loss_scale',
    'optim_wrapper.dtype', 'train_cfg.val_interval', 'train_cfg.val_begin', 'env_cfg.dist_cfg.backend',
    'env_cfg.dist_cfg.timeout', 'env_cfg.cudnn_benchmark',
    'train_dataloader.persistent_workers', 'val_dataloader.persistent_workers', 'test_dataloader.persistent_workers',
    'default_hooks.checkpoint.interval', 'default_hooks.checkpoint.max_keep_ckpts',
    'default_hooks.checkpoint.save_best', 'default_hooks.checkpoint.by_epoch', 'default_hooks.logger.interval',
    *(f'load_from.{name}' for name in (
        'path', 'entry', 'prefix', 'to', 'key_map', 'take', 'leave', 'source_classes', 'classes', 'class_axes',
        'class_aliases', 'new_classes', 'rules', 'min_loaded')),
}  # fmt: skip
_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')

# Spellings of mmcv 1.x and torchpack configs, which users' commands contain.
_ALIASES = {
    'optimizer': ['optim_wrapper.optimizer'],
    'optimizer_config.grad_clip': ['optim_wrapper.clip_grad'],
    'data.workers_per_gpu': [f'{name}.num_workers' for name in _DATALOADERS],
    'data.samples_per_gpu': ['train_dataloader.batch_size'],
    'max_epochs': ['train_cfg.max_epochs'],
    'runner.max_epochs': ['train_cfg.max_epochs'],
    'seed': ['randomness.seed'],
}


@dataclass
class _Link:
    """One entry of ``linked_fields``: the fields ``sides`` hold ``value`` unless one of them is changed."""

    sides: tuple[str, ...]
    value: Any
    entry: str = field(default='', compare=False)


def load_config(
    path: str | os.PathLike,
    overrides: Iterable[str] | dict[str, Any] = (),
    note: Callable[[str], None] | None = None,
    import_custom_modules: bool = True,
) -> Config:
    """Read a config file (``.py``, ``.yaml``, ``.json``) with its bases and apply overrides.

    Linked fields. A config may declare, under any top-level name that starts with ``linked_fields`` (two base files
    must not define the same name)::

        use_mask = True
        model = dict(type='...', use_mask=use_mask)
        linked_fields = [dict(name='use_mask', value=use_mask, to='model.use_mask')]

    ``to`` is a dotted path or a list of them. From the base file over each child to the command line, the side that a
    layer sets carries the others along; the last layer that sets any of them wins, and one layer that sets two of
    them differently is an error. A child that lists a link of its own has set its value: what it only inherits on the
    other sides follows. So editing the line, a child config with either ``use_mask = False`` or
    ``model = dict(use_mask=False)``, and ``--cfg-options`` with either spelling all do the same.

    Args:
        path: the config file; YAML may be in the schema of MIT's BEVFusion (``occforge.engine.mit_config``).
        overrides: ``'a.b=c'`` strings (list elements by index: ``a.0.b=c``; lists as ``a=[1,2]``), or a dict from
            dotted key to value. The key must exist; ``'+a.b=c'`` adds one. ``optimizer.*``, ``data.workers_per_gpu``,
            ``data.samples_per_gpu``, ``max_epochs`` and ``seed`` mean their counterparts in mmengine's layout.
        note: called with each remark for the user; default: a line on stderr of the first process.
        import_custom_modules: whether to import what ``custom_imports`` names.

    Raises:
        ConfigError: file or base missing or unreadable, unknown key, a value that cannot be there, linked fields that
            were set differently in one place.
    """
    path = Path(path)
    note = note or _note_on_stderr
    if not path.is_file():
        raise ConfigError(f'{path}: no such config file')
    if is_mit_config(path):
        return _load_mit(path, overrides, note, import_custom_modules)
    cfg = _read(path, import_custom_modules)
    chain = _chain(path)
    if any(file.suffix in ('.yaml', '.yml') for file in chain):
        repaired: list[str] = []
        _repair_numbers(cfg._cfg_dict, '', repaired)
        if repaired:
            note(f'{path}: YAML reads these as text, they are taken as numbers: {", ".join(repaired)}')
    links = _links_of_file(path, cfg)
    _apply_links(cfg, links)

    changes = _parse_overrides(overrides)
    if changes:
        changes = _apply_overrides(cfg, changes, note)
        _settle(links, cfg, lambda side: _covers(changes, side), 'the command line')
        _apply_links(cfg, links)
    _mend_dataloaders(cfg)
    return cfg


def _load_mit(path: Path, overrides, note, import_custom_modules: bool) -> Config:
    """A config in MIT's schema, by way of the mmengine config that says the same."""
    raw, bases = read_merged(path)
    changes = _parse_overrides(overrides)
    for key in list(changes):  # before references are resolved, where the file has the field
        first = key.split('.')[0]
        if _get(raw, key) is not _ABSENT or (first in ('lr_config', 'momentum_config') and first in raw):
            *parents, last = key.split('.')
            node = _get(raw, '.'.join(parents)) if parents else raw
            if not isinstance(node, (dict, list)):
                raise ConfigError(f'override {key}: {".".join(parents)} is {node!r}, neither a dict nor a list')
            node[int(last) if isinstance(node, list) else last] = changes.pop(key)
    known = {name for base in bases for name in _read(base, import_custom_modules=False)._cfg_dict}
    fields, lost = translate(raw, path, known)
    if lost:
        note(f'{path}: these fields have no counterpart here and are not used: {", ".join(dict.fromkeys(lost))}')
    schedules = fields.pop('param_scheduler', None)
    with tempfile.TemporaryDirectory() as folder:
        translated = Path(folder) / f'{path.stem}.json'
        translated.write_text(json.dumps(dict(fields, _base_=[str(base) for base in bases])), encoding='utf-8')
        try:
            cfg = load_config(translated, changes, note, import_custom_modules)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(translated), str(path))) from error
    _drop_markers(cfg._cfg_dict)
    if schedules is not None:  # other ones than the base's, so what is linked to the base's has nothing to follow
        cfg.param_scheduler = [ConfigDict(schedule) for schedule in schedules]
        for _, entry in _entries(cfg):
            targets = [entry['to']] if isinstance(entry['to'], str) else list(entry['to'])
            entry['to'] = [target for target in targets if not target.startswith('param_scheduler.')]
    object.__setattr__(cfg, '_filename', str(path))
    return cfg


def _drop_markers(node: Any) -> None:
    """Removes each ``_delete_`` that had nothing below it to delete."""
    if isinstance(node, dict):
        node.pop('_delete_', None)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        _drop_markers(child)


# --------------------------------------------------------------------------------------------------------- reading
def _note_on_stderr(message: str) -> None:
    if os.environ.get('RANK', '0') == '0':
        sys.stderr.write(f'note: {message}\n')


def _read(path: Path, import_custom_modules: bool) -> Config:
    try:
        cfg = Config.fromfile(str(path), import_custom_modules=import_custom_modules)
    except ConfigError:
        raise
    except KeyError as error:
        text = str(error.args[0]) if error.args else ''
        if ' ' not in text:
            text = f'the base variable {text!r} is used and no base file defines it'
        raise ConfigError(f'{path}: {text}') from error
    except FileNotFoundError as error:
        raise ConfigError(f'{path}: a base file is missing: {_first_line(error)}') from error
    except Exception as error:  # whatever a config's own Python raises is an error of the config
        cause = f' ({_first_line(error.__cause__)})' if error.__cause__ is not None else ''
        raise ConfigError(f'{path}: {type(error).__name__}: {_first_line(error)}{cause}') from error
    # yapf would take seconds each of the five times that a run wants the text. Config.fromfile drops this argument.
    object.__setattr__(cfg, '_format_python_code', False)
    return cfg


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _bases(path: Path) -> list[Path]:
    """Base files of one config file, as mmengine resolves them; none for the lazy-import style."""
    if Config._is_lazy_import(str(path)):
        return []
    return [Path(Config._get_cfg_path(base, str(path))[0]).resolve() for base in Config._get_base_files(str(path))]


def _chain(path: Path) -> list[Path]:
    """The file and all its bases."""
    files = [path]
    for base in _bases(path):
        files += _chain(base)
    return files


def _repair_numbers(node: Any, prefix: str, repaired: list[str]) -> None:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        name = f'{prefix}{key}'
        if isinstance(value, str) and _YAML_NUMBER.fullmatch(value):
            node[key] = float(value)
            repaired.append(f'{name}={value}')
        elif isinstance(value, (dict, list)):
            _repair_numbers(value, f'{name}.', repaired)


# -------------------------------------------------------------------------------------------------- paths in configs
def _get(cfg: Any, dotted: str) -> Any:
    """Value at a dotted path (list elements by index), or ``_ABSENT``."""
    node = cfg._cfg_dict if isinstance(cfg, Config) else cfg
    for part in dotted.split('.'):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, (list, tuple)) and part.lstrip('-').isdigit() and -len(node) <= int(part) < len(node):
            node = node[int(part)]
        else:
            return _ABSENT
    return node


def _set(cfg: Config, dotted: str, value: Any) -> None:
    *parents, last = dotted.split('.')
    node = _get(cfg, '.'.join(parents)) if parents else cfg._cfg_dict
    if isinstance(node, list):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f'{dotted}: {".".join(parents)} is neither a dict nor a list')


def _all_paths(node: Any, prefix: str = '') -> list[str]:
    if isinstance(node, dict):
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, (list, tuple)):
        items = [(str(index), value) for index, value in enumerate(node) if isinstance(value, (dict, list))]
    else:
        return []
    paths = []
    for key, value in items:
        paths.append(prefix + key)
        paths += _all_paths(value, f'{prefix}{key}.')
    return paths


def _covers(keys: Iterable[str], side: str) -> bool:
    return any(side == key or side.startswith(key + '.') for key in keys)


# ------------------------------------------------------------------------------------------------------ linked fields
def _entries(cfg: Config) -> list[tuple[str, dict]]:
    entries = []
    for key, value in cfg._cfg_dict.items():
        if not key.startswith('linked_fields'):
            continue
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f'{key}: a list of dict(name=, value=, to=) is expected, found {type(value).__name__}')
        for index, entry in enumerate(value):
            if not isinstance(entry, dict) or set(entry) != {'name', 'value', 'to'}:
                raise ConfigError(f'{key}.{index}: dict(name=, value=, to=) is expected, found {entry!r}')
            entries.append((f'{key}.{index}', entry))
    return entries


def _links_of_file(path: Path, cfg: Config) -> dict[tuple, _Link]:
    """Linked fields after ``path`` and all its bases, keyed by their sides; ``cfg`` is how mmengine reads the file."""
    listed = {}
    for name, entry in _entries(cfg):
        targets = [entry['to']] if isinstance(entry['to'], str) else list(entry['to'])
        listed[(entry['name'], *targets)] = name, entry['value']
    if not listed:
        return {}
    links: dict[tuple, _Link] = {}
    bases = [(base, _read(base, import_custom_modules=False)) for base in _bases(path)]
    for base, content in bases:
        links.update(_links_of_file(base, content))
    explicit, opaque = _assigned(path) if bases else (set(), set())

    def literal(side):
        return side in explicit or any(key.startswith(side + '.') for key in explicit)

    def differs(side):
        before = (value for _, content in bases if (value := _get(content, side)) is not _ABSENT)
        return _get(cfg, side) != next(before, _ABSENT)

    for link in links.values():
        link.entry = ''  # the file may list it elsewhere, or not at all: it holds all the same
    _settle(links, cfg, lambda side: literal(side) or (_covers(opaque, side) and differs(side)), str(path))
    for sides, (name, value) in listed.items():
        if sides not in links:  # a new one: what the file itself sets otherwise than its value wins over that
            links[sides] = _Link(sides, value)

            def changed(side, value=value):
                return _get(cfg, side) not in (_ABSENT, value) and (literal(side) or differs(side))

            _settle({sides: links[sides]}, cfg, changed, str(path))
        links[sides].entry = name
    return links


def _settle(links: dict[tuple, _Link], cfg: Config, changed: Callable[[str], bool], where: str) -> None:
    """Move each link's value to what one layer set; ``changed`` tells whether the layer set a field."""
    for link in links.values():
        found = {side: _get(cfg, side) for side in link.sides if changed(side)}
        found = {side: value for side, value in found.items() if value is not _ABSENT}
        values = list(found.values())
        if any(value != values[0] for value in values[1:]):
            described = ', '.join(f'{side}={value!r}' for side, value in found.items())
            raise ConfigError(f'{where}: these fields belong together and were set differently: {described}')
        if values:
            link.value = values[0]


def _apply_links(cfg: Config, links: dict[tuple, _Link]) -> None:
    for link in links.values():
        for side in link.sides:
            if _get(cfg, side) is not _ABSENT:  # a child may have replaced the whole dict that held it
                _set(cfg, side, link.value)
        if link.entry and _get(cfg, link.entry) is not _ABSENT:
            _set(cfg, f'{link.entry}.value', link.value)


def _assigned(path: Path) -> tuple[set[str], set[str]]:
    """Dotted fields that a config file sets itself.

    Returns those seen as literals (``model = dict(use_mask=False)``) and those whose content only running the file
    tells (``model = make_model()``).
    """
    if path.suffix != '.py':
        from mmengine.fileio import load

        return {key for key in _all_paths(load(str(path))) if not key.startswith('_base_')}, set()
    explicit: set[str] = set()
    opaque: set[str] = set()

    def visit(prefix: str, node: ast.AST) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
            for keyword in node.keywords:
                if keyword.arg is None:
                    opaque.add(prefix)
                else:
                    visit(f'{prefix}.{keyword.arg}', keyword.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant):
                    visit(f'{prefix}.{key.value}', value)
                else:
                    opaque.add(prefix)
        elif isinstance(node, (ast.Constant, ast.List, ast.Tuple, ast.UnaryOp)):
            explicit.add(prefix)
        else:
            opaque.add(prefix)

    def target_path(node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute) and (parent := target_path(node.value)):
            return f'{parent}.{node.attr}'
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            parent = target_path(node.value)
            return f'{parent}.{node.slice.value}' if parent else None
        return None

    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
                for name in names:
                    if (dotted := target_path(name)) and dotted != '_base_':
                        if name is target and not isinstance(node, ast.AugAssign):
                            visit(dotted, node.value)
                        else:
                            opaque.add(dotted)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'update':
            if dotted := target_path(node.func.value):
                opaque.add(dotted)
    return explicit, opaque


# --------------------------------------------------------------------------------------------------------- overrides
def _parse_overrides(overrides: Iterable[str] | dict[str, Any]) -> dict[str, Any]:
    if isinstance(overrides, dict):
        return dict(overrides)
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition('=')
        if not equals or not key.strip('+. '):
            raise ConfigError(f'override {text!r}: KEY=VALUE is expected, for example optim_wrapper.optimizer.lr=1e-4')
        try:
            parsed[key.strip()] = DictAction._parse_iterable(value)
        except AssertionError as error:
            raise ConfigError(f'override {text!r}: {_first_line(error)}') from error
    return parsed


def _apply_overrides(cfg: Config, changes: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Merge the overrides into ``cfg``; returns them under the names they have there."""
    applied: dict[str, Any] = {}
    switched_off = {key for key, value in changes.items() if value is None}
    for given, value in changes.items():
        adding = given.startswith('+')
        keys = _expand_alias(given.lstrip('+'), cfg)
        if len(keys) > 1:  # one spelling for several fields, of which this very command may remove some
            keys = [key for key in keys if key.split('.')[0] not in switched_off]
        for key in keys:
            if not adding:
                _check_key(cfg, key, given)
            applied[key] = value
    for key, value in applied.items():
        *parents, last = key.split('.')
        node = cfg._cfg_dict
        for depth, part in enumerate(parents):
            if isinstance(node, dict):
                if not isinstance(node.get(part), (dict, list, tuple)):
                    if node.get(part) is not None:
                        at = '.'.join(parents[: depth + 1])
                        raise ConfigError(f'override {key}: {at} is {node[part]!r}, not a dict')
                    node[part] = ConfigDict()
                if isinstance(node[part], tuple):
                    node[part] = list(node[part])
                node = node[part]
            else:
                node = node[_index(node, part, key)]
        if isinstance(node, list):
            node[_index(node, last, key)] = value
        elif isinstance(node, dict):
            node[last] = ConfigDict(value) if isinstance(value, dict) else value
        else:
            raise ConfigError(f'override {key}: {".".join(parents)} is {node!r}, neither a dict nor a list')
    return applied


def _index(node: list, part: str, key: str) -> int:
    if not part.lstrip('-').isdigit() or not -len(node) <= int(part) < len(node):
        raise ConfigError(f'override {key}: {part!r} is no index of a list of {len(node)}')
    return int(part)


def _expand_alias(key: str, cfg: Config) -> list[str]:
    if key.split('.')[0] in cfg._cfg_dict and _get(cfg, key) is not _ABSENT:
        return [key]
    for alias, targets in _ALIASES.items():
        if key == alias or key.startswith(alias + '.'):
            expanded = [target + key[len(alias) :] for target in targets]
            # a config for testing alone has no train_dataloader, and the other way round
            present = [target for target in expanded if _get(cfg, target.split('.')[0]) not in (_ABSENT, None)]
            return present or expanded
    return [key]


def _check_key(cfg: Config, key: str, given: str) -> None:
    if _get(cfg, key) is not _ABSENT or key in _OPTIONAL_FIELDS or key in _OPTIONAL_NESTED:
        return
    candidates = _all_paths(cfg._cfg_dict)
    known = set(candidates) | _OPTIONAL_FIELDS | _OPTIONAL_NESTED
    first, last = key.split('.')[0], key.rsplit('.', 1)[-1]
    same_name = [path for path in candidates if path.rsplit('.', 1)[-1] == last]
    near = [path for path in same_name if path.split('.')[0] == first][:1]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.75) or same_name[:1]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f' Did you mean {near[0]}?' if near else ''
    name = given if given == key else f'{given} ({key})'
    raise ConfigError(f'override {name}: the config has no such field.{hint} To add a new field write +{key}=VALUE')


def _mend_dataloaders(cfg: Config) -> None:
    """torch refuses persistent workers and prefetching where there is no worker."""
    for name in _DATALOADERS:
        loader = _get(cfg, name)
        if isinstance(loader, dict) and loader.get('num_workers') == 0:
            if loader.get('persistent_workers'):
                loader['persistent_workers'] = False
            loader.pop('prefetch_factor', None)
