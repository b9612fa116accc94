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
    """A capability that is claimed names a file, folder or make target that is there."""
    rows = re.findall(r'^\| ([^|]+) \| ([YPN]) \| ([^|]*) \|', (ROOT / 'docs/features.md').read_text(), re.M)
    assert len(rows) > 45
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M)
    for title, verdict, place in rows:
        named = [name.split()[0] for name in re.findall(r'`([^`]+)`', place) if '/' in name or (ROOT / name).is_file()]
        assert all((ROOT / name).exists() for name in named), title
        assert verdict == 'N' or named, title
        assert all(target in targets for target in re.findall(r'`make (\S+)`', place)), title


@pytest.mark.parametrize('page', ['configs.md', 'ops.md'])
def test_examples_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    scope = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(), re.S):
        exec(compile(block, page, 'exec'), scope)


def test_every_operator_is_on_its_page():
    text = (ROOT / 'docs/ops.md').read_text()
    assert not [name for name in importlib.import_module('occforge.ops').__all__ if f'`{name}' not in text]


def test_every_config_is_on_its_page():
    text = (ROOT / 'docs/configs.md').read_text()
    table = text.split('## What there is')[1].split('## Fields')[0]
    folder = ROOT / 'configs'
    listed = {path for pattern in re.findall(r'`([\w./*+-]+\.(?:py|yaml))`', table) for path in folder.glob(pattern)}
    files = {path for path in folder.rglob('*') if path.suffix in ('.py', '.yaml')}
    assert not [path.name for path in sorted(files - listed) if '_base_' not in path.parts]
    named = re.findall(r'^\| ((?:`[^`|]+`(?:, )?)+) \| [^|]+ \| [\d., ]+ \|$', text, re.M)
    scored = [name for cell in named for name in re.findall(r'`([^`]+)`', cell)]
    assert len(scored) > 10 and all((folder / name).is_file() for name in scored)


def test_every_hook_is_on_the_page_of_configs():
    import occforge
    from mmengine.registry import HOOKS

    occforge.register_all_modules()
    text = (ROOT / 'docs/configs.md').read_text()
    own = {kind.__name__ for kind in HOOKS.module_dict.values() if kind.__module__.startswith('occforge.')}
    assert own and not [name for name in sorted(own) if f'`{name}`' not in text]
