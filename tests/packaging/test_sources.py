"""No file of the repository does what this project promised not to do."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ME = Path(__file__).relative_to(ROOT)


def listed():
    done = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        files = [Path(line) for line in done.stdout.splitlines()]
    else:  # an unpacked source distribution
        files = [p.relative_to(ROOT) for p in ROOT.rglob('*') if not {'.venv', 'build', '.git'} & set(p.parts)]
    return sorted(p for p in files if (ROOT / p).is_file() and p != ME)


FILES = listed()
PYTHON = [p for p in FILES if p.suffix == '.py']
CODE = [p for p in PYTHON if p.parts[0] != 'tests']  # tests may build hostile files to see them refused
TEXT = [
    p for p in FILES if p.suffix in ('.py', '.md', '.cpp', '.cu', '.h', '.sh', '.txt', '.toml', '.yaml', '.json', '')
]


def dotted(node) -> str:
    """'torch.load' for such an expression, '' where it is something else; '.cuda' for a method of anything."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return ''


def calls(paths):
    for path in paths:
        for node in ast.walk(ast.parse((ROOT / path).read_text(), str(path))):
            if isinstance(node, ast.Call):
                yield f'{path}:{node.lineno}', dotted(node.func), {k.arg: k.value for k in node.keywords}


def is_true(node) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_checkpoints_and_arrays_load_as_data():
    wrong, asked_for = [], []
    for where, name, keywords in calls(CODE):
        if name == 'torch.load' and not is_true(keywords.get('weights_only')):
            if where.startswith('projects/occforge/engine/checkpoint.py:') and 'weights_only' in keywords:
                asked_for.append(where)  # --allow-unsafe-pickle
            else:
                wrong.append(f'{where}: torch.load without weights_only=True')
        if 'allow_pickle' in keywords and not (
            isinstance(keywords['allow_pickle'], ast.Constant) and keywords['allow_pickle'].value is False
        ):
            wrong.append(f'{where}: allow_pickle')
        if name in (
            'pickle.load',
            'pickle.loads',
            'dill.load',
            'joblib.load',
            'marshal.loads',
            'yaml.load',
            'mmengine.load',
        ):
            wrong.append(f'{where}: {name} (use occforge.datasets.info_files, or a safe loader)')
    assert not wrong and len(asked_for) == 1, '\n'.join(wrong + asked_for)


def test_no_device_is_assumed():
    wrong = [where for where, name, _ in calls(CODE) if name.endswith('.cuda') and name != 'torch.cuda']
    assert not wrong, wrong


def test_no_shell_strings_and_no_display():
    wrong = [
        f'{where}: {name}'
        for where, name, keywords in calls(CODE)
        if name in ('os.system', 'os.popen', 'cv2.imshow', 'cv2.waitKey', 'eval') or is_true(keywords.get('shell'))
    ]
    assert not wrong, wrong


def test_no_error_is_swallowed():
    wrong = []
    for path in CODE:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or dotted(node.type) in ('Exception', 'BaseException')
                if broad and all(isinstance(statement, ast.Pass) for statement in node.body):
                    wrong.append(f'{path}:{node.lineno}')
    assert not wrong, wrong


@pytest.mark.parametrize(
    'what, pattern',
    [
        ('a path of a developer machine', r'(?<![\w.])/(?:work|root|home/\w+|Users|mnt/\w+)/(?!workspace)'),
        ('an unfinished place', r'\b(?:TODO|FIXME|XXX|HACK)\b'),
        ('a merge conflict', r'^(?:<{7} |>{7} )'),
    ],
)
def test_texts(what, pattern):
    found = [
        f'{path}:{number}: {what}: {line.strip()[:100]}'
        for path in TEXT
        for number, line in enumerate((ROOT / path).read_text(errors='replace').splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, '\n'.join(found)


def test_only_small_files_and_no_data():
    wrong = [str(p) for p in FILES if (ROOT / p).stat().st_size > 600_000]
    wrong += [str(p) for p in FILES if p.suffix in ('.pth', '.pkl', '.bin', '.pcd', '.so', '.jpg', '.npy')]
    assert not wrong, wrong


def test_scripts_are_executable():
    import os

    wrong = [str(p) for p in FILES if (ROOT / p).read_bytes()[:2] == b'#!' and not os.access(ROOT / p, os.X_OK)]
    assert not wrong, wrong


def test_tools_use_the_package_beside_them():
    """An installed occforge must not answer for this checkout's tools."""
    wrong = []
    for path in (p for p in CODE if p.parts[0] == 'tools'):
        text = (ROOT / path).read_text()
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
        own = any(node.module and node.module.split('.')[0] == 'occforge' for node in nodes)
        if own and not ('_cli.use_this_checkout()' in text or "parents[2] / 'projects'" in text):
            wrong.append(str(path))
    assert [p for p in wrong if p not in ('tools/_cli.py', 'tools/doctor.py')] == []
