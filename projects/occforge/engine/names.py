"""Which modules and tensors a name in a config means.

A name is a path from the model's root and ends at a module boundary: ``decoder`` means ``decoder`` and all that is in
it, and neither ``decoder2`` nor ``heads.object.decoder``. ``*`` stands for any characters, so ``*.pos_embed`` finds
that tensor anywhere; ``re:`` starts a regular expression that is searched for.

Names of MIT's BEVFusion (``encoders.camera.backbone``, ``fuser``, ``heads.object``) are understood by models that call
these parts otherwise, see :data:`MODULE_ALIASES`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from torch import nn

from ..errors import ConfigError

# MIT's name of a part -> what mmdet3d's and the BEVDet family's detectors call it; those count that a model has.
# A model with other names has a ``module_aliases`` of this form, which comes first.
MODULE_ALIASES = {
    'encoders.camera.backbone': ('img_backbone',),
    'encoders.camera.neck': ('img_neck',),
    'encoders.camera.vtransform': ('view_transform', 'img_view_transformer', 'pre_process'),
    'encoders.lidar': ('pts_voxel_encoder', 'pts_middle_encoder', 'lidar_encoder'),
    'encoders.lidar.backbone': ('pts_middle_encoder', 'lidar_encoder'),
    'fuser': ('fusion_layer', 'volume_downsample'),
    'decoder.backbone': ('pts_backbone', 'img_bev_encoder_backbone', 'occ_encoder_backbone'),
    'decoder.neck': ('pts_neck', 'img_bev_encoder_neck', 'occ_encoder_neck', 'occ_upsample'),
    'heads.object': ('bbox_head', 'pts_bbox_head'),
    'heads.map': ('map_head', 'seg_head'),
    'heads.occupancy': ('occupancy_head', 'occ_head', 'final_conv', 'predicter'),
}


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern:
    if pattern.startswith('re:'):
        try:
            return re.compile(f'.*?(?:{pattern[3:]})')
        except re.error as error:
            raise ConfigError(f'{pattern!r} is no regular expression: {error}') from error
    body = '.*'.join(re.escape(part) for part in pattern.rstrip('.').split('*'))
    return re.compile(rf'{body}(?=\.|$)')


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` is what ``pattern`` names, or lies in it."""
    return _compiled(pattern).match(name) is not None


def matches_any(patterns: Iterable[str], name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns)


def aliases_of(model: nn.Module) -> dict[str, Sequence[str]]:
    """:data:`MODULE_ALIASES` and before them the model's own."""
    return {**MODULE_ALIASES, **getattr(model, 'module_aliases', {})}


def expand(pattern: str, names: Iterable[str], aliases: dict[str, Sequence[str]] = MODULE_ALIASES) -> list[str]:
    """The patterns that ``pattern`` stands for among ``names``: itself where it names something, else by the aliases.

    An alias also gives what is inside (``heads.object.decoder``) and what is above (``encoders`` is every alias that
    starts so). Empty where nothing is found.
    """
    names = list(names)

    def found(candidate):
        return any(matches(candidate, name) for name in names)

    if found(pattern):
        return [pattern]
    expanded: list[str] = []
    for alias, targets in aliases.items():
        if pattern == alias or pattern.startswith(alias + '.'):
            candidates = [target + pattern[len(alias) :] for target in targets]
        elif alias.startswith(pattern + '.'):
            candidates = list(targets)
        else:
            continue
        expanded += [candidate for candidate in candidates if candidate not in expanded and found(candidate)]
    return expanded


def resolve(
    patterns: Iterable[str], names: Iterable[str], where: str, aliases: dict[str, Sequence[str]] = MODULE_ALIASES
) -> list[str]:
    """All patterns after :func:`expand`.

    Raises:
        ConfigError: one of them names nothing; with the nearest name, or how to write it so that it matches anywhere.
    """
    names = list(names)
    resolved: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f'{where}: a name is expected, found {pattern!r}')
        found = expand(pattern, names, aliases)
        if not found:
            raise ConfigError(f'{where}: {pattern!r} names nothing in the model. {hint(pattern, names)}')
        resolved += [each for each in found if each not in resolved]
    return resolved


def hint(pattern: str, names: Iterable[str]) -> str:
    """What the user may have meant by a pattern that names nothing."""
    names = list(names)
    modules = sorted({'.'.join(name.split('.')[:depth]) for name in names for depth in range(1, name.count('.') + 2)})
    near = difflib.get_close_matches(pattern, modules, n=1, cutoff=0.8)
    inside = next((name for name in names if pattern in name), None)
    if inside is not None and not near:
        return f"A name starts at the model's root; '*{pattern}*' would match anywhere, e.g. in {inside}"
    near = near or difflib.get_close_matches(pattern, modules, n=1, cutoff=0.5)
    tops = ', '.join(dict.fromkeys(name.split('.')[0] for name in names))
    return f'Did you mean {near[0]}? It has: {tops}' if near else f'It has: {tops}'


def group_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> the module under which a table lists it: the first part of the path in which the names differ."""
    names = list(names)
    depth = 1
    while True:
        groups = {name: '.'.join(name.split('.')[:depth]) for name in names}
        single = len(set(groups.values())) == 1 and len(names) > 1
        if not single or any(name.count('.') <= depth for name in names):
            return groups
        depth += 1
