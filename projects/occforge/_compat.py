"""Makes the last official OpenMMLab releases importable beside mmcv-lite.

mmcv-lite ships ``mmcv.ops`` without the compiled ``mmcv._ext`` that mmdet3d imports at 32 places, and mmdet3d's Lyft
metric imports a non-commercial kit. Where the real module is absent, a stand-in takes its place whose functions raise
one clear error when they are called. Nothing is replaced where the real one is installed.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class MissingDependencyError(ImportError):
    """A function of an optional package was called and the package is not installed."""


class _StandIn(types.ModuleType):
    """A module any of whose attributes is a callable that raises ``MissingDependencyError``."""

    def __init__(self, name: str, hint: str):
        super().__init__(name)
        self._hint = hint
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        full_name, hint = f'{self.__name__}.{name}', self._hint

        def missing(*args, **kwargs):
            raise MissingDependencyError(f'{full_name} was called but {hint}')

        missing.__name__ = name
        return missing


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last finder in line: answers only for the stand-ins' names, after every real finder has said no."""

    def __init__(self, hints: dict):
        self.hints = hints

    def _hint(self, name):
        return next((hint for root, hint in self.hints.items() if name == root or name.startswith(root + '.')), None)

    def find_spec(self, name, path=None, target=None):
        if self._hint(name) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _StandIn(spec.name, self._hint(spec.name))

    def exec_module(self, module):
        pass


def install_stand_ins() -> None:
    """Append the finder once; safe to call again (each worker process does)."""
    if any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        return
    sys.meta_path.append(
        _StandInFinder(
            {
                'mmcv._ext': "mmcv's compiled ops are not installed: use the op of occforge.ops, or install the full "
                "mmcv 2.1.0 in place of mmcv-lite (README, 'full lane')",
                'lyft_dataset_sdk': 'the Lyft kit is not installed: no dataset of OccForge needs it',
            }
        )
    )


install_stand_ins()
