"""Labels and masks on a grid finer than the label grid, up to 1600 x 1600 x 128. numpy only.

A dense array of such a grid takes 328 MB a sample for labels and as much for each mask, so there are smaller forms:

* bits: a mask with 8 voxels along z a byte;
* occupied voxels: the labels as a list of those that are not free;
* counts: how many fine voxels of each class and mask lie in each cell of the label grid. Loss and metric of a network
  that answers on the label grid need no more than that, exactly.

Files are npz archives, or folders of npy files, which are read through memory maps:

====================================  ==============================================================================
array                                 content
====================================  ==============================================================================
``semantics``                         (X, Y, Z) uint8, 17 = free
or ``occupied``, ``labels``,          (N,) ascending row-major positions and (N,) uint8 classes of the voxels that are
``shape``                             not free; (3,) the grid
``mask_camera``, ``mask_lidar``       (X, Y, Z) uint8 or bool
or ``mask_camera_bits``, ...          (X, Y, Z / 8) uint8, np.packbits along z
or all in ``cells``, ``codes``,       (M,) row-major cells, (M,) uint8 4 * class + camera + 2 * LiDAR, (M,) numbers of
``counts``, ``grid``, ``ratio``       fine voxels; (3,) the cells' grid; (3,) fine voxels along a cell
====================================  ==============================================================================

Labels and masks may be of different grids, as long as along each axis one is a multiple of the other. A mask that is
missing is true everywhere.
"""

import os
from typing import NamedTuple

import numpy as np

from occforge.errors import DataError
from occforge.fileio import atomic_write

from .occ3d import FREE, NUM_CLASSES, read_npz

MASKS = ('mask_camera', 'mask_lidar')
_SLAB = 1 << 22  # fine voxels looked at in one go
_COUNTS = ('cells', 'codes', 'counts', 'grid', 'ratio')


class CellCounts(NamedTuple):
    """Fine voxels by cell, class and masks.

    Attributes:
        cells: (M,) int32 row-major positions in ``grid``, ascending.
        codes: (M,) uint8, 4 * class + camera mask + 2 * LiDAR mask.
        counts: (M,) int32, above 0.
        grid: (X, Y, Z) of the cells.
        ratio: fine voxels along the sides of a cell.
    """

    cells: np.ndarray
    codes: np.ndarray
    counts: np.ndarray
    grid: tuple
    ratio: tuple

    def flip(self, flip_x: bool, flip_y: bool) -> 'CellCounts':
        """Those of the labels with axis X or Y reversed."""
        if not (flip_x or flip_y):
            return self
        x, y, z = np.unravel_index(self.cells, self.grid)
        x, y = (self.grid[0] - 1 - x if flip_x else x), (self.grid[1] - 1 - y if flip_y else y)
        cells = np.ravel_multi_index((x, y, z), self.grid).astype(np.int32)
        order = np.argsort(cells, kind='stable')
        return self._replace(cells=cells[order], codes=self.codes[order], counts=self.counts[order])


class FineLabels:
    """Labels and masks in whatever form, read slab by slab.

    Args:
        semantics: (X, Y, Z) uint8, or ``(occupied, labels, shape)`` as in the module's table.
        mask_camera, mask_lidar: (X, Y, Z) uint8 or bool, ``(bits, shape)`` with bits (X, Y, ceil(Z / 8)) uint8, or
            None.
        source: for messages.

    Raises:
        DataError: shapes that do not fit each other, or labels outside 0..17 (and 255, never supervised).
    """

    def __init__(self, semantics, mask_camera=None, mask_lidar=None, source: str = 'labels'):
        self.source = source
        self._labels = _Occupied(*semantics, source) if isinstance(semantics, tuple) else _Dense(semantics, source)
        self._masks = []
        for name, mask in zip(MASKS, (mask_camera, mask_lidar)):
            if isinstance(mask, tuple):
                mask = _Bits(*mask, f'{source}: field {name!r}')
            self._masks.append(mask if mask is None or isinstance(mask, _Bits) else _Dense(mask, source))
        parts = [part for part in (self._labels, *self._masks) if part is not None]
        for part in parts:
            if len(part.shape) != 3 or min(part.shape) < 1:
                raise DataError(f'{source}: an array has the shape {tuple(part.shape)}, expected (X, Y, Z)')
        self.shape = tuple(max(sides) for sides in zip(*(part.shape for part in parts)))
        for part in parts:
            if any(fine % own for fine, own in zip(self.shape, part.shape)):
                raise DataError(
                    f'{source}: labels and masks have the grids {sorted({tuple(part.shape) for part in parts})}, '
                    'expected multiples of each other along each axis'
                )

    def slab(self, start: int, stop: int) -> tuple:
        """Labels (uint8) and the two masks (bool, or None) of the planes start <= x < stop, (stop - start, Y, Z).

        ``start`` and ``stop`` lie between voxels of the coarsest of the arrays.
        """
        return tuple(None if part is None else self._part(part, start, stop) for part in (self._labels, *self._masks))

    def _part(self, part, start, stop):
        ratio = [fine // own for fine, own in zip(self.shape, part.shape)]
        values = part.planes(start // ratio[0], stop // ratio[0])
        for axis, factor in enumerate(ratio):
            if factor > 1:
                values = values.repeat(factor, axis=axis)
        return values

    def counts(self, grid) -> CellCounts:
        """Fine voxels by cell of a coarser grid, class and masks; those labelled 255 are left out.

        Raises:
            DataError: the labels' grid is no multiple of ``grid``, or a label is unknown.
        """
        grid = tuple(int(side) for side in grid)
        if len(grid) != 3 or any(fine % side for fine, side in zip(self.shape, grid)):
            raise DataError(f'{self.source}: the labels have the grid {self.shape}, expected a multiple of {grid}')
        for part in (self._labels, *self._masks):
            if part is not None and any(own % side for own, side in zip(part.shape, grid)):
                raise DataError(f'{self.source}: an array has the grid {part.shape}, expected a multiple of {grid}')
        ratio = tuple(fine // side for fine, side in zip(self.shape, grid))
        inside = ratio[0] * ratio[1] * ratio[2]
        planes = max(1, _SLAB // (inside * grid[1] * grid[2]))
        columns = []
        for first in range(0, grid[0], planes):
            last = min(first + planes, grid[0])
            code = self._codes(*self.slab(first * ratio[0], last * ratio[0]))
            code = code.reshape(last - first, ratio[0], grid[1], ratio[1], grid[2], ratio[2])
            code = np.ascontiguousarray(code.transpose(0, 2, 4, 1, 3, 5)).reshape(-1, inside)
            # nearly all cells hold voxels of one kind alone
            low, high = code.min(axis=1), code.max(axis=1)
            cell = np.flatnonzero(low == high)
            columns.append((cell, low[cell], np.full(len(cell), inside), first))
            mixed = np.flatnonzero(low != high)
            key = (np.arange(len(mixed))[:, None] << 8) | code[mixed]
            number = np.bincount(key.ravel(), minlength=len(mixed) << 8)
            key = np.flatnonzero(number)
            columns.append((mixed[key >> 8], (key & 255).astype(np.uint8), number[key], first))
        plane = grid[1] * grid[2]
        cells = np.concatenate([cell + first * plane for cell, _, _, first in columns])
        codes, counts = (np.concatenate([column[i] for column in columns]) for i in (1, 2))
        order = np.argsort(cells, kind='stable')
        order = order[codes[order] < 4 * NUM_CLASSES]  # without those to be ignored
        return CellCounts(cells[order].astype(np.int32), codes[order], counts[order].astype(np.int32), grid, ratio)

    def _codes(self, labels, mask_camera, mask_lidar):
        if labels.size and int(labels.max()) >= NUM_CLASSES:
            unknown = np.unique(labels[labels >= NUM_CLASSES])
            unknown = unknown[unknown != 255]
            if len(unknown):
                raise DataError(f'{self.source}: holds the label {int(unknown[0])}, expected 0..{FREE} or 255 (ignore)')
        code = labels << 2  # uint8: 255, to be ignored, becomes 252
        for bit, mask in enumerate((mask_camera, mask_lidar)):
            code |= np.uint8(1 << bit) if mask is None else (mask != 0).view(np.uint8) << bit
        return code

    def dense(self) -> tuple:
        """Labels (X, Y, Z) uint8 and masks, uint8 or None, each of its own grid."""
        return tuple(
            None if part is None else part.planes(0, part.shape[0]).astype(np.uint8)
            for part in (self._labels, *self._masks)
        )


class _Dense:
    def __init__(self, values, source):
        values = np.asanyarray(values)
        if values.dtype.kind not in 'uib':
            raise DataError(f'{source}: an array has the type {values.dtype}, expected uint8 or bool')
        self.values, self.shape = values, values.shape

    def planes(self, start, stop):
        values = np.asarray(self.values[start:stop])
        return values if values.dtype == bool else values.astype(np.uint8)


class _Bits:
    def __init__(self, bits, shape, source):
        self.bits, self.shape = np.asanyarray(bits), tuple(int(side) for side in shape)
        expected = (*self.shape[:2], -(-self.shape[2] // 8))
        if self.bits.dtype != np.uint8 or self.bits.shape != expected:
            raise DataError(
                f'{source}: bits are {self.bits.dtype} {self.bits.shape}, expected uint8 {expected} for {self.shape}'
            )

    def planes(self, start, stop):
        return np.unpackbits(self.bits[start:stop], axis=2, count=self.shape[2]).view(bool)


class _Occupied:
    def __init__(self, occupied, labels, shape, source):
        self.occupied, self.labels = np.asarray(occupied), np.asarray(labels)
        self.shape = tuple(int(side) for side in shape)
        total = int(np.prod(self.shape, dtype=np.int64))
        if self.occupied.shape != self.labels.shape or self.occupied.ndim != 1:
            raise DataError(f'{source}: {self.occupied.shape} occupied voxels, but {self.labels.shape} labels')
        if len(self.occupied):
            steps = np.diff(self.occupied.astype(np.int64))
            if int(self.occupied[0]) < 0 or int(self.occupied[-1]) >= total or (steps <= 0).any():
                raise DataError(f"{source}: field 'occupied' is not ascending within 0..{total - 1}")

    def planes(self, start, stop):
        plane = self.shape[1] * self.shape[2]
        first, last = np.searchsorted(self.occupied, [start * plane, stop * plane])
        values = np.full((stop - start) * plane, FREE, dtype=np.uint8)
        values[self.occupied[first:last].astype(np.int64) - start * plane] = self.labels[first:last]
        return values.reshape(stop - start, *self.shape[1:])


# ------------------------------------------------------------------------------------------------------------- files
def read_fine_labels(path, masks_from=None) -> FineLabels | CellCounts:
    """Labels and masks of an archive or folder (see the module's table).

    Args:
        path: npz file, or folder of npy files.
        masks_from: another such file (Occ3D's own ``labels.npz``, say) for the masks that ``path`` does not have.

    Returns:
        CellCounts where the file holds counts, else FineLabels.

    Raises:
        DataError: the file is missing, damaged, or holds none of the forms.
    """
    path = os.fspath(path)
    names = _names(path)
    if set(_COUNTS) <= names:
        arrays = _read(path, _COUNTS)
        grid, ratio = (tuple(int(side) for side in arrays[name]) for name in ('grid', 'ratio'))
        counts = CellCounts(*(arrays[name] for name in _COUNTS[:3]), grid, ratio)
        if len({len(column) for column in counts[:3]}) != 1:
            raise DataError(f'{path}: cells, codes and counts differ in length')
        return counts
    if 'semantics' in names:
        semantics = _read(path, ['semantics'])['semantics']
    elif {'occupied', 'labels', 'shape'} <= names:
        semantics = tuple(_read(path, ['occupied', 'labels', 'shape']).values())
    else:
        raise DataError(f"{path}: holds {sorted(names)}, expected 'semantics', or 'occupied', 'labels' and 'shape'")
    masks = []
    for name in MASKS:
        found = None
        for file in (path, masks_from):
            here = set() if file is None else names if file == path else _names(os.fspath(file))
            if name in here:
                found = _read(file, [name])[name]
            elif f'{name}_bits' in here:
                bits = _read(file, [f'{name}_bits'])[f'{name}_bits']
                found = (bits, (*bits.shape[:2], 8 * bits.shape[2]))
            if found is not None:
                break
        masks.append(found)
    return FineLabels(semantics, *masks, source=path)


def write_fine_labels(path, labels: FineLabels, storage: str, grid=None) -> None:
    """Write ``labels`` as an npz archive.

    Args:
        path: file to write, atomically.
        labels: what to write; memory for dense arrays is needed while writing.
        storage: 'dense', 'packed' (occupied voxels, masks as bits; z sides of masks must be multiples of 8) or
            'counts' (needs ``grid``).
        grid: (X, Y, Z) of the cells to count in.
    """
    if storage == 'counts':
        arrays = dict(zip(_COUNTS, labels.counts(grid)))
    elif storage in ('dense', 'packed'):
        semantics, *masks = labels.dense()
        if storage == 'dense':
            arrays = dict(semantics=semantics)
        else:
            occupied = np.flatnonzero(semantics != FREE)
            kind = np.uint32 if semantics.size <= 1 << 32 else np.int64
            arrays = dict(occupied=occupied.astype(kind), labels=semantics.ravel()[occupied], shape=semantics.shape)
        for name, mask in zip(MASKS, masks):
            if mask is None:
                continue
            if storage == 'packed' and mask.shape[2] % 8 == 0:
                arrays[f'{name}_bits'] = np.packbits(mask, axis=2)
            else:
                arrays[name] = mask
    else:
        raise ValueError(f"storage must be 'dense', 'packed' or 'counts', found {storage!r}")
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def _names(path) -> set:
    if os.path.isdir(path):
        return {name[:-4] for name in os.listdir(path) if name.endswith('.npy')}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return set(archive.files)
    except FileNotFoundError:
        raise DataError(f'{path}: the file is missing, expected an npz file with fine labels') from None
    except Exception as error:  # damaged bytes raise a dozen kinds
        raise DataError(f'{path}: truncated or no npz file: {error}') from error


def _read(path, names) -> dict:
    if not os.path.isdir(path):
        return read_npz(path, names)
    try:
        return {name: np.load(os.path.join(path, f'{name}.npy'), mmap_mode='r', allow_pickle=False) for name in names}
    except Exception as error:
        raise DataError(f'{path}: cannot be read: {error}') from error
