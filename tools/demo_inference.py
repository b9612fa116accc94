#!/usr/bin/env python3
"""Run a trained model on a few samples and save what it says.

tools/demo_inference.py CONFIG CKPT --number 3 --out-dir out            the first samples of the config's test data
tools/demo_inference.py CONFIG CKPT TOKEN TOKEN --out-dir out           these samples
tools/demo_inference.py CONFIG CKPT FOLDER --out-dir out                all samples of a data folder
tools/demo_inference.py CONFIG CKPT --formats png html --truth          with the labels beside the prediction
tools/demo_inference.py CONFIG CKPT --stream                            one after another, as a vehicle sees them

Writes <out-dir>/<task>/<token>.<format>. npz is the data (occupancy: Occ3D's submission form, which tools/eval_occ.py
scores), png a picture, html a page to turn and slice in a browser, ply a mesh or coloured points.
"""

import _cli


def parse_args(arguments=None):
    parser = _cli.Parser(__doc__)
    parser.add_argument('config', help='config file (.py, .yaml)')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='*', metavar='INPUT', help='sample token or number, data folder or info file')
    parser.add_argument('--out-dir', default='outputs', metavar='DIR', help='(default: %(default)s)')
    parser.add_argument(
        '--formats', nargs='+', choices=('npz', 'ply', 'png', 'html'), default=['npz', 'png'], help='default: npz png'
    )
    parser.add_argument('-n', '--number', type=int, default=5, help='without INPUT: samples (default: 5; 0: all)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='(default: 1)')
    parser.add_argument('--data-root', metavar='DIR', help="folder of the data, in place of the config's")
    parser.add_argument('--truth', action='store_true', help='read the labels, too, and show them')
    parser.add_argument('--stream', action='store_true', help='a model that remembers sees the samples as one drive')
    _cli.add_common(parser)
    args = _cli.parse(parser, arguments)
    if args.number < 0 or args.batch_size < 1:
        parser.error('--number must be 0 or more, --batch-size 1 or more')
    _cli.prepare(args, ('config', args.config), ('checkpoint', args.checkpoint))
    return args


def main(arguments=None) -> None:
    args = parse_args(arguments)
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        from occforge.apis import Inferencer
        from occforge.engine import trust_pickles

        if args.allow_unsafe_pickle is not None:
            trust_pickles(args.allow_unsafe_pickle)
        inferencer = Inferencer(
            args.config,
            args.checkpoint,
            args.device,
            args.cfg_options,
            data_root=args.data_root,
            with_labels=args.truth,
        )
        inputs = [int(text) if text.isdigit() else text for text in args.inputs]
        if not inputs:
            inputs = list(range(min(args.number or len(inferencer.dataset), len(inferencer.dataset))))
        if args.stream:
            stream = inferencer.stream()
            scene = None
            for dataset, number in inferencer.samples(inputs):
                info = dataset.get_data_info(number)
                if scene not in (None, info.get('scene_token')):
                    stream.reset()
                scene = info.get('scene_token')
                report(stream.step_sample(dataset, number).save(args.out_dir, args.formats))
        else:
            for prediction in inferencer.iterate(inputs, args.batch_size):
                report(prediction.save(args.out_dir, args.formats))


def report(paths) -> None:
    for path in paths:
        print(path)


if __name__ == '__main__':
    main()
