#!/usr/bin/env python3
"""What is in a checkpoint, and what of it a config's model would take.

tools/inspect_checkpoint.py CKPT                      modules, classes, origin, SHA-256
tools/inspect_checkpoint.py CKPT CONFIG               the report that training would write, without training
tools/inspect_checkpoint.py CKPT CONFIG --json F      the same as a file, every tensor named
tools/inspect_checkpoint.py CKPT CONFIG --load_from.leave "['bbox_head']"

CONFIG's load_from, if it is a dict, says how tensors are renamed and adapted.
"""

import sys

import _cli


def parse_args(arguments=None):
    parser = _cli.Parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('config', nargs='?', help='config file (.py, .yaml)')
    parser.add_argument('--json', metavar='FILE', help='write the whole report')
    parser.add_argument('--depth', type=int, default=1, metavar='N', help='parts of a name that make a module (1)')
    _cli.add_common(parser)
    args = _cli.parse(parser, arguments)
    _cli.prepare(args, ('checkpoint', args.checkpoint), ('config', args.config))
    return args


def main() -> None:
    args = parse_args()
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        if args.config is None:
            describe_file(args)
        else:
            report_loading(args)


def describe_file(args) -> None:
    from occforge.engine import read_checkpoint, trust_pickles
    from occforge.engine.checkpoint import fingerprint_of, model_type_of
    from occforge.engine.partial_load import classes_of, weights_in

    if args.allow_unsafe_pickle is not None:
        trust_pickles(args.allow_unsafe_pickle)
    checkpoint = read_checkpoint(args.checkpoint)
    state = weights_in(checkpoint, args.checkpoint)
    meta = checkpoint.get('meta') or {}
    versions = [(name, meta.get(f'{name}_version')) for name in ('mmengine', 'mmcv', 'mmdet3d')]
    whole = 'state_dict' in checkpoint or 'model' in checkpoint
    facts = dict(
        model=model_type_of(checkpoint),
        epoch=meta.get('epoch'),
        iteration=meta.get('iter'),
        classes=classes_of(checkpoint),
        written_by=', '.join(f'{name} {version}' for name, version in versions if version) or None,
        training_state='optimizer' in checkpoint,
        entries=list(map(str, checkpoint)) if whole else ['weights alone'],
        **fingerprint_of(args.checkpoint),
    )
    modules: dict = {}
    for name, value in state.items():
        row = modules.setdefault('.'.join(name.split('.')[: args.depth]), dict(tensors=0, elements=0, types=[]))
        row['tensors'] += 1
        row['elements'] += value.numel()
        kind = str(value.dtype).removeprefix('torch.')
        if kind not in row['types']:
            row['types'].append(kind)
    for name, value in facts.items():
        if value is not None:
            print(f'{name}: {", ".join(map(str, value)) if isinstance(value, list) else value}')
    width = max(map(len, modules))
    print(f'{"module".ljust(width)}  tensors     elements  types')
    for name, row in modules.items():
        print(f'{name.ljust(width)}  {row["tensors"]:7d}  {row["elements"]:11,d}  {", ".join(row["types"])}')
    total = sum(row['elements'] for row in modules.values())
    print(f'{"all".ljust(width)}  {len(state):7d}  {total:11,d}')
    if args.json:
        tensors = {name: dict(shape=list(v.shape), dtype=str(v.dtype)) for name, v in state.items()}
        write_json(args.json, dict(**facts, modules=modules, tensors=tensors))


def report_loading(args) -> None:
    cfg = _cli.set_up(args)
    from mmengine.registry import MODELS, init_default_scope
    from occforge.engine.partial_load import load_partially, parse_load_from, with_path
    from occforge.engine.runner import class_names_of
    from occforge.errors import ConfigError

    init_default_scope(cfg.get('default_scope') or 'mmdet3d')
    model = _cli.run(lambda: MODELS.build(cfg.model), cfg)
    spec = parse_load_from(with_path(cfg.get('load_from'), args.checkpoint))
    minimum, spec.min_loaded = spec.min_loaded, None
    loader = cfg.get('train_dataloader') or cfg.get('test_dataloader') or {}
    report = load_partially(model, spec, class_names_of(loader.get('dataset')))
    for line in report.lines(limit=sys.maxsize if args.depth > 1 else 10):
        print(line)
    if args.json:
        report.write(args.json)
    if minimum is not None and report.share < minimum:
        raise ConfigError(f'{args.checkpoint}: gives {report.share:.1%} of the parameters, min_loaded is {minimum:.1%}')


def write_json(path, content) -> None:
    import json

    from occforge.fileio import atomic_write

    with atomic_write(path, 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1)


if __name__ == '__main__':
    main()
