"""The test path of UniOcc's detectors as one graph of standard operators. Testing renders nothing, so no render
operator is in it; what follows from calibration and motion alone is made on the host and given to the graph."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ...errors import ConfigError
from ...models.backbones import stereo_feature
from ...models.geometry import sensor_to_key_ego, sensor_to_older_sensor
from ...models.view_transforms import camera_vector
from ...ops import frustum_indices


class DeployableUniOcc(nn.Module):
    """One vehicle at one moment: ``forward(**inputs)`` with tensors only, float32 and int64.

    Inputs, with N cameras of H x W pixels, F frames that are lifted (the key frame first) and T = F + 1 frames with
    stereo depth, else T = F:

    * ``imgs`` (T, N, 3, H, W) normalised images;
    * ``mlp_input`` (F, N, 27) the numbers that describe the cameras (``camera_vector``);
    * ``ranks_depth``, ``ranks_feat``, ``ranks_bev`` (P,) of each frustum point inside the grid: its place among the
      depth probabilities (F, N, D, h, w), its pixel among (F, N, h, w), its cell among (F, Z, Y, X);
    * ``stereo_matrix`` (F, N, 3, 3), ``stereo_shift`` (F, N, 3), ``stereo_rots`` (F, N, 2, 2), ``stereo_trans``
      (F, N, 2): ``LSSViewTransformerBEVStereo.stereo_projection``; absent without stereo depth.

    P varies with the calibration. Outputs: ``density`` (1, X, Y, Z, 2) and ``semantic`` (1, X, Y, Z, 17) of
    ``RenderOcc``; ``pred_occupancy`` (1, X, Y, Z, classes) logits of ``BEVStereo4DOCC``.

    Args:
        model: a ``StereoVolumeDetector`` in evaluation mode.
    """

    def __init__(self, model):
        super().__init__()
        if model.training:
            raise ConfigError('DeployableUniOcc: the model is in training mode, call eval() first')
        self.model = model

    @property
    def output_names(self) -> list[str]:
        return ['density', 'semantic'] if hasattr(self.model, 'density_mlp') else ['pred_occupancy']

    def forward(
        self,
        imgs,
        mlp_input,
        ranks_depth,
        ranks_feat,
        ranks_bev,
        stereo_matrix=None,
        stereo_shift=None,
        stereo_rots=None,
        stereo_trans=None,
    ):
        model, view = self.model, self.model.img_view_transformer
        frames, cameras = mlp_input.shape[:2]
        features, stereo = model.image_features(imgs[:frames])
        cost = None
        if view.stereo:
            oldest = stereo_feature(model.img_backbone, imgs[frames])
            previous = torch.cat([stereo[cameras:], oldest])  # of each frame, the one before it
            projection = (stereo_matrix, stereo_shift, stereo_rots, stereo_trans)
            grid = view.previous_pixels(*(part.flatten(0, 1) for part in projection), *stereo.shape[2:])
            cost = view.match(stereo, previous, grid)
        context, depth = view.depth_net(features.flatten(0, 1), mlp_input.flatten(0, 1), cost)
        volumes = self._pool(context, depth, ranks_depth, ranks_feat, ranks_bev, frames)
        if model.pre_process_net is not None:
            volumes = model.pre_process_net(volumes)[0]
        volume = volumes.flip(0).flatten(0, 1)[None]  # oldest first
        volume = model.img_bev_encoder_neck(model.img_bev_encoder_backbone(volume))
        if model.occ_upsample is not None:
            volume = model.occ_upsample(volume)
        features = model.final_conv(volume)
        if hasattr(model, 'density_mlp'):
            return tuple(model.to_label_grid(*model.voxel_outputs(features)))
        return (model.classify(features.permute(0, 4, 3, 2, 1)),)

    def _pool(self, context, depth, ranks_depth, ranks_feat, ranks_bev, frames):
        view = self.model.img_view_transformer
        x, y, z = view.grid_size
        rows = context.float().permute(0, 2, 3, 1).flatten(0, 2)
        points = depth.flatten()[ranks_depth][:, None] * rows[ranks_feat]
        volume = points.new_zeros(frames * z * y * x, rows.shape[1]).index_add(0, ranks_bev, points)
        volume = volume.view(frames, z, y, x, -1).permute(0, 4, 1, 2, 3)
        return volume.transpose(1, 2).flatten(1, 2) if view.collapse_z else volume

    @torch.no_grad()
    def frame_inputs(self, inputs: dict, data_samples: list | None = None) -> dict[str, torch.Tensor]:
        """The graph's inputs for a batch of one as the model takes it."""
        model, view = self.model, self.model.img_view_transformer
        frames = model.num_adj + 1
        key = None
        if model.key_ego == 'lidar':
            key = model._lidar_ego_pose(data_samples, inputs['imgs'].device)
        poses = sensor_to_key_ego(inputs['sensor2ego'], inputs['ego2global'], key)
        cameras = [
            [inputs[name][:, frame] for name in ('intrins', 'post_rots', 'post_trans')] for frame in range(frames)
        ]
        vectors = [camera_vector(poses[:, 0], *cameras[frame], inputs['bda']) for frame in range(frames)]
        points = torch.cat(
            [view.ego_points(poses[:, frame], *cameras[frame], inputs['bda']) for frame in range(frames)]
        )
        voxel, point, offset = frustum_indices(points, view.grid_lower, view.grid_interval, view.grid_size)
        point = point[: int(offset[-1])]
        bins, (h, w) = points.shape[2], points.shape[3:5]
        found = dict(
            imgs=inputs['imgs'][0, : model.num_frames],
            mlp_input=torch.cat(vectors),
            ranks_depth=point,
            ranks_feat=point // (bins * h * w) * (h * w) + point % (h * w),
            ranks_bev=voxel.flatten()[point],
        )
        if view.stereo:
            motion = sensor_to_older_sensor(inputs['sensor2ego'], inputs['ego2global'])
            parts = [view.stereo_projection(motion[:, frame], *cameras[frame]) for frame in range(frames)]
            names = ('stereo_matrix', 'stereo_shift', 'stereo_rots', 'stereo_trans')
            found.update({name: torch.cat(part).float() for name, part in zip(names, zip(*parts))})
        return found


def export_onnx(model, frame: Mapping[str, torch.Tensor], path, opset: int = 20):
    """Write the graph of ``DeployableUniOcc`` as an ONNX file.

    Args:
        model: a ``StereoVolumeDetector`` in evaluation mode, on the CPU.
        frame: inputs as of ``DeployableUniOcc.frame_inputs``; P of the file may be another.
        path: the file; weights of more than 2 GB go into ``<path>.data`` beside it.
        opset: 18 or later.

    Raises:
        ConfigError: the opset is older, or onnx or onnxscript is not installed.
    """
    if opset < 18:
        raise ConfigError(f'opset {opset}: expected 18 or later')
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'{error.name} is not installed: pip install -r requirements/export.txt') from error
    graph = DeployableUniOcc(model)
    points = torch.export.Dim('points', min=1)
    dynamic = {name: {0: points} for name in ('ranks_depth', 'ranks_feat', 'ranks_bev')}
    with torch.no_grad():
        program = torch.export.export(
            graph, (), dict(frame), dynamic_shapes={name: dynamic.get(name) for name in frame}, strict=False
        )
        made = torch.onnx.export(
            program,
            input_names=list(frame),
            output_names=graph.output_names,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    made.save(str(Path(path)))
