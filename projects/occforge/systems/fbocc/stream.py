"""Frame-by-frame inference of models that remember."""

import torch
from mmengine.structures import BaseDataElement

from .history import HistoryMemory


class OccupancyStream:
    """One drive, frame after frame.

    Gives what batched testing gives for the same frames, and keeps its memory apart from the model's, so several
    streams may share one model. ::

        stream = OccupancyStream(model)
        for frame in drive:
            semantics = stream(frame['inputs'], frame['data_samples'])
        stream.reset()

    ``FBOCC.open_stream`` makes one. For what takes frames from any model, ``step`` and ``result`` give data samples.

    Args:
        model: an ``FBOCC`` in evaluation mode.
    """

    def __init__(self, model):
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forget the drive; the next frame starts a new one."""
        self.memories = [HistoryMemory(max_sequences=1) for _ in self.model.variants]
        self._previous_pose = None
        self._sample = None

    @torch.no_grad()
    def __call__(self, inputs: dict, data_sample) -> torch.Tensor:
        """Semantics (X, Y, Z) uint8 of the next frame.

        Args:
            inputs: of one sample, as PackOccInputs makes them (without a batch dimension).
            data_sample: its data sample. ``metainfo['ego2global']`` (4, 4), the ego pose at the LiDAR's moment, says
                how the vehicle moved since the last frame; nothing else is asked about sequences.
        """
        batch = self._place(inputs, data_sample)
        probability = self.model.predict_probability(batch['inputs'], batch['data_samples'], self.memories)
        return self.model.occupancy_head.semantics(probability)[0]

    def step(self, inputs: dict, data_sample) -> None:
        """Take the next frame; arguments as of the call."""
        self._sample = data_sample.clone()
        self._sample.pred_occ = BaseDataElement(semantics=self(inputs, data_sample))

    def result(self):
        """The last frame's data sample with ``pred_occ.semantics``; None before the first."""
        return self._sample

    def _place(self, inputs: dict, data_sample) -> dict:
        """The batch of one frame that stands after the last one in the only sequence."""
        sample = data_sample.clone()
        pose = torch.as_tensor(data_sample.metainfo['ego2global'], dtype=torch.float64)
        start = self._previous_pose is None
        motion = torch.eye(4, dtype=torch.float64) if start else torch.linalg.inv(self._previous_pose) @ pose
        self._previous_pose = pose
        place = dict(sequence_group_idx=0, start_of_sequence=start, end_of_sequence=False, curr_to_prev_ego_rt=motion)
        sample.set_metainfo(place)
        sample.pop('prev_token', None)
        batch = dict(inputs={key: [value] for key, value in inputs.items()}, data_samples=[sample])
        return self.model.data_preprocessor(batch)
