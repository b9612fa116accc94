"""What every converter of checkpoints does: read as data, rename, check that nothing is lost, write atomically.

A converter is a script beside this file::

    CONVERTER = Converter(__doc__, key_map=['mask3d -> backbone3d'], drop=['*.frustum'], targets=['backbone3d'])
    if __name__ == '__main__':
        run(CONVERTER)

Most need none: ``load_from = dict(path=..., key_map=...)`` renames while loading, and sparse kernels of any layout are
permuted there. A converter is for what happens once and for good: weights that are folded, files that are shared.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import _cli


@dataclass
class Converter:
    """One layout of checkpoints into another.

    Attributes:
        description: shown by --help.
        key_map: renames, as ``load_from.key_map`` takes them (``occforge.engine.partial_load``).
        targets: modules of the new layout. A tensor that is in none of them after renaming is an error, because it
            would be lost without a word.
        drop: names in the new layout that are left out on purpose (patterns): what the model computes itself.
        adapt: called with the renamed {name: tensor}; returns the new one. For what renaming cannot do.
    """

    description: str
    key_map: Sequence
    targets: Sequence[str]
    drop: Sequence[str] = ()
    adapt: Callable[[dict], dict] | None = None

    def convert(self, state: dict, source: str) -> tuple[dict, list[str]]:
        """The new {name: tensor}, and what was dropped.

        Raises:
            DataError: a name that no rule knows, or two that become one.
        """
        from occforge.engine.names import matches_any
        from occforge.engine.partial_load import Source
        from occforge.errors import DataError

        rename = Source(source, key_map=self.key_map).rename
        converted, origin, dropped, unknown = {}, {}, [], []
        for name, value in state.items():
            new = rename(name)
            if matches_any(self.drop, new):
                dropped.append(name)
            elif not matches_any(self.targets, new):
                unknown.append(name)
            elif new in converted:
                raise DataError(f'{source}: {origin[new]} and {name} both become {new}')
            else:
                converted[new], origin[new] = value, name
        if unknown or not converted:
            found = ', '.join(unknown[:3]) or 'nothing'
            raise DataError(
                f'{source}: {len(unknown)} of {len(state)} tensors have no place in the new layout ({found}); is it '
                'of the layout that this converter is for?'
            )
        return (self.adapt(converted) if self.adapt else converted), dropped


def run(converter: Converter, arguments: list[str] | None = None) -> None:
    """A converter's command line."""
    parser = _cli.Parser(converter.description)
    parser.add_argument('checkpoint', help='file in the old layout')
    parser.add_argument('out', help='file to write')
    parser.add_argument('--config', help='a config whose model the result is checked against')
    parser.add_argument('--force', action='store_true', help='replace an existing file')
    _cli.add_common(parser)
    args = _cli.parse(parser, arguments)
    _cli.prepare(args, ('checkpoint', args.checkpoint), ('config', args.config))
    if Path(args.out).exists() and not args.force:
        _cli.fail(f'{args.out}: exists already (--force replaces it)')
    _cli.use_this_checkout()
    from occforge.errors import cli_errors

    with cli_errors():
        _convert(converter, args)


def _convert(converter: Converter, args) -> None:
    from occforge.engine import read_checkpoint, trust_pickles, write_checkpoint
    from occforge.engine.checkpoint import fingerprint_of
    from occforge.engine.partial_load import weights_in

    if args.allow_unsafe_pickle is not None:
        trust_pickles(args.allow_unsafe_pickle)
    checkpoint = read_checkpoint(args.checkpoint)
    state, dropped = converter.convert(weights_in(checkpoint, args.checkpoint), args.checkpoint)
    meta = {**(checkpoint.get('meta') or {}), 'converted_from': fingerprint_of(args.checkpoint)['sha256']}
    write_checkpoint(dict(meta=meta, state_dict=state), args.out)
    print(f'{len(state)} tensors written to {args.out}; {len(dropped)} left out' + ''.join(f'\n  {n}' for n in dropped))
    if args.config is None:
        return
    cfg = _cli.set_up(args)
    from mmengine.registry import MODELS, init_default_scope
    from occforge.engine import load_partially, parse_load_from

    init_default_scope(cfg.get('default_scope') or 'mmdet3d')
    model = _cli.run(lambda: MODELS.build(cfg.model), cfg)
    for line in load_partially(model, parse_load_from(args.out)).lines():
        print(line)
