"""Configs in the schema of MIT's BEVFusion: YAML with ``_base_``, ``default.yaml`` of parent folders and ``${...}``.

Such a file is merged, its references are resolved, and its training fields are turned into mmengine's; what has no
counterpart is named in one message. A ``_base_`` may also be one of our ``.py`` configs, whose fields the YAML then
changes::

    _base_: ../fusion_occ/fusion_occ_synthetic.py
    max_epochs: 12
    optimizer: {type: AdamW, lr: 5.0e-5, paramwise_cfg: {custom_keys: {encoders.camera.backbone: {lr_mult: 0.01}}}}
    lr_config: {policy: CosineAnnealing, warmup: linear, warmup_iters: 500, warmup_ratio: 0.1, min_lr_ratio: 1.0e-5}
    freeze_encoder: true
"""

import ast
import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# A file that has one of these, or a reference, is of this schema.
MIT_FIELDS = {
    'optimizer', 'optimizer_config', 'lr_config', 'momentum_config', 'runner', 'max_epochs', 'data', 'evaluation',
    'checkpoint_config', 'log_config', 'fp16', 'freeze_encoder', 'dataset_root', 'deterministic', 'seed', 'run_dir',
    'cudnn_benchmark',
}  # fmt: skip
_REFERENCE = re.compile(r'\$\{([^{}]+)\}')
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+')


def is_mit_config(path: Path) -> bool:
    """Whether a YAML file, with its YAML bases and parents, is written in this schema."""
    if path.suffix not in ('.yaml', '.yml'):
        return False
    raw, _ = read_merged(path)
    return bool(MIT_FIELDS & set(raw)) or _has_reference(raw)


def read_merged(path: Path) -> tuple[dict, list[Path]]:
    """The file over its ``_base_`` files over the ``default.yaml`` of its folders, and the bases that are not YAML.

    The folders looked at are those from the nearest one called ``configs`` (or from the file's own) down to the file's.

    Raises:
        ConfigError: a file is absent, no YAML, or not a mapping.
    """
    raw: dict = {}
    others: list[Path] = []
    folders = [path.parent, *path.parent.parents]
    top = next((index for index, folder in enumerate(folders) if folder.name == 'configs'), 0)
    parents = [folder / 'default.yaml' for folder in folders[: top + 1]][::-1]
    layers = [_read(parent) for parent in parents if parent.is_file() and parent != path]
    own = _read(path)
    bases = own.pop('_base_', [])
    for base in [bases] if isinstance(bases, str) else bases:
        base_path = (path.parent / base).resolve()
        if not base_path.is_file():
            raise ConfigError(f'{path}: _base_ {base}: no such file ({base_path})')
        if base_path.suffix in ('.yaml', '.yml'):
            merged, more = read_merged(base_path)
            layers.append(merged)
            others += [each for each in more if each not in others]
        else:
            others.append(base_path)
    for layer in [*layers, own]:
        raw = _merge(raw, layer)
    return raw, others


def translate(raw: dict, path: Path, known: Iterable[str] = ()) -> tuple[dict, list[str]]:
    """A merged file in mmengine's fields, and the names of the fields that have no counterpart.

    Fields that are mmengine's own stay as they are.

    Args:
        raw: what :func:`read_merged` returned, perhaps changed by the command line.
        path: for the messages.
        known: fields and variables of the bases that are not YAML; these stay, too.

    Raises:
        ConfigError: a reference cannot be resolved, a policy is unknown, a field is of the wrong kind.
    """
    used: set[str] = set()
    raw = _resolve(raw, raw, path, used)
    return _Translation(raw, path, used, set(known)).result()


# MIT's place of a part of the model -> its place in mmdet3d's detectors.
_MODEL_PARTS = {
    'encoders.camera.backbone': 'img_backbone',
    'encoders.camera.neck': 'img_neck',
    'encoders.camera.vtransform': 'view_transform',
    'encoders.lidar.voxelize': 'data_preprocessor.voxelize_cfg',
    'encoders.lidar.backbone': 'pts_middle_encoder',
    'fuser': 'fusion_layer',
    'decoder.backbone': 'pts_backbone',
    'decoder.neck': 'pts_neck',
    'heads.object': 'bbox_head',
    'heads.map': 'map_head',
}


def model_fields(model: Mapping, path: Path) -> dict:
    """Fields of a model in MIT's tree (``encoders.lidar.backbone.sparse_shape``) in mmdet3d's.

    Raises:
        ConfigError: a part that has no counterpart.
    """
    out: dict = {}

    def put(dotted: str, value: Any) -> None:
        *parents, last = dotted.split('.')
        node = out
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = _merge({last: node.get(last)}, {last: value})[last]

    def visit(node: Mapping, prefix: str) -> None:
        for key, value in node.items():
            name = f'{prefix}{key}'
            if name in _MODEL_PARTS:
                put(_MODEL_PARTS[name], value)
            elif any(part.startswith(name + '.') for part in _MODEL_PARTS):
                if value is None:  # a whole branch is taken away
                    for part, target in _MODEL_PARTS.items():
                        if part.startswith(name + '.') and 'voxelize' not in part:
                            put(target, None)
                elif isinstance(value, Mapping):
                    visit(value, name + '.')
                else:
                    raise ConfigError(f'{path}: model.{name}: a mapping of fields is expected, found {value!r}')
            elif not prefix:
                put(key, value)  # loss_scale and whatever the model has under its own name
            else:
                raise ConfigError(f'{path}: model.{name}: no such part; it has {", ".join(_MODEL_PARTS)}')

    visit(model, '')
    return out


class _Translation:
    def __init__(self, raw: dict, path: Path, used: set[str], known: set[str]):
        self.raw, self.path, self.used, self.known = dict(raw), path, used, known
        self.out: dict = {}
        self.lost: list[str] = []

    def result(self) -> tuple[dict, list[str]]:
        raw = self.raw
        self.optimizer(self.take('optimizer', dict))
        self.leftovers('optimizer_config', self.take('optimizer_config', dict), grad_clip='optim_wrapper.clip_grad')
        self.epochs()
        self.schedule(self.take('lr_config', dict), self.take('momentum_config', dict))
        self.data(self.take('data', dict))
        self.leftovers('evaluation', self.take('evaluation', dict), interval='train_cfg.val_interval')
        self.leftovers(
            'checkpoint_config',
            self.take('checkpoint_config', dict),
            interval='default_hooks.checkpoint.interval',
            max_keep_ckpts='default_hooks.checkpoint.max_keep_ckpts',
        )
        self.leftovers('log_config', self.take('log_config', dict), interval='default_hooks.logger.interval')
        fp16 = self.take('fp16', dict)
        if fp16 is not None:
            self.put('optim_wrapper.type', 'OccAmpOptimWrapper')
            scale = fp16.get('loss_scale', 'dynamic')
            if isinstance(scale, dict):  # mmcv's name of the kind; the rest is GradScaler's
                scale = {key: value for key, value in scale.items() if key != 'mode'}
            self.put('optim_wrapper.loss_scale', scale)
        for old, new in (
            ('seed', 'randomness.seed'),
            ('deterministic', 'randomness.deterministic'),
            ('cudnn_benchmark', 'env_cfg.cudnn_benchmark'),
            ('run_dir', 'work_dir'),
        ):
            if old in raw:
                self.put(new, raw.pop(old))
        root = raw.pop('dataset_root', None)
        if root is not None and 'data_root' in self.known:  # a variable of the base that carries it everywhere
            self.out['data_root'] = root
        elif root is not None:
            for loader in _LOADERS:
                self.put(f'{loader}.dataset.data_root', root)
        model = raw.get('model')
        if isinstance(model, dict) and {'encoders', 'fuser', 'decoder', 'heads'} & set(model):
            if self.known:
                raw['model'] = model_fields(model, self.path)
            else:
                self.lost.append('model (MIT layout: take a _base_ with the model and change its fields)')
                raw.pop('model')
        for name in [name for name in raw if name not in _MMENGINE_FIELDS | self.known]:
            del raw[name]
            if name not in self.used:  # else references have carried it to its places
                self.lost.append(name)
        for name, value in raw.items():
            self.out[name] = _merge({name: self.out[name]}, {name: value})[name] if name in self.out else value
        return self.out, self.lost

    def take(self, name: str, kind: type):
        value = self.raw.pop(name, None)
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f'{self.path}: {name}: {kind.__name__} is expected, found {value!r}')
        return value

    def put(self, dotted: str, value: Any) -> None:
        *parents, last = dotted.split('.')
        node = self.out
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value

    def leftovers(self, name: str, given: dict | None, **targets: str) -> None:
        for key, value in (given or {}).items():
            if key in targets:
                self.put(targets[key], value)
            else:
                self.lost.append(f'{name}.{key}')

    def optimizer(self, given: dict | None) -> None:
        if given is None:
            return
        given = dict(given)
        for key, target in (('paramwise_cfg', 'paramwise_cfg'), ('constructor', 'constructor')):
            if key in given:
                self.put(f'optim_wrapper.{target}', given.pop(key))
        if given:
            self.put('optim_wrapper.optimizer', given)

    def epochs(self) -> None:
        runner = self.take('runner', dict) or {}
        total = self.raw.pop('max_epochs', runner.get('max_epochs', self.raw.pop('total_epochs', None)))
        iterations = runner.get('max_iters')
        self.total = total
        if total is not None:
            self.put('train_cfg.max_epochs', total)
            if 'max_epochs' in self.known:
                self.out['max_epochs'] = total
        if iterations is not None:
            self.put('train_cfg.by_epoch', False)
            self.put('train_cfg.max_iters', iterations)
        self.lost += [f'runner.{key}' for key in runner if key not in ('type', 'max_epochs', 'max_iters')]

    def schedule(self, given: dict | None, momentum: dict | None) -> None:
        if given is None:
            self.lost += ['momentum_config'] * (momentum is not None)
            return
        given = dict(given)
        if self.total is None:
            raise ConfigError(f'{self.path}: lr_config needs max_epochs, over which the rate is scheduled')
        schedulers = []
        warmup = given.pop('warmup', None)
        steps, ratio = given.pop('warmup_iters', 0), given.pop('warmup_ratio', 0.1)
        if warmup not in (None, 'linear', 'constant'):
            raise ConfigError(f'{self.path}: lr_config.warmup: {warmup!r}, linear or constant is expected')
        if given.pop('warmup_by_epoch', False):
            self.lost.append('lr_config.warmup_by_epoch')
        if warmup is not None and steps:
            kind = dict(type='LinearLR', start_factor=ratio) if warmup == 'linear' else dict(
                type='ConstantLR', factor=ratio
            )  # fmt: skip
            schedulers.append(dict(kind, by_epoch=False, begin=0, end=steps))
        policy = str(given.pop('policy', 'fixed')).lower()
        by_epoch = given.pop('by_epoch', True)
        if policy in ('cosineannealing', 'cosine'):
            cosine = dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=self.total, T_max=self.total)
            if 'min_lr_ratio' in given:
                cosine['eta_min_ratio'] = given.pop('min_lr_ratio')
            else:
                cosine['eta_min'] = given.pop('min_lr', 0.0)
            if not by_epoch:
                cosine['convert_to_iter_based'] = True
            schedulers.append(cosine)
        elif policy == 'step':
            milestones = given.pop('step', [])
            milestones = [milestones] if isinstance(milestones, int) else milestones
            schedulers.append(
                dict(
                    type='MultiStepLR', by_epoch=by_epoch, begin=0, end=self.total, milestones=milestones,
                    gamma=given.pop('gamma', 0.1),
                )
            )  # fmt: skip
        elif policy == 'poly':
            poly = dict(type='PolyLR', by_epoch=True, begin=0, end=self.total, power=given.pop('power', 1.0))
            poly['eta_min'] = given.pop('min_lr', 0.0)
            schedulers.append(poly if by_epoch else dict(poly, convert_to_iter_based=True))
        elif policy == 'cyclic':
            schedulers += self.cyclic(given, 'CosineAnnealingLR', self.base('lr'))
        elif policy != 'fixed':
            raise ConfigError(
                f'{self.path}: lr_config.policy: {policy!r} is not one of CosineAnnealing, step, poly, cyclic, fixed'
            )
        if momentum is not None:
            momentum = dict(momentum)
            if str(momentum.pop('policy', '')).lower() == 'cyclic':
                betas = self.out.get('optim_wrapper', {}).get('optimizer', {}).get('betas', (0.9, 0.999))
                schedulers += self.cyclic(momentum, 'CosineAnnealingMomentum', betas[0])
                self.lost += [f'momentum_config.{key}' for key in momentum]
            else:
                self.lost.append('momentum_config')
        self.lost += [f'lr_config.{key}' for key in given]
        self.out['param_scheduler'] = schedulers

    def base(self, name: str) -> float:
        value = self.out.get('optim_wrapper', {}).get('optimizer', {}).get(name)
        if value is None:
            raise ConfigError(f'{self.path}: lr_config.policy cyclic needs optimizer.{name} beside it')
        return float(value)

    def cyclic(self, given: dict, kind: str, start: float) -> list[dict]:
        """Up (or down) by cosine to ``target_ratio[0]`` times the start, and from there to ``target_ratio[1]``."""
        ratios = given.pop('target_ratio', (10, 1e-4))
        ratios = [ratios, ratios / 1e5] if isinstance(ratios, (int, float)) else list(ratios)
        up = given.pop('step_ratio_up', 0.4)
        if given.pop('cyclic_times', 1) != 1:
            raise ConfigError(f'{self.path}: cyclic_times: one cycle is supported')
        peak = round(up * self.total, 6)
        peak = int(peak) if peak == int(peak) else peak
        shared = dict(type=kind, by_epoch=True, convert_to_iter_based=True)
        return [
            dict(shared, begin=0, end=peak, T_max=peak, eta_min=start * ratios[0]),
            dict(shared, begin=peak, end=self.total, T_max=self.total - peak, eta_min=start * ratios[1]),
        ]

    def data(self, given: dict | None) -> None:
        for key, value in (given or {}).items():
            if key == 'samples_per_gpu':
                self.put('train_dataloader.batch_size', value)
            elif key == 'workers_per_gpu':
                for loader in _LOADERS:
                    self.put(f'{loader}.num_workers', value)
            else:
                self.lost.append(f'data.{key}')


# What a runner of ours reads, beside the dataloaders' own variables of a base.
_MMENGINE_FIELDS = {
    'model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'val_cfg', 'test_cfg', 'default_hooks', 'custom_hooks',
    'custom_imports', 'default_scope', 'env_cfg', 'randomness', 'work_dir', 'load_from', 'resume', 'resume_from',
    'log_level', 'log_processor', 'visualizer', 'auto_scale_lr', 'val_evaluator', 'test_evaluator', 'launcher',
    'data_preprocessor', 'freeze', 'freeze_encoder', 'sync_bn', 'find_unused_parameters', 'model_wrapper_cfg',
    'runner_type', 'lr', *_LOADERS,
}  # fmt: skip


# ----------------------------------------------------------------------------------------------- references, merging
def _has_reference(node: Any) -> bool:
    if isinstance(node, dict):
        return any(_has_reference(value) for value in node.values())
    if isinstance(node, list):
        return any(_has_reference(value) for value in node)
    return isinstance(node, str) and _REFERENCE.search(node) is not None


def _resolve(node: Any, top: dict, path: Path, used: set[str], depth: int = 0) -> Any:
    if isinstance(node, dict):
        return {key: _resolve(value, top, path, used, depth) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(value, top, path, used, depth) for value in node]
    if not isinstance(node, str) or not _REFERENCE.search(node):
        return node
    if depth > 20:
        raise ConfigError(f'{path}: {node}: the references go round in circles')

    def value_of(expression: str) -> Any:
        try:
            tree = ast.parse(expression.strip(), mode='eval').body
            value = _evaluate(tree, top, used)
        except (ConfigError, SyntaxError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
            what = f'{error.args[0]!r} is not defined' if isinstance(error, KeyError) else str(error)
            raise ConfigError(f'{path}: ${{{expression}}}: {what}') from error
        return _resolve(value, top, path, used, depth + 1)

    whole = _REFERENCE.fullmatch(node.strip())
    if whole:
        return value_of(whole.group(1))
    return _REFERENCE.sub(lambda match: str(value_of(match.group(1))), node)


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg,
    ast.UAdd: operator.pos, ast.Not: operator.not_, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


def _evaluate(node: ast.AST, top: Mapping, used: set[str]) -> Any:
    """An expression of names, constants, subscripts, attributes, arithmetic and comparisons. Nothing is called."""

    def of(part):
        return _evaluate(part, top, used)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        used.add(node.id)
        return _as_number(top[node.id])
    if isinstance(node, ast.Attribute):
        return _as_number(of(node.value)[node.attr])
    if isinstance(node, ast.Subscript):
        return _as_number(of(node.value)[of(node.slice)])
    if isinstance(node, (ast.List, ast.Tuple)):
        return [of(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](of(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = of(node.left), of(node.right)
        if isinstance(node.op, ast.Pow) and isinstance(right, (int, float)) and abs(right) > 64:
            raise ConfigError('the exponent is too large')
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
        return _OPERATORS[type(node.ops[0])](of(node.left), of(node.comparators[0]))
    if isinstance(node, ast.IfExp):
        return of(node.body) if of(node.test) else of(node.orelse)
    raise ConfigError(f'{type(node).__name__} is not allowed: names, numbers, [...], arithmetic and comparisons are')


def _as_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        if key == '_delete_':
            continue
        replaces = isinstance(value, dict) and value.get('_delete_') is True
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and not replaces:
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _read(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: no readable YAML: {" ".join(str(error).split())}') from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: a mapping of fields is expected, found {type(content).__name__}')
    return content
