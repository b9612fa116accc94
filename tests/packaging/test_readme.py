"""What the README names exists: files, tools, their options, pictures, links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```bash\n(.*?)```', README, re.S)
COMMANDS = [line.split('  #')[0].strip() for block in BLOCKS for line in block.splitlines() if 'tools/' in line]


def test_files_exist():
    paths = set(re.findall(r'\b((?:configs|tools|requirements|docs)/[\w./-]+\.\w+)', README))
    paths |= set(re.findall(r'\]\((?!https?:)([^)#]+)\)', README))
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert not missing
    for name in re.findall(r'`\.\.\.(_\w+\.py)`', README):
        assert list((ROOT / 'configs').rglob(f'*{name}')), name


@pytest.mark.parametrize('command', [c for c in COMMANDS if re.search(r'python tools/\S+\.py', c)])
def test_options_exist(command):
    tool, rest = re.search(r'(tools/\S+\.py)(.*)', command).groups()
    options = re.findall(r'(?<!\S)\[?(--[a-z][\w-]*)', rest)
    subcommand = [word for word in rest.split()[:1] if tool.endswith('create_data.py')]
    done = subprocess.run([sys.executable, tool, *subcommand, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unknown = [option for option in options if option not in done.stdout]
    assert not unknown


def test_make_targets_exist():
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M))
    named = {word for code in re.findall(r'`(make [a-z -]+)', README) for word in code.split()[1:2]}
    named |= {line.split()[1] for block in BLOCKS for line in block.splitlines() if line.startswith('make ')}
    assert named and named <= targets


def test_pictures_are_small():
    for path in (ROOT / 'docs').rglob('*.png'):
        assert path.stat().st_size < 300_000, path
