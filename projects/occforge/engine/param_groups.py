"""Learning rates and weight decay by module."""

import difflib
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import ConfigError
from .names import aliases_of, expand, hint, matches

_FIELDS = (
    'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'dwconv_decay_mult',
    'dcn_offset_lr_mult', 'bypass_duplicate',
)  # fmt: skip
_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OccOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor (same ``paramwise_cfg``) with these differences:

    * a key of ``custom_keys`` is a path from the model's root that ends at a module boundary: ``decoder`` does not mean
      ``heads.object.decoder``. ``*`` stands for any characters. The bare name of a parameter (``pos_embed``) means all
      parameters of that name. MIT's names of BEVFusion's modules are understood (``occforge.engine.names``);
    * a key that matches no parameter is an error;
    * of the keys that match a parameter, the longest one decides, each field (``lr_mult``, ``decay_mult``) by itself;
      fields that none sets follow ``norm_decay_mult`` and the like, which mmengine switches off by any match;
    * parameters that do not train now are included: they may later, and a resumed optimizer finds its state;
    * parameters of equal settings share one group, and the log has one line a setting.

    Raises:
        ConfigError: an unknown field, a key that matches no parameter, a factor without a rate.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        for name in self.paramwise_cfg:
            if name not in _FIELDS:
                near = difflib.get_close_matches(name, _FIELDS, n=1)
                raise ConfigError(
                    f'optim_wrapper.paramwise_cfg.{name}: no such field'
                    + (f', did you mean {near[0]}?' if near else f'; it has {", ".join(_FIELDS)}')
                )
        parameters = dict(module.named_parameters())
        custom = self._custom_keys(parameters, aliases_of(module))
        owners = {
            f'{path}.{name}' if path else name: owner
            for path, owner in module.named_modules()
            for name, _ in owner.named_parameters(recurse=False)
        }
        groups: dict[tuple, dict] = {}
        for name, parameter in parameters.items():
            settings = self._general(name, parameter, owners[name])
            for pattern, given in custom:  # from short to long
                if matches(pattern, name):
                    settings.update(given)
            group = self._group(settings)
            key = tuple(sorted((field, repr(value)) for field, value in group.items()))
            groups.setdefault(key, dict(group, params=[]))['params'].append((name, parameter))
        for group in groups.values():
            self._log(group)
            params.append(dict(group, params=[parameter for _, parameter in group['params']]))

    def _custom_keys(self, names: Mapping, aliases: Mapping) -> list[tuple[str, dict]]:
        keys = []
        for key, given in self.paramwise_cfg.get('custom_keys', {}).items():
            where = f'optim_wrapper.paramwise_cfg.custom_keys[{key!r}]'
            if not isinstance(given, Mapping):
                raise ConfigError(f'{where}: dict(lr_mult=, decay_mult=) is expected, found {given!r}')
            found = expand(key, names, aliases)
            if not found and any(name.rpartition('.')[2] == key for name in names):
                found = [f'*.{key}']
            if not found:
                raise ConfigError(f'{where} matches no parameter. {hint(key, names)}')
            keys += [(pattern, dict(given)) for pattern in found]
        return sorted(keys, key=lambda item: (len(item[0]), item[0]))

    def _general(self, name: str, parameter, owner: nn.Module) -> dict:
        """Factors by kind of parameter, as mmengine has them."""
        get = self.paramwise_cfg.get
        is_norm = isinstance(owner, _NORMS)
        is_bias = name.rpartition('.')[2] == 'bias' and not is_norm
        depthwise = isinstance(owner, nn.Conv2d) and owner.in_channels == owner.groups
        offset = 'conv_offset' in name and get('dcn_offset_lr_mult') is not None
        settings = {}
        if offset:
            settings['lr_mult'] = get('dcn_offset_lr_mult')
        elif is_bias and get('bias_lr_mult') is not None:
            settings['lr_mult'] = get('bias_lr_mult')
        kinds = (
            (is_norm, 'norm_decay_mult'),
            (is_bias and not offset, 'bias_decay_mult'),
            (depthwise, 'dwconv_decay_mult'),
            (parameter.ndim == 1 and not offset, 'flat_decay_mult'),
        )
        for applies, field in kinds:
            if applies and get(field) is not None:
                settings['decay_mult'] = get(field)
                break
        return settings

    def _group(self, settings: dict) -> dict:
        group = dict(settings)
        for field, base, name in (('lr_mult', self.base_lr, 'lr'), ('decay_mult', self.base_wd, 'weight_decay')):
            if field in group:
                if base is None:
                    raise ConfigError(f'optim_wrapper.paramwise_cfg: {field} needs optim_wrapper.optimizer.{name}')
                group.setdefault(name, base * group[field])
        return group

    def _log(self, group: dict) -> None:
        names = [name for name, _ in group['params']]
        modules = list(dict.fromkeys('.'.join(name.split('.')[:2]) for name in names))
        shown = ', '.join(modules[:4]) + (f' and {len(modules) - 4} more' if len(modules) > 4 else '')
        size = sum(parameter.numel() for _, parameter in group['params'])
        settings = ', '.join(
            f'{name} {value:.3g}' for name, value in (
                ('lr', group.get('lr', self.base_lr)), ('weight decay', group.get('weight_decay', self.base_wd)),
            ) if value is not None
        )  # fmt: skip
        print_log(f'{settings}: {size:,} parameters in {len(names)} tensors of {shown}', logger='current')


def names_of_groups(optimizer, model: nn.Module) -> list[list[str]]:
    """Names of an optimizer's parameters, group by group; what a checkpoint needs to find their state again."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter), '') for parameter in group['params']] for group in optimizer.param_groups]


def fit_optimizer_state(state: dict, saved: list[list[str]], optimizer, names: list[list[str]]) -> tuple[dict, str]:
    """An optimizer's saved state for an optimizer whose groups are others now.

    Args:
        state: ``state_dict`` of the optimizer (or of its wrapper) as saved.
        saved: names of its parameters by group.
        optimizer: the optimizer as built from the config now.
        names: names of its parameters by group.

    Returns:
        The state to load, the very same where the names are; and a remark, empty where nothing changed. A group's rate
        is the config's now, times how far the schedule had brought the rate of the group that its parameters were in.
    """
    if saved == names:
        return state, ''
    index = {name: number for number, name in enumerate(name for group in saved for name in group)}
    group_of = {name: group for group, members in zip(state['param_groups'], saved) for name in members}
    kept, groups, position = {}, [], 0
    for group, members in zip(optimizer.param_groups, names):
        old = next((group_of[name] for name in members if name in group_of), None)
        settings = {key: value for key, value in group.items() if key != 'params'}
        if old is not None:
            for key in set(old) - set(settings) - {'params', 'initial_lr'}:
                settings[key] = old[key]
            if old.get('initial_lr'):
                settings['initial_lr'] = settings.get('initial_lr', settings['lr'])
                settings['lr'] = settings['initial_lr'] * old['lr'] / old['initial_lr']
        groups.append({**settings, 'params': list(range(position, position + len(members)))})
        for name in members:
            if index.get(name) in state['state']:
                kept[position] = state['state'][index[name]]
            position += 1
    gone = len(index) - sum(name in index for members in names for name in members)
    remark = (
        f'the optimizer has other groups of parameters than the checkpoint: the state of {len(kept)} of {position} '
        f'tensors was found by name' + (f', {gone} tensors are gone' if gone else '')
    )
    return {**state, 'state': kept, 'param_groups': groups}, remark
