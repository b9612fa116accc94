"""Which parts of a model train.

A frozen part gets no gradients and stays in evaluation mode, so that the statistics of its batch normalisations, its
dropout and its dropped paths stand still too.
"""

from collections.abc import Iterable

from torch import nn

from ..errors import ConfigError
from .names import aliases_of, group_names, matches_any, resolve


class Trainability:
    """Freezes and unfreezes parts of one model.

    What the model itself has frozen when this is made (``frozen_stages`` of a backbone) stays frozen.

    Args:
        model: the bare model.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        self._own = {name for name, each in model.named_parameters(remove_duplicate=False) if not each.requires_grad}
        self._frozen: list[str] = []
        self._trained: list[str] | None = None
        self._held: list[nn.Module] = []

    def freeze(self, patterns: Iterable[str]) -> bool:
        """Freeze for good what ``patterns`` name (``occforge.engine.names``). Returns whether anything changed.

        Raises:
            ConfigError: a pattern names nothing, or nothing is left that trains.
        """
        self._frozen = self.resolve(patterns, 'freeze')
        return self._apply()

    def train_only(self, patterns: Iterable[str] | None) -> bool:
        """Train what ``patterns`` name, as far as it is not frozen for good; None: all. Returns whether it changed."""
        self._trained = None if patterns is None else self.resolve(patterns, 'stages')
        return self._apply()

    def resolve(self, patterns: Iterable[str], where: str) -> list[str]:
        return resolve(patterns, self.names, where, aliases_of(self.model))

    def is_frozen(self, name: str) -> bool:
        """Of a parameter or module."""
        if matches_any(self._frozen, name):
            return True
        return self._trained is not None and not matches_any(self._trained, name)

    def hold(self) -> None:
        """Put the frozen parts back into evaluation mode; call it after ``model.train()``."""
        for module in self._held:
            if module.training:
                module.eval()

    def _apply(self) -> bool:
        changed = False
        # a parameter that two modules share trains if it does so in one of them
        wanted: dict[int, bool] = {}
        parameters = list(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in parameters:
            trains = name not in self._own and not self.is_frozen(name)
            wanted[id(parameter)] = wanted.get(id(parameter), False) or trains
        if not any(wanted.values()):
            raise ConfigError(f'freeze: nothing is left that trains: {", ".join(self._frozen)} is the whole model')
        for _, parameter in parameters:
            if parameter.requires_grad != wanted[id(parameter)]:
                parameter.requires_grad_(wanted[id(parameter)])
                parameter.grad = None
                changed = True
        self._held = list(self._frozen_roots(self.model, ''))
        if self.model.training:
            self.model.train()
            self.hold()
        return changed

    def _frozen_roots(self, module: nn.Module, prefix: str) -> Iterable[nn.Module]:
        """The largest modules that have parameters or statistics, all of them frozen by name."""
        for name, child in module.named_children():
            path = f'{prefix}{name}'
            inside = [f'{path}.{each}' for each in child.state_dict(keep_vars=True)]
            if inside and all(self.is_frozen(each) for each in inside):
                yield child
            elif inside:
                yield from self._frozen_roots(child, f'{path}.')

    def table(self) -> list[str]:
        """Text: trainable and frozen parameters by module."""
        parameters = dict(self.model.named_parameters())
        module_of = group_names(parameters)
        rows: dict[str, list[int]] = {}
        for name, parameter in parameters.items():
            rows.setdefault(module_of[name], [0, 0])[0 if parameter.requires_grad else 1] += parameter.numel()
        total = [sum(column) for column in zip(*rows.values())]
        width = max(map(len, [*rows, 'module']))
        lines = [f'{"module".ljust(width)}    trainable       frozen']
        lines += [f'{name.ljust(width)} {row[0]:12,d} {row[1]:12,d}' for name, row in [*rows.items(), ('all', total)]]
        return lines
