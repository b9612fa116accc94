"""Starting from anybody's checkpoint: which tensors are taken, under which names, in which form, and what came of it.

``load_from`` of a config is a path, or a dict::

    load_from = dict(
        path='nuscenes.pth',
        key_map=['encoders.camera.backbone -> img_backbone', dict(regex=r'\\.linear1\\.', to='.ffn.layers.0.0.')],
        leave=['bbox_head.prediction_heads'],
        class_axes={'bbox_head.heatmap_head.1': 0, 'bbox_head.class_encoding.weight': 1},
        class_aliases=dict(cyclist='bicycle'),
        rules=[dict(tensors='img_backbone.conv1', policy='inflate')],
        min_loaded=0.5,
    )

or, with several files, ``load_from = dict(sources=[dict(path='a.pth', ...), dict(path='b.pth', ...)], ...)``, where the
first file that has a tensor gives it.
"""

import copy
import difflib
import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from .checkpoint import fingerprint_of, load_weights, read_checkpoint, state_dict_of
from .load_report import Adapted, LoadReport
from .names import aliases_of, expand, hint, matches, matches_any

POLICIES = ('auto', 'skip', 'classes', 'interpolate', 'inflate', 'overlap')
# Tensors that describe a grid of positions: resized where they do not fit.
_POSITION_TENSORS = ('relative_position_bias_table', 'absolute_pos_embed', 'pos_embed', 'positional_embedding')


@dataclass
class Source:
    """One file of a ``load_from``.

    Attributes:
        path: file or URL.
        entry: the checkpoint's entry with the weights; None: ``state_dict``, ``model``, else an averaged model's
            (``ema_state_dict``, ``ema``), else the file itself.
        prefix: only what is under this module in the file is taken, and the prefix removed.
        to: the model's module to which it goes; with ``prefix`` renames ``prefix.x`` to ``to.x``.
        key_map: renames, one after another: ``'a -> b'`` for the module (or tensor) a at the start of a name,
            ``dict(regex=..., to=...)`` as ``re.sub``. A dict {a: b} is a list of the first kind.
        take, leave: names in the model (after renaming), see ``occforge.engine.names``; take None: all.
        source_classes: class names of the file in its order; None: what its metadata says.
    """

    path: str
    entry: str | None = None
    prefix: str | None = None
    to: str | None = None
    key_map: Any = ()
    take: Any = None
    leave: Any = ()
    source_classes: Sequence[str] | None = None

    def __post_init__(self):
        if not isinstance(self.path, (str, os.PathLike)) or not os.fspath(self.path):
            raise ConfigError(f'load_from.path: a file is expected, found {self.path!r}')
        self.path = os.fspath(self.path)
        self.renames = _renames(self.key_map)
        self.take = None if self.take is None else _as_list(self.take)
        self.leave = _as_list(self.leave)

    def rename(self, name: str) -> str | None:
        """The model's name of a tensor of the file; None where it is outside of ``prefix``."""
        if self.prefix is not None:
            prefix = self.prefix.rstrip('.') + '.'
            if not name.startswith(prefix):
                return None
            name = name[len(prefix) :]
        if self.to is not None:
            name = f'{self.to.rstrip(".")}.{name}'
        for rename in self.renames:
            name = rename(name)
        return name

    def wants(self, name: str) -> bool:
        """Whether the model's tensor ``name`` may come from here."""
        if self.to is not None and not matches(self.to.rstrip('.'), name):
            return False
        return (self.take is None or matches_any(self.take, name)) and not matches_any(self.leave, name)


@dataclass
class LoadSpec:
    """A ``load_from`` after reading.

    Attributes:
        sources: files, the first that has a tensor gives it.
        classes: class names of the model in its order; None: what the data set says, or the model (``class_names``).
        class_axes: name (pattern) of a tensor -> axis of its class rows, or dict(axis=, source=, target=) with names of
            its own (cameras, tasks; ``meta='map_classes'`` instead of source: the names under this entry of the file's
            metadata), dict(axis=, start=) where so many other rows are in front (and others behind), dict(axis=,
            shared=True) where the tensors that the pattern finds share out the classes among them in their order
            (CenterHead's tasks). Added to the model's ``class_axes``, which say the same.
        class_aliases: class of the model -> class of the file that it starts from.
        new_classes: rows of classes that the file does not have: 'init' (the model's own) or 'mean' of the file's rows.
        rules: dict(tensors=name or list, policy=one of POLICIES, and its options); the first that matches decides.
            'auto' where none does: sparse kernels are permuted, class rows moved, position tensors resized, and what
            then does not fit is left out. 'skip' keeps the model's own; 'inflate' repeats a kernel along a new axis
            (2D to 3D) or over more input channels, keeping the response to constant input (``center=True``: only the
            middle slice); 'overlap' copies the common leading block, ``fill='init'`` or 'zero' for the rest.
        min_loaded: least share of the wanted parameters; below it loading is an error. None: any, but from every file
            something.
    """

    sources: list[Source]
    classes: Sequence[str] | None = None
    class_axes: Mapping[str, Any] = field(default_factory=dict)
    class_aliases: Mapping[str, str] = field(default_factory=dict)
    new_classes: str = 'init'
    rules: Sequence[Mapping] = ()
    min_loaded: float | None = None

    def __post_init__(self):
        if self.new_classes not in ('init', 'mean'):
            raise ConfigError(f"load_from.new_classes: 'init' or 'mean' is expected, found {self.new_classes!r}")
        if self.min_loaded is not None and not 0 <= self.min_loaded <= 1:
            raise ConfigError(f'load_from.min_loaded: a share from 0 to 1 is expected, found {self.min_loaded!r}')
        for index, rule in enumerate(self.rules):
            where = f'load_from.rules.{index}'
            if not isinstance(rule, Mapping) or not {'tensors', 'policy'} <= set(rule):
                raise ConfigError(f'{where}: dict(tensors=, policy=) is expected, found {rule!r}')
            if rule['policy'] not in POLICIES:
                raise ConfigError(f'{where}.policy: {rule["policy"]!r} is not one of {", ".join(POLICIES)}')

    def policy(self, name: str) -> Mapping:
        """The rule for the model's tensor ``name``."""
        for rule in self.rules:
            if matches_any(_as_list(rule['tensors']), name):
                return rule
        return dict(policy='auto')


_SOURCE_FIELDS = {each.name for each in fields(Source)}
_SPEC_FIELDS = {each.name for each in fields(LoadSpec)}


def parse_load_from(value: Any, where: str = 'load_from') -> LoadSpec:
    """A config's ``load_from`` (path, list of paths, or dict) as a :class:`LoadSpec`.

    Raises:
        ConfigError: an unknown field (with the nearest name), no path, a value of another kind.
    """
    if isinstance(value, (str, os.PathLike)):
        return LoadSpec([Source(value)])
    if isinstance(value, (list, tuple)):
        value = dict(path=list(value))
    if not isinstance(value, Mapping):
        raise ConfigError(f'{where}: a path or a dict is expected, found {value!r}')
    given = {key: copy.deepcopy(item) for key, item in value.items()}
    sources = given.pop('sources', None)
    paths = given.pop('path', None)
    if (sources is None) == (paths is None):
        found = ', '.join(map(str, value)) or 'nothing'
        raise ConfigError(f'{where}: exactly one of path and sources is expected, found {found}')
    shared = {key: given.pop(key) for key in list(given) if key in _SOURCE_FIELDS}
    _check_fields(given, _SPEC_FIELDS | _SOURCE_FIELDS, where)
    if sources is None:
        sources = [dict(path=path) for path in (paths if isinstance(paths, (list, tuple)) else [paths])]
    if not sources:
        raise ConfigError(f'{where}: no file is named')
    read = []
    for index, source in enumerate(sources):
        source = dict(path=source) if isinstance(source, (str, os.PathLike)) else source
        if not isinstance(source, Mapping) or 'path' not in source:
            raise ConfigError(f'{where}.sources.{index}: a path or dict(path=...) is expected, found {source!r}')
        _check_fields(source, _SOURCE_FIELDS, f'{where}.sources.{index}')
        read.append(Source(**{**shared, **source}))
    return LoadSpec(read, **given)


def has_path(value: Any) -> bool:
    """Whether a ``load_from`` names a file: None does not, nor a dict whose ``path`` waits for the command line."""
    return value is not None and not (isinstance(value, Mapping) and value.get('path', '') is None)


def with_path(value: Any, path: str) -> Any:
    """A ``load_from`` with ``path`` as its file: a dict keeps what it says about names and forms.

    Raises:
        ConfigError: the dict names several files.
    """
    if not isinstance(value, Mapping):
        return path
    if 'sources' in value:
        raise ConfigError(f'--load-from {path}: load_from of the config names several files (sources): set one of them')
    return {**value, 'path': path}


def paths_of(value: Any) -> list[str]:
    """The files that a ``load_from`` names."""
    return [source.path for source in parse_load_from(value).sources] if has_path(value) else []


def load_partially(
    model: nn.Module,
    spec: LoadSpec,
    classes: Sequence[str] | None = None,
    read: Callable[[str], dict] = read_checkpoint,
    min_loaded: float | None = None,
    fingerprints: bool = True,
) -> LoadReport:
    """Fill ``model`` from the files of ``spec`` as far as they go, and report everything.

    Args:
        model: the bare model (not wrapped for several processes); its own load hooks run.
        spec: what to load.
        classes: the model's class names where the spec does not say.
        read: file name -> checkpoint.
        min_loaded: used where the spec does not say.
        fingerprints: note size and SHA-256 of the files in the report.

    Raises:
        DataError: a file cannot be read, or holds no weights.
        ConfigError: a file gives nothing, less than ``min_loaded`` came in, a name in the spec names nothing.
    """
    ours = OrderedDict((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))
    report = LoadReport(', '.join(source.path for source in spec.sources))
    report.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)} & set(ours)
    _check_patterns(spec, ours, model)
    kinds = {f'{name}.weight' if name else 'weight': module for name, module in model.named_modules()}
    chosen: OrderedDict[str, Tensor] = OrderedDict()
    versions: dict[str, dict] = {}
    adapted: dict[str, Adapted] = {}
    unfit: dict[str, tuple] = {}
    wanted = {name for name in ours if any(source.wants(name) for source in spec.sources)}
    for source in spec.sources:
        checkpoint = read(source.path)
        state = weights_in(checkpoint, source.path, source.entry)
        transfer = _Transfer(spec, source, ours, kinds, model, checkpoint, classes)
        taken = 0
        for name, value in transfer.renamed(state):
            if name is None or not source.wants(name) or spec.policy(name)['policy'] == 'skip':
                report.left.append(name or '')
                continue
            if name in chosen:
                report.left.append(name)
                continue
            if name not in ours:
                chosen[name] = value  # unexpected, unless a layer's own load hook knows it as an old name
                continue
            fitted, how = transfer.fit(name, value)
            if fitted is None:
                unfit[name] = (name, tuple(value.shape), tuple(ours[name].shape))
                report.reasons[name] = how
                if tuple(value.shape) != tuple(ours[name].shape):
                    chosen[name] = value  # a layer's own load hook may know what to do with it
                continue
            chosen[name] = fitted
            taken += name in report.parameters
            versions |= transfer.version(name)
            if how:
                adapted[name] = Adapted(name, how, tuple(value.shape), tuple(fitted.shape))
        if not taken:
            raise ConfigError(_nothing_fits(source, state, ours, unfit))
        fingerprint = fingerprint_of(source.path) if fingerprints else {}
        report.files.append(dict(path=source.path, **fingerprint, tensors=len(state)))
    report.left = [name for name in report.left if name]
    skipped = {name for name in ours if spec.policy(name)['policy'] == 'skip'}
    chosen._metadata = {**versions, **_sparse_versions(model)}
    result = load_weights(model, chosen, report.source)
    for name in set(result.loaded) & set(unfit):
        _, theirs, mine = unfit[name]
        adapted[name] = Adapted(name, 'by the module itself', theirs, mine)
    report.loaded = [name for name in result.loaded if name not in adapted]
    report.adapted = [adapted[name] for name in result.loaded if name in adapted]
    report.mismatched = [unfit[name] for name in ours if name in unfit and name not in result.loaded]
    wanted -= skipped | set(unfit)
    report.missing = [name for name in result.missing if name in wanted]
    report.kept = [name for name in ours if name not in wanted | set(unfit) and name not in chosen]
    report.unexpected, report.sizes = result.unexpected, result.sizes
    _check_share(report, spec.min_loaded if spec.min_loaded is not None else min_loaded)
    return report


def _check_share(report: LoadReport, minimum: float | None) -> None:
    if not report.loaded_parameters:
        raise ConfigError(f'{report.source}: none of its tensors fits the model: {report.summary()}')
    if minimum is not None and report.share < minimum:
        raise ConfigError(
            f'{report.source}: only {report.share:.1%} of the wanted {report.wanted_parameters} parameters could be '
            f'loaded, min_loaded is {minimum:.1%}: {report.summary()}'
        )


def _nothing_fits(source: Source, state: Mapping, ours: Mapping, unfit: Mapping) -> str:
    names = [name for name in (source.rename(name) for name in state) if name is not None]
    renamed = ' (after renaming)' if source.renames or source.to or source.prefix else ''
    if not names:
        return f'{source.path}: nothing in it is under prefix {source.prefix!r}; it has: {", ".join(list(state)[:3])}'
    for name in names:
        if name in unfit:
            _, theirs, mine = unfit[name]
            return f'{source.path}: nothing in it fits the model; {name} is {theirs} in the file, {mine} in the model'
    return (
        f'{source.path}: nothing in it fits the model. Names in the file{renamed}: {", ".join(names[:3])}; in the '
        f'model: {", ".join(list(ours)[:3])}'
    )


# ---------------------------------------------------------------------------------------------------------- reading
_ENTRIES = ('state_dict', 'model', 'model_state', 'ema_state_dict', 'model_ema', 'ema')


def weights_in(checkpoint: dict, path: str, entry: str | None = None) -> OrderedDict:
    """The tensors of a checkpoint by name, with the layers' versions as ``_metadata``.

    Args:
        checkpoint: what the file holds.
        path: for the messages.
        entry: as in :class:`Source`.

    Raises:
        DataError: it holds no tensors.
        ConfigError: it has no such entry.
    """
    if entry is None:
        name = next((name for name in _ENTRIES if isinstance(checkpoint.get(name), Mapping)), None)
    elif entry in checkpoint:
        name = entry
    else:
        raise ConfigError(f'{path}: has no entry {entry!r}, it has: {", ".join(map(str, checkpoint))}')
    weights = checkpoint if name is None else checkpoint[name]
    try:
        state = state_dict_of(dict(state_dict=weights))
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    kept = OrderedDict((key, value) for key, value in state.items() if isinstance(value, Tensor))
    if name is not None and 'ema' in name:
        kept.pop('steps', None)  # mmengine's counter of updates
    if not kept:
        raise DataError(f'{path}: holds no tensors, its keys are {", ".join(map(str, list(checkpoint)[:8]))}')
    kept._metadata = getattr(state, '_metadata', None) or {}
    return kept


def classes_of(checkpoint: Mapping, entry: str = 'classes') -> list[str] | None:
    """Class names under an entry of a checkpoint's metadata (mmengine's or mmcv's), or None."""
    meta = checkpoint.get('meta') or {}
    dataset = {key.lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}
    names = dataset.get(entry) or meta.get(entry.upper()) or meta.get(entry)
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else None


# ---------------------------------------------------------------------------------------------------------- adapting
class _Transfer:
    """How the tensors of one file go into the model."""

    def __init__(self, spec, source, ours, kinds, model, checkpoint, classes):
        self.spec, self.source, self.ours, self.kinds = spec, source, ours, kinds
        self.checkpoint = checkpoint
        self.rename = _renaming(source, checkpoint, ours, model)
        named = (spec.classes, classes, getattr(model, 'class_names', None))  # what says it first
        self.model_classes = next((names for names in named if names is not None), None)
        self.file_classes = source.source_classes if source.source_classes is not None else classes_of(checkpoint)
        self.class_axes = {**getattr(model, 'class_axes', {}), **spec.class_axes}
        self.shapes: dict[str, tuple] = {}
        self.our_shapes = {name: tuple(value.shape) for name, value in ours.items()}
        self.metadata: dict[str, int] = {}
        self.transposed: set[str] = set()
        self.stored_last = False

    def renamed(self, state: OrderedDict) -> list[tuple[str | None, Tensor]]:
        """(model's name or None, tensor) of everything in the file."""
        pairs = []
        for name, value in state.items():
            renamed = self.rename(name)
            if renamed is not None and renamed not in self.ours and renamed.endswith('.kernel'):
                # MinkowskiEngine's name of a convolution's weight
                weight = f'{renamed[: -len("kernel")]}weight'
                if weight in self.ours:
                    renamed = weight
                    if isinstance(self.kinds.get(weight), nn.Linear):
                        self.transposed.add(weight)
            version = self._version(state._metadata, name)
            if renamed is not None and version is not None:
                self.metadata[renamed] = version
            pairs.append((renamed, value))
        self.shapes = {name: tuple(value.shape) for name, value in pairs if name is not None}
        layouts = {
            kernel_layout(value.shape, self.kinds[name])
            for name, value in pairs
            if name in self.ours and is_sparse_convolution(self.kinds.get(name))
        }
        # a kernel whose shape fits two layouts is stored as the others of its file are
        self.stored_last = 'mmcv' in layouts and 'spconv' not in layouts
        return pairs

    @staticmethod
    def _version(metadata: Mapping, name: str) -> int | None:
        return (metadata.get(name.rpartition('.')[0]) or {}).get('version')

    def version(self, name: str) -> dict[str, dict]:
        """The file's version of the layer that holds ``name``, under the layer's name in the model."""
        known = self.metadata.get(name)
        return {} if known is None else {name.rpartition('.')[0]: dict(version=known)}

    def fit(self, name: str, value: Tensor) -> tuple[Tensor | None, str]:
        """The tensor in the model's form and how that was done; None and the reason where it cannot be done."""
        target, rule = self.ours[name], self.spec.policy(name)
        policy = rule['policy']
        steps = []
        if policy in ('auto', 'classes'):
            value, step = self._permuted(name, value)
            steps.append(step)
        rows = self._class_rows_of(name)
        if policy == 'classes' and rows is None:
            raise ConfigError(f'load_from.rules: {name} has policy classes and no entry in class_axes')
        if policy in ('auto', 'classes') and rows is not None:
            fitted, step = self._move_rows(name, value, target, *rows)
        elif tuple(value.shape) == tuple(target.shape):
            fitted, step = value, ''
        elif policy == 'interpolate' or (policy == 'auto' and name.rpartition('.')[2] in _POSITION_TENSORS):
            fitted, step = interpolate_positions(value, target.shape)
        elif policy == 'inflate':
            fitted, step = inflate_kernel(value, target.shape, rule.get('center', False))
        elif policy == 'overlap':
            fitted, step = _overlap(value, target, rule.get('fill', 'init'))
        else:
            fitted, step = None, self._advice(value, target)
        if fitted is None:
            return None, step
        steps.append(step)
        if value.dtype != target.dtype and value.is_floating_point() and target.is_floating_point():
            steps.append(f'{_dtype(value)} to {_dtype(target)}')
            fitted = fitted.to(target.dtype)
        return fitted, ', '.join(filter(None, steps))

    def _advice(self, value, target) -> str:
        differing = _differing(value.shape, target.shape)
        if self.file_classes and self.model_classes and len(differing) == 1:
            (axis,) = differing
            if (value.shape[axis], target.shape[axis]) == (len(self.file_classes), len(self.model_classes)):
                return f'these look like rows of classes: class_axes={{name: {axis}}} moves them by name'
        return ''

    # ------------------------------------------------------------------------------------------- sparse convolution
    def _permuted(self, name: str, value: Tensor) -> tuple[Tensor, str]:
        module = self.kinds.get(name)
        if name in self.transposed:
            return value.t(), 'transposed, as MinkowskiEngine stores (in, out)'
        if not is_sparse_convolution(module):
            return value, ''
        layout = kernel_layout(value.shape, module)
        if layout == 'either':
            last = self.stored_last and (self.metadata.get(name) or 0) < 2
            layout = 'mmcv' if last else 'spconv'
        return convert_kernel(value, layout, module)

    # -------------------------------------------------------------------------------------------------- class rows
    def _class_rows_of(self, name: str):
        for pattern, axis in self.class_axes.items():
            if matches(pattern, name):
                if isinstance(axis, Mapping) and axis.get('shared'):
                    theirs, mine = (
                        _share_of(name, pattern, axis['axis'], shapes, names)
                        for shapes, names in ((self.shapes, self.file_classes), (self.our_shapes, self.model_classes))
                    )
                    return axis['axis'], theirs, mine, None
                if isinstance(axis, Mapping):
                    file_names = axis.get('source', self.file_classes)
                    if 'meta' in axis and 'source' not in axis:
                        file_names = classes_of(self.checkpoint, axis['meta'])
                    return axis['axis'], file_names, axis.get('target', self.model_classes), axis.get('start')
                return axis, self.file_classes, self.model_classes, None
        return None

    def _move_rows(self, name, value, target, axis, file_names, model_names, start):
        same = tuple(value.shape) == tuple(target.shape)
        if target.dim() <= axis:  # e.g. the bias (hidden) of a layer whose weight (hidden, classes) has class columns
            return (value, '') if same else (None, f'it has no axis {axis}')
        if file_names is None or model_names is None:
            which = 'the file does not name its classes (source_classes)' if file_names is None else (
                'the class names of the model are not known (classes)'
            )  # fmt: skip
            return (value, '') if same else (None, which)
        if value.dim() != target.dim() or _differing(value.shape, target.shape) - {axis}:
            return None, 'more than its class rows differs'
        file_names, model_names = list(file_names), list(model_names)
        if file_names == model_names and same:
            return value, ''
        first = start or 0
        extra = target.shape[axis] - first - len(model_names)
        if value.shape[axis] - first - len(file_names) != extra or extra < 0 or (start is None and extra > 1):
            return None, (
                f'axis {axis} has {value.shape[axis]} rows for {len(file_names)} classes in the file, '
                f'{target.shape[axis]} for {len(model_names)} in the model'
            )
        aliases = self.spec.class_aliases
        origin = list(range(first))
        for each in model_names:
            from_file = each if each in file_names else aliases.get(each)
            origin.append(first + file_names.index(from_file) if from_file in file_names else None)
        # what follows the classes: background, last on both sides, or the rows of something else
        origin += [first + len(file_names) + index for index in range(extra)]
        fresh = [index for index, row in enumerate(origin) if row is None]
        fitted = target.detach().cpu().clone().to(torch.promote_types(value.dtype, target.dtype))
        known = [index for index, row in enumerate(origin) if row is not None]
        rows = value.to(fitted).index_select(axis, torch.tensor([origin[i] for i in known], dtype=torch.int64))
        fitted.index_copy_(axis, torch.tensor(known, dtype=torch.int64), rows)
        if fresh and self.spec.new_classes == 'mean':
            mean = value.to(fitted).narrow(axis, first, len(file_names)).mean(axis, keepdim=True)
            sizes = [len(fresh) if each == axis else -1 for each in range(fitted.dim())]
            fitted.index_copy_(axis, torch.tensor(fresh, dtype=torch.int64), mean.expand(sizes))
        new = f', {len(fresh)} new ({", ".join(model_names[i - first] for i in fresh)})' if fresh else ''
        return fitted.to(value.dtype), f'{len(model_names) - len(fresh)} class rows by name on axis {axis}{new}'


def _share_of(name: str, pattern: str, axis: int, shapes: Mapping, classes: Sequence[str] | None) -> list[str] | None:
    """The classes of the tensor ``name`` where all that ``pattern`` finds hold a part of them each, in the order of
    their numbers; None where the rows are not as many as the classes."""
    leaf = name.rpartition('.')[2]
    found = [each for each in shapes if each.rpartition('.')[2] == leaf and matches(pattern, each)]
    found.sort(key=lambda each: [int(part) if part.isdigit() else 0 for part in each.split('.')])
    rows = [shapes[each][axis] for each in found]
    if classes is None or name not in found or sum(rows) != len(classes):
        return None
    place = found.index(name)
    start = sum(rows[:place])
    return list(classes[start : start + rows[place]])


def is_sparse_convolution(module: nn.Module | None) -> bool:
    """Whether the layer is a sparse 3D convolution of any library: channels and a 5-D kernel, none of torch's own."""
    weight = getattr(module, 'weight', None)
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 5
        and hasattr(module, 'in_channels')
        and hasattr(module, 'out_channels')
        and not isinstance(module, nn.modules.conv._ConvNd)
    )


def _out_first_shape(module: nn.Module) -> tuple[bool, tuple]:
    """Whether the layer itself stores (out, kx, ky, kz, in), and its kernel's shape in that form."""
    shape = tuple(module.weight.shape)
    first = (shape[0], shape[4]) == (module.out_channels, module.in_channels)
    return first, shape if first else (shape[4], *shape[:4])


def kernel_layout(shape: Sequence[int], module: nn.Module) -> str:
    """Layout of a stored sparse kernel, by its shape alone.

    Args:
        shape: of the stored kernel.
        module: the layer that it is for.

    Returns:
        'spconv' (out, kx, ky, kz, in), 'mmcv' (kx, ky, kz, in, out; also spconv 1 and MIT's), 'minkowski'
        (kx*ky*kz, in, out) with x fastest, or (in, out) for one voxel, 'either' of the first two (out = kx = ky = kz
        = in), or 'unknown'.
    """
    shape = tuple(shape)
    _, expected = _out_first_shape(module)
    out, kernel, inside = expected[0], expected[1:4], expected[4]
    first, last = shape == expected, shape == (*kernel, inside, out)
    if first and last:
        return 'either'
    if first or last:
        return 'spconv' if first else 'mmcv'
    volume = math.prod(kernel)
    if shape == (volume, inside, out) or (volume == 1 and shape == (inside, out)):
        return 'minkowski'
    return 'unknown'


def convert_kernel(kernel: Tensor, layout: str, module: nn.Module) -> tuple[Tensor, str]:
    """A kernel in the layer's own layout, and a description of what was done, empty where nothing was."""
    first, expected = _out_first_shape(module)
    how = ''
    if layout == 'mmcv':
        kernel = kernel.permute(4, 0, 1, 2, 3)
    elif layout == 'minkowski':
        out, (kx, ky, kz), inside = expected[0], expected[1:4], expected[4]
        kernel = kernel.reshape(kz, ky, kx, inside, out).permute(4, 2, 1, 0, 3)
    elif layout == 'unknown':
        return kernel, ''
    if not first:
        kernel = kernel.permute(1, 2, 3, 4, 0)
    if layout != ('spconv' if first else 'mmcv'):
        how = f'sparse kernels from {layout} layout'
    return kernel.contiguous(), how


def interpolate_positions(value: Tensor, shape: Sequence[int]) -> tuple[Tensor | None, str]:
    """Resize a tensor over square grids of positions, bicubically.

    Args:
        value: ((2w-1)^2, heads) relative position biases; (1, h*w, C) or (h*w, C) embeddings of positions, with up to
            two more for tokens that are no position, in front; or (1, C, h, w).
        shape: of the result.
    """
    shape = tuple(shape)
    if value.dim() == 4 and len(shape) == 4 and value.shape[:2] == shape[:2]:
        return _resized(value, shape[2:]), f'interpolated {value.shape[2]}x{value.shape[3]} to {shape[2]}x{shape[3]}'
    if value.dim() != len(shape) or value.shape[-1] != shape[-1] or value.dim() not in (2, 3):
        return None, 'not a grid of positions of as many channels'
    length, target, channels = value.shape[-2], shape[-2], shape[-1]
    for tokens in range(3):
        source_side, target_side = math.isqrt(length - tokens), math.isqrt(target - tokens)
        if source_side**2 == length - tokens and target_side**2 == target - tokens:
            break
    else:
        return None, f'{length} and {target} positions are not square grids'
    if value.dim() == 3 and value.shape[0] != shape[0]:
        return None, 'not a grid of positions of as many channels'
    grid = value.reshape(-1, length, channels)
    special, grid = grid[:, :tokens], grid[:, tokens:]
    grid = grid.transpose(1, 2).reshape(-1, channels, source_side, source_side)
    grid = _resized(grid, (target_side, target_side)).flatten(2).transpose(1, 2)
    how = f'interpolated {source_side}x{source_side} to {target_side}x{target_side}'
    return torch.cat([special, grid.to(special.dtype)], 1).reshape(shape), how


def _resized(grid: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(grid.float(), tuple(size), mode='bicubic', align_corners=False).to(grid.dtype)


def inflate_kernel(value: Tensor, shape: Sequence[int], center: bool = False) -> tuple[Tensor | None, str]:
    """A convolution's kernel along a new axis, or over more input channels.

    Args:
        value: (out, in, ...).
        shape: (out, in, n, ...): repeated n times and divided by n, so that input which is constant along the new axis
            gives what it gave before; with ``center`` all in the middle slice. Or (out, more, ...): input channels
            repeated in turn and scaled by in / more.

    Source: J. Carreira and A. Zisserman, Quo Vadis, Action Recognition? CVPR 2017 (kernels from 2D to 3D).
    """
    shape = tuple(shape)
    if len(shape) == value.dim() + 1 and shape[:2] + shape[3:] == tuple(value.shape):
        count = shape[2]
        if center:
            result = value.new_zeros(shape)
            result[:, :, count // 2] = value
            return result, f'inflated, in the middle of {count} slices'
        return value.unsqueeze(2).expand(shape) / count, f'inflated over {count} slices'
    if len(shape) == value.dim() and _differing(value.shape, shape) == {1}:
        channels = torch.arange(shape[1]) % value.shape[1]
        scale = value.shape[1] / shape[1]
        return value[:, channels] * scale, f'input channels {value.shape[1]} repeated to {shape[1]}'
    return None, f'{tuple(value.shape)} cannot be inflated to {shape}'


def _overlap(value: Tensor, target: Tensor, fill: str) -> tuple[Tensor | None, str]:
    if fill not in ('init', 'zero'):
        raise ConfigError(f"load_from.rules: fill is {fill!r}, 'init' or 'zero' is expected")
    if value.dim() != target.dim():
        return None, 'another number of axes'
    common = tuple(slice(0, min(a, b)) for a, b in zip(value.shape, target.shape))
    target = target.detach().cpu()
    result = target.clone() if fill == 'init' else torch.zeros_like(target)
    result[common] = value[common].to(result.dtype)
    return result.to(value.dtype), f'common block {tuple(part.stop for part in common)}, rest {fill}'


def _sparse_versions(model: nn.Module) -> dict[str, dict]:
    """Layer versions that tell the sparse layers' own load hooks that their kernels are in their own layout."""
    own = getattr(model.state_dict(), '_metadata', {})
    return {name: own[name] for name, module in model.named_modules() if is_sparse_convolution(module) and name in own}


def _renaming(source: Source, checkpoint: dict, ours: Mapping, model: nn.Module) -> Callable[[str], str | None]:
    """``source.rename``, followed by the model's own ``checkpoint_key_map`` (names of another layout that it knows)
    where the source gives no names and more tensors find their place that way."""
    key_map = getattr(model, 'checkpoint_key_map', None)
    if not key_map or source.renames:
        return source.rename
    other = Source(source.path, prefix=source.prefix, to=source.to, key_map=key_map)
    names = list(weights_in(checkpoint, source.path, source.entry))
    found, found_by_map = (sum(rename(name) in ours for name in names) for rename in (source.rename, other.rename))
    return other.rename if found_by_map > found else source.rename


# ------------------------------------------------------------------------------------------------------------- fields
def _renames(key_map: Any) -> list[Callable[[str], str]]:
    rules = [f'{old} -> {new}' for old, new in key_map.items()] if isinstance(key_map, Mapping) else _as_list(key_map)
    renames = []
    for index, rule in enumerate(rules):
        where = f'load_from.key_map.{index}'
        if isinstance(rule, str) and rule.count('->') == 1:
            old, new = (part.strip().strip('.') for part in rule.split('->'))
            renames.append(_prefix_rename(old, new))
        elif isinstance(rule, Mapping) and set(rule) == {'regex', 'to'}:
            try:
                pattern = re.compile(rule['regex'])
            except re.error as error:
                raise ConfigError(f'{where}: {rule["regex"]!r} is no regular expression: {error}') from error
            renames.append(lambda name, pattern=pattern, to=rule['to']: pattern.sub(to, name))
        else:
            raise ConfigError(f"{where}: 'a -> b' or dict(regex=, to=) is expected, found {rule!r}")
    return renames


def _prefix_rename(old: str, new: str) -> Callable[[str], str]:
    def rename(name):
        if old and name != old and not name.startswith(old + '.'):
            return name
        rest = name[len(old) :].lstrip('.')
        return '.'.join(part for part in (new, rest) if part)

    return rename


def _check_patterns(spec: LoadSpec, ours: Mapping, model: nn.Module) -> None:
    """Names in the spec that name nothing in the model are mistakes; MIT's names of modules become the model's."""
    aliases = aliases_of(model)
    for index, source in enumerate(spec.sources):
        for name in ('take', 'leave'):
            patterns = getattr(source, name)
            if patterns is None:
                continue
            found = []
            for pattern in patterns:
                expanded = expand(pattern, ours, aliases)
                if not expanded and name == 'take':
                    where = f'load_from.sources.{index}.take'
                    raise ConfigError(f'{where}: {pattern!r} names nothing in the model. {hint(pattern, ours)}')
                found += expanded or [pattern]
            setattr(source, name, found)
        if source.to is not None and not any(matches(source.to.rstrip('.'), name) for name in ours):
            raise ConfigError(f'load_from: to={source.to!r} names nothing in the model. {hint(source.to, ours)}')
    for pattern in [*spec.class_axes, *(each for rule in spec.rules for each in _as_list(rule['tensors']))]:
        if not any(matches(pattern, name) for name in ours):
            raise ConfigError(f'load_from: {pattern!r} names nothing in the model. {hint(pattern, ours)}')


def _check_fields(given: Mapping, known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f'{where}.{name}: no such field' + (f', did you mean {near[0]}?' if near else '')
                + f' It has: {", ".join(sorted(known))}'
            )  # fmt: skip


def _as_list(value: Any) -> list:
    return [value] if isinstance(value, (str, Mapping)) else list(value or ())


def _differing(a: Sequence[int], b: Sequence[int]) -> set[int]:
    return {axis for axis, (x, y) in enumerate(zip(a, b)) if x != y} if len(a) == len(b) else {-1}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix('torch.')
