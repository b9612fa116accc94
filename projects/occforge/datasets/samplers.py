"""Batch samplers that play sequences: every place of a batch shows the frames of one sequence after the other.

For models that remember. Both go into a dataloader's ``batch_sampler``, beside ``sampler=dict(type='DefaultSampler',
shuffle=False)``, which only passes the dataset on; the dataset needs ``sequences_split_num``.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from mmdet3d.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from occforge.errors import ConfigError

from .nuscenes_occupancy import Visit


def _sequences(sampler, user: str) -> list[list[int]]:
    """The frames of each sequence of the sampler's dataset, in order."""
    dataset = sampler.dataset
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    groups = getattr(dataset, 'sequence_groups', None)
    if groups is None:
        raise ConfigError(
            f'{user} needs a dataset with sequences: set its field sequences_split_num (found a '
            f'{type(dataset).__name__} without; wrappers such as CBGSDataset tear sequences apart)'
        )
    groups = np.asarray(groups)
    cuts = np.flatnonzero(groups[1:] != groups[:-1]) + 1
    return [part.tolist() for part in np.split(np.arange(len(groups)), cuts)]


@DATA_SAMPLERS.register_module()
class SequenceBatchSampler(Sampler):
    """Training: an endless stream of sequences in random order, dealt out to the places of all processes' batches.

    The stream is one random permutation of the sequences after another. Of its elements place g of all G = processes x
    batch size takes number g, g + G, g + 2 G and so on, and plays them frame by frame; so a sequence stays in one
    process and one place. Which batch comes when depends on the seed and G alone; epochs cut the stream into equal
    pieces, sequences go on from one epoch to the next.

    Neighbouring frames show much the same, which small batches learn badly from. With ``interleave`` each place has so
    many sequences under way (G as many times larger) and shows a frame of a randomly chosen one at a time; the model
    remembers ``interleave`` x batch size sequences.

    Args:
        sampler: mmengine's DefaultSampler; gives the dataset, the seed and the epoch.
        batch_size: of this process.
        epoch_factor: an epoch has int(samples // G * epoch_factor) batches. FB-OCC's schedules count epochs of 4.554
            passes, the length of the class-balanced data set that they never resample.
        seed: of the order; default the sampler's.
        rank_and_world: this process's number and how many there are; default: the process group's.
        interleave: sequences that a place has under way; fewer where there are not so many.

    Yields lists of ``Visit``: the sample's index and how often its sequence has been played before.

    Raises:
        ConfigError: the dataset has no sequences, or fewer than there are places.
    """

    def __init__(
        self,
        sampler,
        batch_size: int,
        epoch_factor: float = 1.0,
        seed: int | None = None,
        rank_and_world: tuple[int, int] | None = None,
        interleave: int = 1,
    ):
        if interleave < 1:
            raise ConfigError(f'SequenceBatchSampler.interleave is {interleave}, expected 1 or more')
        self.sampler, self.batch_size = sampler, batch_size
        self.sequences = _sequences(sampler, type(self).__name__)
        self.rank, self.world = rank_and_world or get_dist_info()
        self.seed = sampler.seed if seed is None else seed
        places = self.world * batch_size
        if len(self.sequences) < places:
            raise ConfigError(
                f'{len(self.sequences)} sequences for {places} places ({self.world} processes x batch size '
                f"{batch_size}): raise the dataset's sequences_split_num or take a smaller batch"
            )
        self.interleave = min(interleave, len(self.sequences) // places)
        samples = sum(len(sequence) for sequence in self.sequences)
        self._length = max(1, int(samples // places * epoch_factor))
        self._skip = 0

    def __len__(self) -> int:
        return self._length

    def skip_batches(self, count: int) -> None:
        """Leave out the first ``count`` batches of the next iteration, without loading them."""
        self._skip = count

    def __iter__(self) -> Iterator[list[Visit]]:
        first, self._skip = self._skip, 0
        start = getattr(self.sampler, 'epoch', 0) * self._length + first
        stream = _Stream(len(self.sequences), self.seed)
        places = self.world * self.batch_size
        end = start + self._length - first
        turns = torch.randint(self.interleave, (end,), generator=torch.Generator().manual_seed(self.seed)).tolist()
        shown = [turns[:start].count(turn) for turn in range(self.interleave)]
        players = [
            [
                _player(
                    self.sequences,
                    stream,
                    (turn * self.world + self.rank) * self.batch_size + place,
                    places * self.interleave,
                    shown[turn],
                )
                for place in range(self.batch_size)
            ]
            for turn in range(self.interleave)
        ]
        for turn in turns[start:]:
            yield [next(player) for player in players[turn]]


class _Stream:
    """Random access to the endless stream of sequence numbers: (sequence, permutation it belongs to)."""

    def __init__(self, size: int, seed: int):
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)
        self.numbers: list[int] = []

    def __getitem__(self, position: int) -> tuple[int, int]:
        while position >= len(self.numbers):
            self.numbers += torch.randperm(self.size, generator=self.generator).tolist()
        return self.numbers[position], position // self.size


def _player(sequences, stream: _Stream, place: int, places: int, start: int) -> Iterator[Visit]:
    """The frames that a place shows, from its frame number ``start`` on."""
    position = place
    while True:
        number, visit = stream[position]
        frames = sequences[number]
        if start >= len(frames):
            start -= len(frames)
        else:
            for index in frames[start:]:
                yield Visit(index, visit)
            start = 0
        position += places


@DATA_SAMPLERS.register_module()
class SequenceTestBatchSampler(Sampler):
    """Testing: every frame exactly once, whole sequences on one process, whatever the number of processes.

    The longest sequences are dealt out first, each to the process that has the fewest frames so far; a process plays
    up to ``batch_size`` of its sequences side by side, so its last batches may be smaller.

    Args:
        sampler: mmengine's DefaultSampler; gives the dataset.
        batch_size: sequences side by side.
        rank_and_world: as in ``SequenceBatchSampler``.

    Raises:
        ConfigError: the dataset has no sequences.
    """

    def __init__(self, sampler, batch_size: int, rank_and_world: tuple[int, int] | None = None):
        self.sampler, self.batch_size = sampler, batch_size
        rank, world = rank_and_world or get_dist_info()
        sequences = _sequences(sampler, type(self).__name__)
        loads, own = [0] * world, []
        for number in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i)):
            lightest = loads.index(min(loads))
            loads[lightest] += len(sequences[number])
            if lightest == rank:
                own.append(number)
        self.batches = self._batches([sequences[number] for number in sorted(own)])

    def _batches(self, sequences: list[list[int]]) -> list[list[int]]:
        waiting = iter(sequences)
        playing: list[list[int]] = []  # the frames still to come of each sequence under way
        batches = []
        while True:
            playing = [frames for frames in playing if frames]
            playing += [list(frames) for frames in itertools.islice(waiting, self.batch_size - len(playing))]
            if not playing:
                return batches
            batches.append([frames.pop(0) for frames in playing])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
