#!/usr/bin/env python3
"""CLIP's first layer for every image of ESAM info files, stored for training.

tools/precompute_clip_feats.py --info-pkl data/scannet200-sv/scannet200_sv_oneformer3d_infos_train.pkl ... \\
    --data-root data/scannet200-sv --clip-ckpt ViT-B-16.pt --device-list 0,1 --num-workers 4

For the image 2D/<scene>/color/<n>.jpg it writes clip_feat/<scene>/color/<n>.pt with {'pix': (192, H/8, W/8) half,
'global': (768,) half}. Files that exist are kept, so a killed run goes on where it stopped. --verify N compares N of
them with what the layer gives now, behind a random 1x1 layer: the L2 difference must be below 1e-3.
"""

import argparse
import os
import sys
import time

import _cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--info-pkl', nargs='+', required=True, help='info files, single frames or scenes')
    parser.add_argument('--data-root', required=True, help='folder below which the images are')
    parser.add_argument('--output-root', help='folder below which clip_feat is written (default: the data root)')
    parser.add_argument('--clip-ckpt', help="CLIP ViT-B/16's weights (OpenAI, open_clip, transformers); needed")
    parser.add_argument('--random-weights', action='store_true', help='random weights of seed 0, to try the commands')
    parser.add_argument('--device-list', default='cpu', help='cpu, or GPU numbers: 0,1 (default: %(default)s)')
    parser.add_argument('--num-workers', type=int, default=1, help='processes for each device (default: %(default)s)')
    parser.add_argument('--dtype', choices=('fp16', 'fp32'), default='fp16', help='of the files (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='write files anew that exist')
    parser.add_argument('--verify', type=int, default=0, metavar='N', help='compare N stored files with the layer')
    args = parser.parse_args(argv)
    if bool(args.clip_ckpt) == args.random_weights:
        parser.error('exactly one of --clip-ckpt and --random-weights is needed')
    if args.num_workers < 1:
        parser.error('--num-workers must be 1 or more')
    return args


def image_paths(info_files) -> list[str]:
    """The images of all info files, each once, in order."""
    from occforge.datasets.info_files import load_pickle
    from occforge.errors import DataError

    found: dict[str, None] = {}
    for path in info_files:
        content = load_pickle(path)
        if not isinstance(content, dict) or 'data_list' not in content:
            raise DataError(f"{path}: no ESAM info file, expected a dict with 'data_list'")
        for number, item in enumerate(content['data_list']):
            if 'img_paths' not in item and 'img_path' not in item:
                raise DataError(f'{path}: item {number} has neither img_path nor img_paths')
            found.update(dict.fromkeys(item.get('img_paths') or [item['img_path']]))
    return list(found)


def make_layer(args, device):
    import torch
    from occforge.systems.esam import ClipConv1
    from occforge.systems.esam.clip import read_conv1

    torch.manual_seed(0)
    width = len(read_conv1(args.clip_ckpt)) if args.clip_ckpt else 768
    return ClipConv1(pretrained=args.clip_ckpt, width=width).to(device).eval()


def device_of(name: str) -> str:
    return name if name == 'cpu' else f'cuda:{name}'


def work(args, images, device, number, queue):
    """One process: every so many-th image."""
    _cli.use_this_checkout()
    try:
        queue.put((number, compute(args, images, device)))
    except Exception as error:
        queue.put((number, f'{type(error).__name__}: {error}'))


def compute(args, images, device) -> dict:
    """Write the features of ``images``; what was read and written."""
    import torch
    from occforge.datasets.transforms.scannet import clip_path, read_image
    from occforge.fileio import atomic_write

    torch.set_num_threads(1)
    layer, dtype = make_layer(args, device), torch.float16 if args.dtype == 'fp16' else torch.float32
    counts = dict(written=0, kept=0, bytes_read=0, bytes_written=0)
    for name in images:
        target = os.path.join(args.output_root or args.data_root, clip_path(name))
        if os.path.isfile(target) and not args.overwrite:
            counts['kept'] += 1
            continue
        source = os.path.join(args.data_root, name)
        image = torch.from_numpy(read_image(source)).to(device)
        pix, mean = layer(image[None])
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with atomic_write(target) as file:
            torch.save({'pix': pix[0].to(dtype).cpu(), 'global': mean[0].to(dtype).cpu()}, file)
        counts['written'] += 1
        counts['bytes_read'] += os.path.getsize(source)
        counts['bytes_written'] += os.path.getsize(target)
    return counts


def verify(args, images) -> float:
    """Largest L2 difference of a pixel's feature behind a random 1x1 layer, stored against computed."""
    import torch
    from occforge.datasets.transforms.scannet import clip_path, read_image
    from occforge.errors import DataError

    layer = make_layer(args, 'cpu')
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(images), generator=generator)[: args.verify].tolist()
    worst = 0.0
    for name in (images[i] for i in order):
        path = os.path.join(args.output_root or args.data_root, clip_path(name))
        try:
            stored = torch.load(path, map_location='cpu', weights_only=True)['pix'].float()
        except (OSError, KeyError) as error:
            raise DataError(f'{path}: no features: {error}') from error
        pix, _ = layer(torch.from_numpy(read_image(os.path.join(args.data_root, name)))[None])
        if stored.shape != pix[0].shape:
            raise DataError(f'{path}: features have shape {tuple(stored.shape)}, expected {tuple(pix[0].shape)}')
        torch.manual_seed(0)
        reduce = torch.nn.Conv2d(len(stored), 256, 1)
        with torch.no_grad():
            difference = reduce(stored[None]) - reduce(pix)
        worst = max(worst, float(difference.pow(2).mean().sqrt()))
    return worst


def main(argv=None):
    args = parse_args(argv)
    _cli.use_this_checkout()
    import multiprocessing

    from occforge.errors import DataError, cli_errors

    with cli_errors():
        images = image_paths(args.info_pkl)
        devices = [device_of(name) for name in args.device_list.split(',') for _ in range(args.num_workers)]
        start = time.perf_counter()
        if len(devices) == 1:
            parts = [compute(args, images, devices[0])]
        else:
            context = multiprocessing.get_context('spawn')
            queue = context.Queue()
            processes = [
                context.Process(target=work, args=(args, images[i :: len(devices)], device, i, queue))
                for i, device in enumerate(devices)
            ]
            for process in processes:
                process.start()
            parts = [queue.get()[1] for _ in processes]
            for process in processes:
                process.join()
            failed = [part for part in parts if isinstance(part, str)]
            if failed:
                raise DataError(f'{len(failed)} of {len(parts)} processes failed: {failed[0]}')
        seconds = time.perf_counter() - start
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        print(
            f'{len(images)} images: {total["written"]} files written, {total["kept"]} were there; read '
            f'{total["bytes_read"] / 1e6:.1f} MB, written {total["bytes_written"] / 1e6:.1f} MB in {seconds:.1f} s'
        )
        if args.verify:
            worst = verify(args, images)
            print(f'stored against computed, {min(args.verify, len(images))} files: largest L2 difference {worst:.2e}')
            if worst >= 1e-3:
                raise DataError(f'the stored features differ by {worst:.2e}, expected less than 1e-3: other weights?')


if __name__ == '__main__':
    sys.exit(main())
