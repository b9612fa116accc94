"""OccForge: 3D perception systems as a plugin of mmdet3d.

``import occforge`` registers every model, dataset, transform, metric and hook in mmdet3d's registries. On a machine
with torch but without the OpenMMLab stack (a benchmark box, say) the same import leaves ``occforge.ops`` usable and
registers nothing.
"""

from importlib.util import find_spec

from .version import __version__

if find_spec('mmengine') is not None:
    from . import _compat  # isort: skip  # first: it makes the stack below importable on the mmcv-lite lane
    from . import datasets, engine, evaluation, models, systems, visualization

__all__ = ['__version__']
