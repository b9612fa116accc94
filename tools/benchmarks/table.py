#!/usr/bin/env python
"""Makes a Markdown table of the JSON files of the benchmarks; with --into puts it between the marks of that file.

    python tools/benchmarks/table.py build/benchmarks/*.json [--into csrc/README.md]

``make bench-table`` does it for what ``make bench`` wrote.
"""

import argparse
import json
from pathlib import Path

BEGIN, END = '<!-- figures -->', '<!-- end of figures -->'


def cells(row: dict) -> list[str]:
    peers = [
        f'{values["ratio"]:.1f} × {name} ({values["seconds"] * 1e3:.1f} ms, {values["peak_bytes"] / 1e6:.0f} MB)'
        for name, values in row.get('peers', {}).items()
    ]
    limit = f'{row["fraction_of_limit"]:.2f} {row["limited_by"]}' if 'fraction_of_limit' in row else ''
    moved = f'{row["bytes"] / 1e6:.1f}' if row.get('bytes') else ''
    flops = f'{row["flops"] / 1e9:.2f}' if row.get('flops') else ''
    measured = f'{row["seconds"] * 1e3:.2f}', moved, flops, limit, f'{row["peak_bytes"] / 1e6:.1f}'
    return [row['name'], *measured, '; '.join(peers)]


def table(records: list[dict]) -> str:
    lines = []
    for record in records:
        about = [record['device'], f'{record["threads"]} threads', record.get('machine'), record.get('date')]
        if 'copy_bytes_per_second' in record:
            about += [f'copy {record["copy_bytes_per_second"] / 1e9:.1f} GB/s']
            about += [f'matrix product {record["product_flops_per_second"] / 1e9:.0f} GFLOP/s']
        lines += ['', ', '.join(part for part in about if part) + ':', '']
        lines += ['| operator | ms | MB | GFLOP | of the limit | peak MB | times as fast as |']
        lines += ['| --- | ---: | ---: | ---: | --- | ---: | --- |']
        lines += [f'| {" | ".join(cells(row))} |' for row in record['rows']]
    return '\n'.join(lines).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', type=Path, nargs='+', help='what --out of the benchmarks wrote')
    parser.add_argument('--into', type=Path, help=f'file with the lines {BEGIN} and {END}')
    args = parser.parse_args()
    try:
        text = table([json.loads(path.read_text()) for path in args.files])
        target = args.into.read_text() if args.into else ''
    except OSError as error:
        parser.error(f'{error.filename}: {error.strerror}')
    except (ValueError, LookupError, TypeError) as error:
        parser.error(f'{", ".join(map(str, args.files))}: not what the benchmarks write with --out ({error})')
    if args.into is None:
        print(text)
        return
    before, mark, rest = target.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        parser.error(f'{args.into}: the lines {BEGIN} and {END} are wanted, in this order')
    args.into.write_text(f'{before}{BEGIN}\n\n{text}\n\n{END}{after}')


if __name__ == '__main__':
    main()
