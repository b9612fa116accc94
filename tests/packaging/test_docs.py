"""What the pages under docs/ name exists: files, links, tools and their options, functions."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
BASH = [
    (page.name, line.strip())
    for page in PAGES
    for block in re.findall(r'```bash\n(.*?)```', page.read_text(), re.S)
    for line in block.splitlines()
    if line.startswith('python tools/')
]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_and_links_exist(page):
    text = page.read_text()
    paths = set(re.findall(r'\b((?:configs|tools|requirements|docs|tests|projects|csrc)/[\w./-]+\.\w+)', text))
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    links = re.findall(r'\]\((?!https?:)([^)#]+)\)', text)
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize('page, command', BASH)
def test_options_exist(page, command):
    tool, rest = re.search(r'(tools/\S+\.py)(.*)', command).groups()
    done = subprocess.run([sys.executable, tool, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = re.findall(r'(?<!\S)(--[a-z][\w-]*)', rest)
    assert not [option for option in options if option not in done.stdout]


@pytest.mark.parametrize('module', ['occforge.visualization', 'occforge.apis'])
def test_functions_exist(module):
    text = (ROOT / 'docs/visualization.md').read_text()
    names = set(re.findall(r'from ' + re.escape(module) + r' import ([\w, ]+)', text))
    names = {name.strip() for group in names for name in group.split(',')}
    if module == 'occforge.visualization':
        table = text.split('## Drawing from Python')[1].split('## The inferencer')[0]
        cells = re.findall(r'^\| (`.*?) \|', table, re.M)
        names |= {name for cell in cells for name in re.findall(r'`(\w+)(?:\(s\))?`', cell)}
        assert len(names) > 10
    own = importlib.import_module(module)
    assert names and all(hasattr(own, name) for name in names)


def test_every_feature_has_a_place():
    rows = re.findall(r'^\| ([^|]+) \| ([YPN]) \| ([^|]*) \|$', (ROOT / 'docs/features.md').read_text(), re.M)
    assert len(rows) > 30
    bare = [title for title, verdict, place in rows if verdict != 'N' and '`' not in place]
    assert bare == ['mAP, NDS']  # mmdet3d's own
