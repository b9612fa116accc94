"""What loading weights into a model did: for the log, for a file, for an error."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field

from ..fileio import atomic_write
from .names import group_names

_COLUMNS = ('loaded', 'adapted', 'shape', 'missing', 'kept', 'unexpected')
_TITLES = ('loaded', 'adapted', 'other shape', 'missing', 'kept', 'unexpected')


@dataclass
class Adapted:
    """A tensor that went into the model in another form than the file has it."""

    name: str
    how: str
    file_shape: tuple
    model_shape: tuple


@dataclass
class LoadReport:
    """What loading did, by tensor name (the model's, except ``unexpected``).

    Attributes:
        source: file, or files.
        loaded: copied as they are.
        adapted: copied in another form.
        mismatched: (name, shape in the file, shape in the model); the model keeps its own.
        missing: of the model, not in the file.
        kept: of the model, not wanted from the file (``take``, ``leave``, ``policy='skip'``).
        unexpected: in the file, not in the model.
        left: in the file, not wanted.
        reasons: name of a mismatched tensor -> why nothing could be done.
        sizes: elements of every tensor above.
        parameters: names of those of the model's tensors that are parameters, not buffers.
        files: one dict a file: path, bytes, sha256, tensors.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: list[Adapted] = field(default_factory=list)
    mismatched: list[tuple[str, tuple, tuple]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    parameters: set[str] = field(default_factory=set)
    files: list[dict] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether model and file hold the same tensors and each went in as it is."""
        return not (self.mismatched or self.missing or self.unexpected or self.adapted or self.kept)

    @property
    def filled(self) -> list[str]:
        """The model's tensors that came from the file."""
        return [*self.loaded, *(each.name for each in self.adapted)]

    @property
    def loaded_parameters(self) -> int:
        return self._count(self.filled)

    @property
    def wanted_parameters(self) -> int:
        return self.loaded_parameters + self._count([*(name for name, *_ in self.mismatched), *self.missing])

    @property
    def share(self) -> float:
        """Share of the wanted parameters (elements; buffers do not count) that came from the file."""
        return self.loaded_parameters / self.wanted_parameters if self.wanted_parameters else 0.0

    def _count(self, names) -> int:
        return sum(self.sizes.get(name, 0) for name in names if name in self.parameters)

    def _groups(self) -> list[list[str]]:
        adapted = [each.name for each in self.adapted]
        mismatched = [name for name, *_ in self.mismatched]
        return [self.loaded, adapted, mismatched, self.missing, self.kept, self.unexpected]

    def by_module(self) -> dict[str, dict[str, dict[str, int]]]:
        """Module -> 'loaded', 'adapted', 'shape', 'missing', 'kept', 'unexpected' -> {tensors, elements}."""
        groups = self._groups()
        module_of = group_names(name for names in groups for name in names)
        table: dict[str, dict] = {}
        for column, names in zip(_COLUMNS, groups):
            for name in names:
                row = table.setdefault(module_of[name], {each: dict(tensors=0, elements=0) for each in _COLUMNS})
                row[column]['tensors'] += 1
                row[column]['elements'] += self.sizes.get(name, 0)
        return table

    # --------------------------------------------------------------------------------------------------------- text
    def lines(self, limit: int = 10) -> list[str]:
        """Text for the log: totals, a table by module, the tensors that were adapted or did not fit."""
        ours = sum(len(names) for names in self._groups()[:-1])
        lines = [
            f'{self.source}: {len(self.filled)} of {ours} tensors of the model loaded'
            + (f' ({len(self.adapted)} of them adapted)' if self.adapted else '')
            + f', {len(self.mismatched)} of another shape, {len(self.missing)} not in the file, '
            + (f'{len(self.kept)} kept on purpose, ' if self.kept else '')
            + f'{len(self.unexpected)} in the file alone; {self.share:.1%} of the wanted '
            + f'{_short(self.wanted_parameters)} parameters'
        ]
        if self.complete:
            return lines
        lines += self._table()
        by_kind: dict[str, list[Adapted]] = {}
        for each in self.adapted:
            by_kind.setdefault(each.how, []).append(each)
        for how, group in by_kind.items():
            first = group[0]
            shapes = f'{first.file_shape} -> {first.model_shape}' if first.file_shape != first.model_shape else ''
            more = f' and {len(group) - 1} more' if len(group) > 1 else ''
            lines.append(f'  ~ adapted: {first.name}{more} ({", ".join(filter(None, (shapes, how)))})')
        for name, theirs, ours in self.mismatched[:limit]:
            reason = f'; {self.reasons[name]}' if name in self.reasons else ''
            lines.append(f'  - shape of {name}: {theirs} in the file, {ours} in the model{reason}')
        if len(self.mismatched) > limit:
            lines.append(f'  - and {len(self.mismatched) - limit} more of another shape')
        lines += _listed('  - not in the file', self.missing, limit)
        lines += _listed('  ? in the file alone', self.unexpected, limit)
        return lines

    def _table(self) -> list[str]:
        rows = [('module', *_TITLES, 'elements loaded')]
        for module, columns in self.by_module().items():
            filled = columns['loaded']['elements'] + columns['adapted']['elements']
            ours = sum(columns[each]['elements'] for each in _COLUMNS[:-1])
            share = f'{_short(filled)} of {_short(ours)} ({filled / ours:.0%})' if ours else ''
            rows.append((module, *(str(columns[each]['tensors'] or '.') for each in _COLUMNS), share))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for first, *rest in rows:
            cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:]))]
            lines.append('  ' + '  '.join(cells))
        return lines

    def summary(self) -> str:
        """One line with examples, for an error."""
        parts = []
        if self.mismatched:
            name, theirs, ours = self.mismatched[0]
            parts.append(f'{len(self.mismatched)} tensors of another shape ({name}: {theirs} in the file, {ours} here)')
        if self.missing:
            parts.append(f'{len(self.missing)} tensors of the model not in the file ({self.missing[0]})')
        if self.unexpected:
            parts.append(f'{len(self.unexpected)} in the file alone ({self.unexpected[0]})')
        return '; '.join(parts) or 'complete'

    # --------------------------------------------------------------------------------------------------------- data
    def as_dict(self) -> dict:
        """Plain data for JSON; every list is whole."""
        return dict(
            files=self.files,
            share_of_parameters=round(self.share, 6),
            parameters=dict(loaded=self.loaded_parameters, wanted=self.wanted_parameters),
            tensors={name: len(names) for name, names in zip(_COLUMNS, self._groups())},
            modules=self.by_module(),
            adapted=[
                {**asdict(each), 'file_shape': list(each.file_shape), 'model_shape': list(each.model_shape)}
                for each in self.adapted
            ],
            shape=[
                dict(name=name, file_shape=list(theirs), model_shape=list(ours), reason=self.reasons.get(name, ''))
                for name, theirs, ours in self.mismatched
            ],
            missing=self.missing,
            kept=self.kept,
            unexpected=self.unexpected,
            left=self.left,
            loaded=self.loaded,
        )

    def write(self, path: str | os.PathLike) -> None:
        """As JSON, atomically."""
        with atomic_write(path, 'w', encoding='utf-8') as file:
            json.dump(self.as_dict(), file, indent=1)
            file.write('\n')


def log_report(report: LoadReport, logger: logging.Logger) -> None:
    for line in report.lines():
        logger.info(line)


def _listed(title: str, names: list[str], limit: int) -> list[str]:
    if not names:
        return []
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return [f'{title}: {", ".join(names[:limit])}{more}']


def _short(count: int) -> str:
    for unit, size in (('M', 10**6), ('k', 10**3)):
        if count >= 10 * size or (unit == 'M' and count >= size):
            return f'{count / size:.1f} {unit}'
    return str(count)
