#!/usr/bin/env python3
"""Write the deployable part of FB-OCC or UniOcc as ONNX, and compare what onnxruntime computes from it with the model.

tools/export_onnx.py configs/fbocc/fbocc-r50-cbgs_depth_16f_16x4_20e_trt.py CKPT --out fbocc.onnx
tools/export_onnx.py CONFIG CKPT --data --frames 10       compare on the config's test set, not on a made-up drive

Standard operators of opset 20. What follows from calibration and motion is an input, and so is the memory
(occforge.systems.fbocc.export and occforge.systems.uniocc.export say which). UniOcc's test path renders nothing.
Needs: pip install -r requirements/export.txt
"""

import logging

import _cli


def parse_args(arguments=None):
    parser = _cli.Parser(__doc__)
    parser.add_argument('config', help='config file (.py, .yaml)')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', default='fbocc.onnx', metavar='FILE', help='(default: %(default)s)')
    parser.add_argument('--opset', type=int, default=20, help='20 or later (default: %(default)s)')
    parser.add_argument('--frames', type=int, default=3, metavar='N', help='of the comparison; 0: none (default: 3)')
    parser.add_argument('--data', action='store_true', help="compare on the first frames of the config's test set")
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-3,
        help='largest difference of a probability that is no error (default: %(default)s)',
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override fields of the config')
    args = _cli.parse(parser, arguments)
    if args.frames < 0 or args.tolerance <= 0:
        parser.error('--frames must not be negative, --tolerance above 0')
    args.device = 'cpu'
    args.local_rank = 0
    _cli.prepare(args, ('config', args.config), ('checkpoint', args.checkpoint))
    return args


UNIOCC = ('RenderOcc', 'UniOcc', 'RenderOcc2D', 'BEVStereo4DOCC', 'UniOccTeacherStudent')


def build(cfg, checkpoint: str):
    """The config's model with the weights of ``checkpoint``, all of them, on the CPU in evaluation mode."""
    from mmdet3d.registry import MODELS
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from occforge.engine.partial_load import load_partially, parse_load_from
    from occforge.errors import ConfigError

    if cfg.model.get('type') not in ('FBOCC', *UNIOCC):
        raise ConfigError(
            f'{cfg.filename}: model.type is {cfg.model.get("type")!r}, only FBOCC, {", ".join(UNIOCC)} can be exported'
        )
    init_default_scope('mmdet3d')
    model = revert_sync_batchnorm(_cli.run(lambda: MODELS.build(cfg.model), cfg))
    load_partially(model, parse_load_from(checkpoint), min_loaded=1.0)
    model = getattr(model, 'tested', model)  # of teacher and student
    return model.eval()


def frames_of_data(cfg, count: int):
    """(inputs, data sample) of the first frames of the test set."""
    from mmdet3d.registry import DATASETS

    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    for index in range(min(count, len(dataset))):
        item = dataset[index]
        yield item['inputs'], item['data_samples']


def made_up_frames(model, count: int):
    """(inputs, data sample) of a drive on a curve with nuScenes' cameras that see noise."""
    import torch
    from mmdet3d.structures import Det3DDataSample
    from occforge.datasets.synthetic_city.rig import load_rig
    from pyquaternion import Quaternion

    rig = load_rig()
    view = getattr(model, 'forward_projection', None) or model.img_view_transformer
    height, width = view.input_size
    moments = getattr(model, 'num_frames', 1)
    scale = width / rig.image_size[0]
    intrins = torch.stack([torch.tensor(camera.intrinsic, dtype=torch.float32) for camera in rig.cameras])
    sensor2ego = torch.eye(4, dtype=torch.float64).repeat(len(rig.cameras), 1, 1)
    for matrix, camera in zip(sensor2ego, rig.cameras):
        matrix[:3, :3] = torch.tensor(Quaternion(camera.rotation).rotation_matrix)
        matrix[:3, 3] = torch.tensor(camera.translation)
    post_rots = torch.diag(torch.tensor([scale, scale, 1.0])).repeat(len(rig.cameras), 1, 1)
    post_trans = torch.tensor([0.0, height - scale * rig.image_size[1], 0.0]).repeat(len(rig.cameras), 1)  # sky cut off
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pose = torch.tensor(Quaternion(axis=[0, 0, 1], radians=0.03 * number).transformation_matrix)
        pose[:2, 3] = torch.tensor([600 + 4.0 * number, 1600 + 0.2 * number])
        sample = Det3DDataSample()
        sample.set_metainfo(dict(cam_names=[camera.name for camera in rig.cameras], ego2global=pose.tolist()))
        older = pose.repeat(moments, len(rig.cameras), 1, 1)
        older[:, :, 0, 3] -= 4.0 * torch.arange(moments)[:, None]  # metres a frame
        shape = (moments, len(rig.cameras), height, width, 3)
        inputs = dict(
            imgs=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            sensor2ego=sensor2ego.repeat(moments, 1, 1, 1),
            ego2global=older,
            intrins=intrins.repeat(moments, 1, 1, 1),
            post_rots=post_rots.repeat(moments, 1, 1, 1),
            post_trans=post_trans.repeat(moments, 1, 1),
            bda=torch.eye(3),
        )
        yield inputs, sample


def compare_uniocc(model, path: str, frames):
    """As ``compare``, for UniOcc's detectors: opacities and classes, or probabilities of the baseline."""
    import onnxruntime
    import torch
    from occforge.systems.uniocc.export import DeployableUniOcc

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = {each.name for each in session.get_inputs()}
    graph = DeployableUniOcc(model)
    for inputs, sample in frames:
        frame = graph.frame_inputs(*batch_of_one(model, inputs, sample))
        with torch.no_grad():
            ours = graph(**frame)
        theirs = session.run(None, {name: value.numpy() for name, value in frame.items() if name in names})
        a, b = ([each[0].softmax(-1) for each in outputs] for outputs in (ours, map(torch.from_numpy, theirs)))
        difference = max(float((one - other).abs().max()) for one, other in zip(a, b))
        yield difference, min(float((x.argmax(-1) == y.argmax(-1)).float().mean()) for x, y in zip(a, b))


def batch_of_one(model, inputs, sample):
    """What the model takes, of a sample as the pipeline packs it."""
    batch = model.data_preprocessor(
        dict(inputs={name: [value] for name, value in inputs.items()}, data_samples=[sample])
    )
    return batch['inputs'], batch['data_samples']


def compare(model, path: str, frames):
    """Yields for each frame the largest difference of a probability and the share of equal classes."""
    import onnxruntime
    import torch
    from occforge.systems.fbocc.export import DeployedStream

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = {each.name for each in session.get_inputs()}

    def run(frame):
        given = {name: value.numpy() for name, value in frame.items() if name in names}
        return [torch.from_numpy(each) for each in session.run(None, given)]

    head = model.occupancy_head
    ours, theirs = DeployedStream(model), DeployedStream(model, run)
    for inputs, sample in frames:
        a, b = (head.probabilities(stream.logits(inputs, sample)) for stream in (ours, theirs))
        yield float((a - b).abs().max()), float((head.semantics(a) == head.semantics(b)).float().mean())


def main() -> int:
    args = parse_args()
    _cli.use_this_checkout()
    for name in ('torch.onnx', 'onnx_ir'):  # which would list the layers of packages that are not installed
        logging.getLogger(name).setLevel(logging.ERROR)
    from occforge.engine import load_config
    from occforge.errors import cli_errors

    with cli_errors():
        cfg = load_config(args.config, args.cfg_options or ())
        model = build(cfg, args.checkpoint)
        uniocc = hasattr(model, 'extract_volume')
        if uniocc:
            from occforge.systems.uniocc.export import DeployableUniOcc, export_onnx
        else:
            from occforge.systems.fbocc.export import DeployedStream, export_onnx

        frames = list(
            frames_of_data(cfg, max(args.frames, 1)) if args.data else made_up_frames(model, max(args.frames, 1))
        )
        if uniocc:
            first = DeployableUniOcc(model).frame_inputs(*batch_of_one(model, *frames[0]))
        else:
            first = DeployedStream(model).frame(*frames[0])
        export_onnx(model, first, args.out, args.opset)
        print(
            f'{args.out}: opset {args.opset}, {sum(each.numel() for each in model.parameters()) / 1e6:.1f} M parameters'
        )
        wrong = False
        if args.frames:
            print('frame  largest difference of a probability  equal classes')
            for number, (difference, equal) in enumerate(
                (compare_uniocc if uniocc else compare)(model, args.out, frames)
            ):
                print(f'{number:5}  {difference:35.1e}  {equal:13.4%}')
                wrong |= not difference <= args.tolerance
        if wrong:
            _cli.fail(f'{args.out}: onnxruntime computes something else (--tolerance {args.tolerance:g})')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
