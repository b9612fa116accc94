"""FB-OCC as one graph of standard operators, for a runtime on a vehicle.

As in the published deployment, whatever follows from calibration and motion alone (which pixel feeds which voxel, which
query sees which camera, how the remembered volumes are warped) is made on the host and given to the graph, and so is
the memory: the graph takes it and gives the new one back. ``DeployableFBOCC`` is the graph, ``DeployedStream`` the
host's part.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import ConfigError
from ...models.view_transforms.backward_projection import VisibleQueries
from ...ops import frustum_indices
from ...ops._backend import compiled
from ...ops.deform_attn import deform_attn_gather
from .history import FrameInfo, augmentation_matrix, warp_grid
from .stream import OccupancyStream


class DeployableFBOCC(nn.Module):
    """One frame of one vehicle: ``forward(**inputs)`` with tensors only, float32 and int64.

    Inputs, with N cameras of H x W pixels, K remembered frames of C channels on a Y x X x Z grid:

    * ``imgs`` (N, 3, H, W) normalised images;
    * ``mlp_input`` (1, N, 27) the numbers that describe the cameras (``camera_vector``);
    * ``ranks_depth``, ``ranks_feat``, ``ranks_bev`` (P,) of each frustum point inside the grid: its place among the
      depth probabilities (N, D, h, w), its pixel among (N, h, w), its cell among (Z, Y, X);
    * ``query_index``, ``image_index`` (R,), ``anchor_uv`` (R, A, 2), ``anchor_depth`` (R, A): ``VisibleQueries``;
      absent without backward projection;
    * ``start_of_sequence`` (1,) 1 or 0; ``grid`` (1, Y, X, Z, 3) where the present cells were in the remembered
      volumes, as grid_sample wants it; ``history_bev`` (1, K C, Y, X, Z) newest first and ``history_sweep_time`` (1, K)
      frames ago, any finite values at a start; all four absent for a model of single frames.

    P and R vary with the calibration. Outputs: ``pred_occupancy`` (1, classes, Y', X', Z') logits and, for a model that
    remembers, ``output_history_bev`` and ``output_history_sweep_time``, the next frame's inputs.

    Args:
        model: an ``FBOCC``; test-time augmentation is left out.
    """

    def __init__(self, model):
        super().__init__()
        if model.training:
            raise ConfigError('DeployableFBOCC: the model is in training mode, call eval() first')
        self.model = model

    @property
    def output_names(self) -> list[str]:
        names = ['pred_occupancy']
        return names + ['output_history_bev', 'output_history_sweep_time'] * bool(self.model.history_cat_num)

    def forward(
        self,
        imgs,
        mlp_input,
        ranks_depth,
        ranks_feat,
        ranks_bev,
        query_index=None,
        image_index=None,
        anchor_uv=None,
        anchor_depth=None,
        start_of_sequence=None,
        grid=None,
        history_bev=None,
        history_sweep_time=None,
    ):
        model = self.model
        context, depth = model.depth_net(model.image_features(imgs[None]), mlp_input)
        volume = self._pool(context, depth, ranks_depth, ranks_feat, ranks_bev)
        if model.backward_projection is not None:
            visible = VisibleQueries(query_index, image_index, anchor_uv, anchor_depth)
            refined = model.backward_projection.attend(context, depth, volume.mean(dim=-1), visible)[..., None]
            volume = volume + refined if model.readd else refined.expand_as(volume)
        if not model.history_cat_num:
            return (model.encode(volume),)
        frames, channels = model.history_cat_num, volume.shape[1]
        warped = F.grid_sample(history_bev, grid, model.interpolation_mode, 'zeros', align_corners=True)
        start = start_of_sequence.view(1, 1, 1, 1, 1)
        past = start * volume.repeat(1, frames, 1, 1, 1) + (1 - start) * warped
        ages = (1 - start_of_sequence) * (history_sweep_time + 1)
        fused = model._fuse(volume, past.unflatten(1, (frames, channels)), ages)
        history = torch.cat([volume, past[:, : (frames - 1) * channels]], dim=1)
        times = torch.cat([torch.zeros_like(ages[:, :1]), ages[:, :-1]], dim=1)
        return model.encode(fused), history, times

    def _pool(self, context, depth, ranks_depth, ranks_feat, ranks_bev):
        x, y, z = self.model.forward_projection.grid_size
        rows = context.float().permute(0, 1, 3, 4, 2).flatten(0, 3)
        points = depth.flatten()[ranks_depth][:, None] * rows[ranks_feat]
        volume = points.new_zeros(z * y * x, rows.shape[1]).index_add(0, ranks_bev, points)
        return volume.view(1, z, y, x, -1).permute(0, 4, 2, 3, 1)

    @torch.no_grad()
    def frame_inputs(self, inputs: dict, data_samples: list, memory: tuple | None = None) -> dict[str, torch.Tensor]:
        """The graph's inputs for a frame.

        Args:
            inputs, data_samples: a batch of one as ``FBOCC`` takes it.
            memory: the outputs ``output_history_bev`` and ``output_history_sweep_time`` of the frame before, and its
                ``bda`` (3, 3); None at the start of a sequence.
        """
        model = self.model
        cameras = model.cameras(inputs, data_samples)
        pose = cameras.sensor2keyego
        found = dict(
            imgs=inputs['imgs'][0, 0],
            mlp_input=model.depth_net.get_mlp_input(pose[..., :3, :3], pose[..., :3, 3], *cameras[1:]),
        )
        view = model.forward_projection
        points = view.ego_points(*cameras)
        voxel, point, offset = frustum_indices(points, view.grid_lower, view.grid_interval, view.grid_size)
        point = point[: int(offset[-1])]
        bins, (h, w) = points.shape[2], points.shape[3:5]
        found.update(
            ranks_depth=point,
            ranks_feat=point // (bins * h * w) * (h * w) + point % (h * w),
            ranks_bev=voxel.flatten()[point],
        )
        if model.backward_projection is not None:
            encoder = model.backward_projection.transformer.encoder
            visible = encoder.visible(*encoder.project(*cameras))
            found.update(
                query_index=visible.query, image_index=visible.image, anchor_uv=visible.uv, anchor_depth=visible.depth
            )
        if model.history_cat_num:
            found.update(self._memory_inputs(cameras.bda, data_samples[0], memory))
        return found

    def _memory_inputs(self, bda, data_sample, memory):
        model, view = self.model, self.model.forward_projection
        x, y, z = view.grid_size
        current = augmentation_matrix(bda[0].double())
        if memory is None:
            channels = model.history_keyframe_time_conv[0].out_channels
            history = bda.new_zeros(1, model.history_cat_num * channels, y, x, z)
            times = bda.new_zeros(1, model.history_cat_num)
            transform = torch.eye(4, dtype=torch.float64, device=bda.device)
        else:
            history, times, previous = memory
            motion = FrameInfo.of(data_sample).curr_to_prev.to(bda.device)
            transform = augmentation_matrix(previous.double()) @ motion @ torch.linalg.inv(current)
        grid = warp_grid((y, x, z), view.grid_lower, view.grid_interval, transform, model.voxel_center)
        return dict(
            start_of_sequence=bda.new_full((1,), float(memory is None)),
            grid=grid[None][..., [2, 0, 1]].contiguous(),
            history_bev=history,
            history_sweep_time=times,
        )


class DeployedStream(OccupancyStream):
    """One drive, frame after frame, through an exported graph.

    Args:
        model: the ``FBOCC`` in evaluation mode, for the host's part; its weights are not used.
        run: the graph: named inputs -> outputs in the order of ``output_names``; default the model itself.
    """

    def __init__(self, model, run: Callable[[dict], list] | None = None):
        self.graph = DeployableFBOCC(model)
        self.run = run or (lambda frame: self.graph(**frame))
        super().__init__(model)

    def reset(self) -> None:
        super().reset()
        self._memory = None

    def frame(self, inputs: dict, data_sample) -> dict[str, torch.Tensor]:
        """The graph's inputs for the next frame; arguments as of the call."""
        batch = self._place(inputs, data_sample)
        self._bda = batch['inputs']['bda'][0]
        return self.graph.frame_inputs(batch['inputs'], batch['data_samples'], self._memory)

    @torch.no_grad()
    def logits(self, inputs: dict, data_sample) -> torch.Tensor:
        """Logits (1, classes, Y, X, Z) of the next frame; arguments as of the call."""
        logits, *memory = self.run(self.frame(inputs, data_sample))
        self._memory = (*memory, self._bda) if memory else None
        return logits

    def __call__(self, inputs: dict, data_sample) -> torch.Tensor:
        head = self.model.occupancy_head
        return head.semantics(head.probabilities(self.logits(inputs, data_sample)))[0]


def export_onnx(model, frame: Mapping[str, torch.Tensor], path, opset: int = 20):
    """Write the graph of ``DeployableFBOCC`` as an ONNX file.

    Args:
        model: an ``FBOCC`` in evaluation mode, on the CPU.
        frame: inputs as of ``DeployableFBOCC.frame_inputs``; P and R of the file may be others.
        path: the file; weights of more than 2 GB go into ``<path>.data`` beside it.
        opset: 20 or later, which has 5D GridSample.

    Raises:
        ConfigError: the opset is older; onnx or onnxscript is not installed; the operators are not compiled.
    """
    if opset < 20:
        raise ConfigError(f'opset {opset}: GridSample of volumes is part of opset 20 and later')
    if not compiled('deform_attn'):
        raise ConfigError('the export needs the compiled operators: run make setup')
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'{error.name} is not installed: pip install -r requirements/export.txt') from error
    graph = DeployableFBOCC(model)
    points, rows = torch.export.Dim('points', min=1), torch.export.Dim('rows', min=1)
    dynamic = {name: {0: points} for name in ('ranks_depth', 'ranks_feat', 'ranks_bev')}
    dynamic |= {name: {0: rows} for name in ('query_index', 'image_index', 'anchor_uv', 'anchor_depth')}
    with torch.no_grad():
        program = torch.export.export(
            graph, (), dict(frame), dynamic_shapes={name: dynamic.get(name) for name in frame}, strict=False
        )
        program = program.run_decompositions({torch.ops.occforge.deform_attn.default: deform_attn_gather})
        made = torch.onnx.export(
            program,
            input_names=list(frame),
            output_names=graph.output_names,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    made.save(str(Path(path)))
