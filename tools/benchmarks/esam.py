#!/usr/bin/env python
"""Times ESAM frame by frame, by stage: frames per second of the whole and of everything but the masks.

    tools/benchmarks/esam.py                                              class-agnostic ESAM-E, random weights
    tools/benchmarks/esam.py configs/ESAM/ESAM_online_bifusion_scannet.py --frames 40 --checkpoint CKPT
    tools/benchmarks/esam.py CONFIG --folder data/scannet200-mv/2D/scene0568_00
    tools/benchmarks/esam.py CONFIG --checkpoint CKPT --frames 500        does a long walk slow it down?

Frames are those of a synthetic room, or of a folder (color, depth, pose, intrinsic.txt). Masks come from the room or
from --masks; without any, the built-in regions of depth and colour are computed and timed as a stage of their own. With
random weights the number of instances is not that of a trained model, nor is the time of what follows the decoder. A
stage's time is its own, without that of the stages inside it.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli
from _cli import positive

CONFIG = Path(__file__).resolve().parents[2] / 'configs/ESAM-E_CA/ESAM-E_online_stream.py'
MASKS = 'masks'
EARLY, LATE = slice(50, 100), slice(450, 500)  # frames whose times are compared
# stage -> where its function is: attributes of the model, or a name in a module
MODEL_STAGES = {
    'voxels': 'voxelize',
    'U-Net': 'backbone',
    'Tiny-SA': 'neck',
    'Bi-Fusion': 'bi_encoder',
    'U-Net (Bi-Fusion)': 'bi_encoder.backbone3d',
    'Tiny-SA (Bi-Fusion)': 'bi_encoder.neck3d',
    'CLIP': 'bi_encoder.backbone2d',
    'memory': 'memory',
    'superpoints': 'pool',
    'decoder': 'decoder',
    'merging': 'merge_frame',
}
MODULE_STAGES = {
    'points': ('occforge.systems.esam.stream', 'sample_frame'),
    MASKS: ('occforge.datasets.rgbd', 'segment_image'),
    'clusters': ('occforge.datasets.rgbd', 'cluster_unmasked'),
    'instances': ('occforge.systems.esam.esam', 'frame_instances'),
}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', default=str(CONFIG), help='an online one (default: ESAM-E, streaming)')
    parser.add_argument('--checkpoint', help='default: random weights')
    parser.add_argument('--folder', type=Path, help='frames (default: of a synthetic room)')
    parser.add_argument('--masks', type=Path, help="folder of the frames' masks")
    parser.add_argument('--frames', type=positive, default=20, help='(default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=2, help='frames before those that count (default: %(default)s)')
    parser.add_argument('--num-sample', type=positive, help="points of a frame (default: the config's, else 20000)")
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--threads', type=positive, help="CPU threads (default: torch's)")
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--out', type=Path, help='write the numbers to this JSON file as well')
    return parser.parse_args(argv)


class Stopwatch:
    """Own time of nested stages. ``frames`` holds {stage: seconds} of each frame that was timed.

    Args:
        wait: called before the clock is read (a GPU finishes its work).
    """

    def __init__(self, wait=lambda: None):
        self.wait = wait
        self.frames: list[dict] = []
        self._running: list[list] = []  # [stage, seconds of the stages inside]

    def clock(self) -> float:
        self.wait()
        return time.perf_counter()

    @contextmanager
    def frame(self):
        """What is inside is one frame; 'other' is what no stage has taken."""
        self.frames.append(defaultdict(float))
        with self.stage('other'):
            yield

    @contextmanager
    def stage(self, name: str):
        if not self.frames:
            yield
            return
        start = self.clock()
        self._running.append([name, 0.0])
        try:
            yield
        finally:
            spent = self.clock() - start
            _, inside = self._running.pop()
            self.frames[-1][name] += spent - inside
            if self._running:
                self._running[-1][1] += spent

    def timed(self, name: str, function):
        def call(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return call


@contextmanager
def probes(model, watch: Stopwatch):
    """Inside, the stages of a model and of the frames before it are timed."""
    with ExitStack() as stack:
        for name, path in MODEL_STAGES.items():
            owner, _, last = path.rpartition('.')
            try:
                owner = model.get_submodule(owner)
            except AttributeError:
                continue
            part = getattr(owner, last, None)
            if part is None:
                continue
            if hasattr(part, 'forward'):
                stack.enter_context(mock.patch.object(part, 'forward', watch.timed(name, part.forward)))
            else:
                stack.enter_context(mock.patch.object(owner, last, watch.timed(name, part)))
        for name, (module, function) in MODULE_STAGES.items():
            module = importlib.import_module(module)
            stack.enter_context(mock.patch.object(module, function, watch.timed(name, getattr(module, function))))
        yield


def room_frames(count: int):
    """(rgb, depth in mm, pose, camera, masks) of a walk through a synthetic room."""
    import numpy as np
    from occforge.datasets.synthetic_rooms.generate import render, segment_labels, trajectory
    from occforge.datasets.synthetic_rooms.room import make_room
    from occforge.datasets.transforms.scannet import INTRINSICS

    rng = np.random.default_rng(0)
    room, camera = make_room(rng), INTRINSICS['scannet']
    scene = room.scene()
    for pose in trajectory(room, count, rng):
        depth, colour, part, face = render(room, scene, pose, camera)
        masks = segment_labels(room, part, face).astype(np.int64)
        yield colour.clip(0, 255).astype(np.uint8), (1000 * depth).astype(np.float32), pose, camera, masks


def folder_frames(folder: Path, masks: Path | None, count: int):
    """The same of a folder of frames."""
    from esam_stream import frame_numbers
    from occforge.datasets.preparation.scannet import intrinsics_of, read_frame, read_masks
    from occforge.datasets.transforms.scannet import INTRINSICS

    camera = intrinsics_of(folder, INTRINSICS['scannet'])
    for number in frame_numbers(folder, most=count):
        read = read_frame(folder, str(number))
        if read is not None:
            yield (*read, camera, read_masks(masks, str(number)))


def summary(frames: list[dict]) -> dict:
    """Median seconds of each stage, frames per second of all and without the masks; of 500 frames and more
    ``late_over_early``: how much longer frames 450 to 500 take than frames 50 to 100, without the masks."""
    stages = {name: statistics.median(frame.get(name, 0.0) for frame in frames)
              for name in sorted({name for frame in frames for name in frame})}  # fmt: skip
    whole = statistics.median(sum(frame.values()) for frame in frames)
    each = [sum(frame.values()) - frame.get(MASKS, 0.0) for frame in frames]
    numbers = dict(seconds=stages, frames_per_second=1 / whole)
    numbers['frames_per_second_without_masks'] = 1 / statistics.median(each)
    if len(each) >= LATE.stop:
        numbers['late_over_early'] = statistics.median(each[LATE]) / statistics.median(each[EARLY])
    return numbers


def main(argv=None) -> int:
    args = parse_arguments(argv)
    _cli.use_this_checkout()
    import torch
    from occforge.apis import Inferencer
    from occforge.errors import ConfigError, cli_errors

    if args.threads:
        torch.set_num_threads(args.threads)
    with cli_errors():
        inferencer = Inferencer(args.config, args.checkpoint, args.device, args.cfg_options)
        model = inferencer.model
        if not hasattr(model, 'open_frame_stream'):
            raise ConfigError(f'{args.config}: {type(model).__name__} takes no frames one by one')
        cuda = inferencer.device.type == 'cuda'
        watch = Stopwatch(torch.cuda.synchronize if cuda else lambda: None)
        count = args.warmup + args.frames
        stream = model.open_frame_stream(**({} if args.num_sample is None else dict(num_sample=args.num_sample)))
        frames = room_frames(count) if args.folder is None else folder_frames(args.folder, args.masks, count)
        with probes(model, watch):
            for rgb, depth, pose, camera, masks in frames:
                with watch.frame():
                    stream.step(rgb, depth, pose, intrinsic=camera, masks=masks)
        timed = watch.frames[args.warmup :]
        if not timed:
            raise ConfigError(f'{len(watch.frames)} frames, {args.warmup} of them before those that count')
        numbers = summary(timed)
        scene = stream.result()
    device = torch.cuda.get_device_name() if cuda else f'{_cli.processor_name()}, {torch.get_num_threads()} threads'
    about = f'{len(timed)} frames of {len(scene.points) // len(watch.frames)} points, {len(scene.ids)} instances'
    print(f'{device}, {Path(args.config).stem}: {about}\n')
    total = sum(numbers['seconds'].values())
    print('| stage | ms | share |\n| --- | ---: | ---: |')
    for name, seconds in sorted(numbers['seconds'].items(), key=lambda item: -item[1]):
        print(f'| {name} | {1e3 * seconds:.1f} | {100 * seconds / total:.0f} % |')
    print(f'\n{numbers["frames_per_second"]:.1f} frames per second, ', end='')
    print(f'{numbers["frames_per_second_without_masks"]:.1f} without the masks')
    if 'late_over_early' in numbers:
        print(f'frames 450 to 500 take {numbers["late_over_early"]:.2f} times as long as frames 50 to 100')
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        document = dict(numbers, device=device, config=args.config, frames=len(timed), instances=len(scene.ids))
        args.out.write_text(json.dumps(document, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
