"""OccForge: 3D perception systems as a plugin of mmdet3d.

``import occforge`` tells mmengine's and mmdet3d's registries where every model, dataset, transform, metric and hook of
ours is; a registry imports them when it is first asked for a name (:func:`register_all_modules` does so at once). On a
machine with torch but without the OpenMMLab stack (a benchmark box, say) the same import leaves ``occforge.ops`` usable
and registers nothing.
"""

from importlib import import_module
from importlib.util import find_spec

from .version import __version__

__all__ = ['__version__', 'register_all_modules']

_REGISTERING = tuple(
    f'{__name__}.{name}' for name in 'apis datasets engine evaluation models systems visualization'.split()
)


def register_all_modules() -> None:
    """Import everything that registers something, as ``mmdet3d.utils.register_all_modules`` does for mmdet3d."""
    for name in _REGISTERING:
        import_module(name)


def __getattr__(name):
    """``occforge.models`` and the like without an import statement of their own."""
    if f'{__name__}.{name}' in _REGISTERING:
        return import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _announce() -> None:
    """Add our packages to the places that registries import from, also to those that have already been asked."""
    from mmdet3d import registry as theirs
    from mmengine import registry as roots

    for registry in (*vars(roots).values(), *vars(theirs).values()):
        if isinstance(registry, roots.Registry) and not set(_REGISTERING) <= set(registry._locations):
            registry._locations = [*registry._locations, *_REGISTERING]  # not in place: the default list is shared
            registry._imported = False


if find_spec('mmengine') is not None:
    from . import _compat  # isort: skip  # first: it makes the stack below importable on the mmcv-lite lane

    _announce()
