"""What the model remembers of a sequence, and how that is brought into the present frame.

The memory belongs to sequences, not to places in a batch: it is looked up by the sequence's key. So samples may stand
anywhere in a batch, several models or test-time variants keep theirs apart, and the memory of a rank can be saved.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ...errors import DataError


class FrameInfo(NamedTuple):
    """Where a frame stands in its sequence.

    Attributes:
        sequence: key of the sequence, anything hashable.
        start: whether it is the first frame.
        curr_to_prev: (4, 4) ego pose of this frame in the frame before (both at the LiDAR's moment).
        token, prev_token: names of this frame and of the one before; None: not known, not checked.
        last: whether it is the last frame, whose memory nobody will ask for.
    """

    sequence: object
    start: bool
    curr_to_prev: torch.Tensor
    token: str | None = None
    prev_token: str | None = None
    last: bool = False

    @classmethod
    def of(cls, data_sample) -> 'FrameInfo':
        """From a data sample's meta information (fields that NuScenesOccDataset sets with ``sequences_split_num``)."""
        meta = data_sample.metainfo
        missing = [
            name for name in ('sequence_group_idx', 'start_of_sequence', 'curr_to_prev_ego_rt') if name not in meta
        ]
        if missing:
            raise DataError(
                f'sample {meta.get("token")}: the meta information lacks {", ".join(missing)}, which temporal fusion '
                'needs: set the dataset field sequences_split_num'
            )
        key = int(meta['sequence_group_idx'])
        if 'sequence_visit' in meta:  # it may be played twice at the same time, by places of different progress
            key = f'{key} (visit {meta["sequence_visit"]})'
        return cls(
            key,
            bool(meta['start_of_sequence']),
            torch.as_tensor(meta['curr_to_prev_ego_rt'], dtype=torch.float64),
            meta.get('token'),
            meta.get('prev_token'),
            bool(meta.get('end_of_sequence', False)),
        )


class SequenceState(NamedTuple):
    """Memory of one sequence after a frame.

    Attributes:
        frames: (K, C, Y, X, Z) volumes in the grid of that frame, newest first.
        ages: (K,) float32 how many frames ago each was seen.
        bda: (3, 3) float64 augmentation of that frame's ego coordinates.
        token: name of that frame, or None.
    """

    frames: torch.Tensor
    ages: torch.Tensor
    bda: torch.Tensor
    token: str | None


class HistoryMemory:
    """States of the sequences that are under way.

    Args:
        max_sequences: so many are kept at most; the longest untouched one goes first. Sequences that end are dropped at
            once, so this only bounds what abandoned ones hold.
        joins: so many sequences may be met in their middle without an error, as where training begins to remember.
    """

    def __init__(self, max_sequences: int = 16, joins: int = 0):
        self.max_sequences, self.joins = max_sequences, joins
        self._states: OrderedDict = OrderedDict()

    def __len__(self):
        return len(self._states)

    def clear(self) -> None:
        self._states.clear()

    def get(self, frame: FrameInfo) -> SequenceState | None:
        """The state before ``frame``; None at the start of a sequence, while nothing at all is remembered, and for
        ``joins`` sequences more.

        Raises:
            DataError: other sequences are remembered but not this one, or it was left at another frame: the frames do
                not come in order.
        """
        if frame.start or not self._states:
            return None
        state = self._states.get(frame.sequence)
        remedy = (
            'Temporal fusion needs the frames of each sequence in order: use batch_sampler=dict('
            "type='SequenceBatchSampler') for training and 'SequenceTestBatchSampler' for testing"
        )
        if state is None and self.joins > 0:
            self.joins -= 1
            return None
        if state is None:
            raise DataError(
                f'frame {frame.token}: sequence {frame.sequence} continues, but nothing of it is remembered. {remedy}'
            )
        if None not in (state.token, frame.prev_token) and state.token != frame.prev_token:
            raise DataError(
                f'frame {frame.token}: the frame before it is {frame.prev_token}, but sequence {frame.sequence} was '
                f'left at {state.token}. {remedy}'
            )
        return state

    def put(self, frame: FrameInfo, state: SequenceState, at_least: int = 1) -> None:
        """Remember ``state`` after ``frame``; ``at_least`` (the batch size) sequences are always kept."""
        self._states.pop(frame.sequence, None)
        if not frame.last:
            self._states[frame.sequence] = state
        while len(self._states) > max(self.max_sequences, at_least):
            self._states.popitem(last=False)

    def state_dict(self) -> dict:
        """Plain data for a checkpoint."""
        return {key: tuple(state) for key, state in self._states.items()}

    def load_state_dict(self, states: dict) -> None:
        self._states = OrderedDict((key, SequenceState(*state)) for key, state in states.items())


def warp_grid(shape, lower, step, transform, voxel_center=False):
    """Where to read a remembered volume.

    Args:
        shape: (Y, X, Z) of the volume.
        lower, step: metres, (x, y, z) of the grid's corner and cell.
        transform: (4, 4) float64, from the present (augmented) frame to the remembered one.
        voxel_center: take a cell's centre for its place. False: its lower corner, with which the published weights
            were trained; equal where ``transform`` is a translation, up to a cell off where it flips an axis.

    Returns:
        (Y, X, Z, 3) float32 (x, y, z) for ``grid_sample`` with ``align_corners=True``: -1 the first cell, 1 the last.
    """
    size = (shape[1], shape[0], shape[2])
    transform = transform.double()
    lower = transform.new_tensor(lower)
    step = transform.new_tensor(step)
    offset = lower + step / 2 if voxel_center else lower
    axes = [torch.arange(count, dtype=torch.float64, device=transform.device) for count in (size[1], size[0], size[2])]
    y, x, z = torch.meshgrid(*axes, indexing='ij')
    points = torch.stack([x, y, z], dim=-1) * step + offset
    points = points @ transform[:3, :3].T + transform[:3, 3]
    cells = (points - offset) / step
    return (2 * cells / (cells.new_tensor(size) - 1) - 1).float()


def augmentation_matrix(bda):
    """(3, 3) -> (4, 4) float64."""
    matrix = torch.eye(4, dtype=torch.float64, device=bda.device)
    matrix[:3, :3] = bda
    return matrix


def warp(frames, grid, mode='bilinear'):
    """Read volumes (K, C, Y, X, Z) at ``warp_grid``'s places; zero outside. Same shape."""
    volume = frames.flatten(0, 1)[None].float()
    return F.grid_sample(volume, grid[None, ..., [2, 0, 1]], mode, 'zeros', align_corners=True).view(frames.shape)
