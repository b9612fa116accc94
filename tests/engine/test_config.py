import textwrap

import pytest
from occforge.engine import load_config
from occforge.errors import ConfigError

BASE = """
use_mask = True
width = 8
model = dict(type='A', use_mask=use_mask, head=dict(width=width), neck=dict(width=width))
linked_fields_model = [
    dict(name='use_mask', value=use_mask, to='model.use_mask'),
    dict(name='width', value=width, to=['model.head.width', 'model.neck.width']),
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_dataloader = dict(batch_size=2, num_workers=4, persistent_workers=True, prefetch_factor=2)
val_dataloader = dict(batch_size=1, num_workers=2, persistent_workers=True)
pipeline = [dict(type='Load', size=3), dict(type='Pack')]
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    write('base.py', BASE)
    return write


def sides(cfg):
    return cfg.use_mask, cfg.model.use_mask


# ------------------------------------------------------------------------------------------------------ linked fields
@pytest.mark.parametrize('text', ['use_mask = True', 'model = dict(type='])
def test_editing_the_file(write, text):
    edited = BASE.replace('use_mask = True', 'use_mask = False')
    if text != 'use_mask = True':
        edited = BASE.replace('use_mask=use_mask, head', 'use_mask=False, head')
    assert sides(load_config(write('edited.py', edited))) == (False, False)


@pytest.mark.parametrize(
    'child',
    [
        'use_mask = False',
        'model = dict(use_mask=False)',
        "model = {'use_mask': False}",
        'use_mask = False\nmodel = dict(use_mask=False)',
        'model = _base_.model\nmodel.use_mask = False',
        'model = dict(**dict(use_mask=False))',
        'use_mask = not _base_.use_mask',
        'flag = False\nmodel = dict(use_mask=flag)',
    ],
)
def test_a_child_config(write, child):
    path = write('child.py', f"_base_ = ['base.py']\n{child}\n")
    assert sides(load_config(path)) == (False, False)


@pytest.mark.parametrize('override', ['use_mask=False', 'model.use_mask=False'])
def test_the_command_line(write, override):
    assert sides(load_config(write('base.py', BASE), [override])) == (False, False)


def test_without_a_change(write):
    child = write('child.py', "_base_ = ['base.py']\nmodel = dict(head=dict(depth=2))\n")
    cfg = load_config(child)
    assert sides(cfg) == (True, True)
    assert cfg.model.head.to_dict() == dict(width=8, depth=2)


@pytest.mark.parametrize(
    'middle, last, expected',
    [
        ('use_mask = False', 'model = dict(use_mask=True)', True),
        ('model = dict(use_mask=False)', 'use_mask = True', True),
        ('use_mask = False', 'model = dict(head=dict(depth=1))', False),
        ('x = 1', 'use_mask = False', False),
    ],
)
def test_the_last_layer_wins(write, middle, last, expected):
    write('middle.py', f"_base_ = ['base.py']\n{middle}\n")
    path = write('last.py', f"_base_ = ['middle.py']\n{last}\n")
    assert sides(load_config(path)) == (expected, expected)


@pytest.mark.parametrize('override', ['use_mask=True', 'model.use_mask=True'])
def test_the_command_line_wins_over_a_child_although_it_names_the_base_value(write, override):
    child = write('child.py', "_base_ = ['base.py']\nuse_mask = False\n")
    assert sides(load_config(child, [override])) == (True, True)


def test_both_changed_differently_is_an_error(write):
    child = write('child.py', "_base_ = ['base.py']\nwidth = 16\nmodel = dict(neck=dict(width=32))\n")
    with pytest.raises(ConfigError, match=r'child.py.*width=16, model.neck.width=32'):
        load_config(child)
    with pytest.raises(ConfigError, match=r'command line.*use_mask=False, model.use_mask=True'):
        load_config(write('base.py', BASE), ['use_mask=False', 'model.use_mask=True'])


def test_several_targets_follow(write):
    cfg = load_config(write('base.py', BASE), ['model.neck.width=16'])
    assert (cfg.width, cfg.model.head.width, cfg.model.neck.width) == (16, 16, 16)


def test_links_of_two_bases_live_together(write):
    write(
        'other.py',
        'scale = 1\ndata = dict(scale=scale)\n'
        "linked_fields_data = [dict(name='scale', value=scale, to='data.scale')]\n",
    )
    cfg = load_config(write('child.py', "_base_ = ['base.py', 'other.py']\nscale = 2\nuse_mask = False\n"))
    assert sides(cfg) == (False, False) and cfg.data.scale == 2


@pytest.mark.parametrize(
    'child, expected',
    [
        ('', (8, 8)),  # what the child only inherits on the other side follows
        ('train_cfg = dict(val_interval=2)', (8, 8)),
        ('train_cfg = dict(max_epochs=epochs)', (8, 8)),
        ('train_cfg = dict(max_epochs=9)', (9, 9)),  # as where the base file itself is edited
        ('train_cfg = dict(max_epochs=12)', (12, 12)),  # said, although it is the base's
        ('train_cfg = dict(max_epochs=epochs + 1)', (9, 9)),
    ],
)
def test_a_childs_own_link(write, child, expected):
    write('schedule.py', 'train_cfg = dict(max_epochs=12, val_interval=1)\n')
    path = write(
        'child.py',
        f"_base_ = ['schedule.py']\nepochs = 8\n{child}\n"
        "linked_fields = [dict(name='epochs', value=epochs, to='train_cfg.max_epochs')]\n",
    )
    cfg = load_config(path)
    assert (cfg.epochs, cfg.train_cfg.max_epochs) == expected
    assert cfg.linked_fields[0]['value'] == expected[0]
    grandchild = write('grandchild.py', "_base_ = ['child.py']\nepochs = 3\n")
    assert load_config(grandchild).train_cfg.max_epochs == 3


def test_links_of_the_base_hold_beside_a_childs_list(write):
    path = write(
        'child.py',
        "_base_ = ['base.py']\nwidth = 16\nuse_mask = False\ndepth = 1\nmodel = dict(depth=2)\n"
        "linked_fields_model = [dict(name='depth', value=depth, to='model.depth')]\n",
    )
    cfg = load_config(path, ['model.neck.width=24'])
    assert sides(cfg) == (False, False)
    assert (cfg.depth, cfg.width, cfg.model.head.width) == (2, 24, 24)
    assert [entry['value'] for entry in cfg.linked_fields_model] == [2]


def test_a_replaced_model_need_not_have_the_field(write):
    cfg = load_config(
        write('child.py', "_base_ = ['base.py']\nmodel = dict(_delete_=True, type='B')\nuse_mask = False\n")
    )
    assert cfg.model.to_dict() == dict(type='B')


def test_the_dumped_config_reads_as_the_same(write, tmp_path):
    cfg = load_config(write('child.py', "_base_ = ['base.py']\nuse_mask = False\n"), ['width=16'])
    cfg.dump(str(tmp_path / 'dumped.py'))
    assert load_config(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


def test_a_broken_entry_is_named(write):
    with pytest.raises(ConfigError, match=r'linked_fields.0.*name=, value=, to='):
        load_config(write('x.py', "linked_fields = [dict(name='a')]"))


# --------------------------------------------------------------------------------------------------------- overrides
@pytest.mark.parametrize(
    'override, path, value',
    [
        ('optimizer.lr=5e-5', 'optim_wrapper.optimizer.lr', 5e-5),
        ('optim_wrapper.optimizer.lr=1', 'optim_wrapper.optimizer.lr', 1),
        ('pipeline.0.size=[1,2]', 'pipeline.0.size', [1, 2]),
        ('pipeline.1.type=Other', 'pipeline.1.type', 'Other'),
        ('+model.new.deep=x', 'model.new.deep', 'x'),
        ('load_from=a=b.pth', 'load_from', 'a=b.pth'),
        ('randomness.seed=3', 'randomness.seed', 3),
        ('seed=3', 'randomness.seed', 3),
        ('model.use_mask=None', 'model.use_mask', None),
    ],
)
def test_overrides(write, override, path, value):
    node = load_config(write('base.py', BASE), [override])
    for part in path.split('.'):
        node = node[int(part)] if isinstance(node, list) else node[part]
    assert node == value


def test_no_workers_means_no_persistent_ones(write):
    cfg = load_config(write('base.py', BASE), ['data.workers_per_gpu=0'])
    assert cfg.train_dataloader.to_dict() == dict(batch_size=2, num_workers=0, persistent_workers=False)
    assert cfg.val_dataloader.num_workers == 0 and not cfg.val_dataloader.persistent_workers


def test_a_dataloader_that_is_switched_off_stays_off(write):
    cfg = load_config(write('base.py', BASE), ['val_dataloader=None', 'data.workers_per_gpu=0'])
    assert cfg.val_dataloader is None and cfg.train_dataloader.num_workers == 0


@pytest.mark.parametrize(
    'override, hint',
    [
        ('modle.use_mask=1', 'model.use_mask'),
        ('model.usemask=1', 'model.use_mask'),
        ('optim_wrapper.lr=1', 'optim_wrapper.optimizer.lr'),
        ('optimizer.learning=1', 'no such field'),
        ('pipeline.7.type=x', 'no such field'),
    ],
)
def test_a_mistyped_override_is_an_error_with_the_nearest_name(write, override, hint):
    with pytest.raises(ConfigError, match=hint) as error:
        load_config(write('base.py', BASE), [override])
    assert override.split('=')[0] in str(error.value)


@pytest.mark.parametrize('override', ['lr', '=3', 'model.width.x=1'])
def test_an_override_that_is_none(write, override):
    with pytest.raises(ConfigError, match='override'):
        load_config(write('base.py', BASE), [override])


# ------------------------------------------------------------------------------------------------------ bad and YAML
@pytest.mark.parametrize(
    'text, message',
    [
        ("_base_ = ['absent.py']", 'absent.py'),
        ('a = (', 'SyntaxError'),
        ("_base_ = ['base.py']\nx = dict(a={{_base_.nope}})", 'nope'),
        ("_base_ = ['base.py', 'base2.py']", 'Duplicate key'),
        ("custom_imports = dict(imports=['not_there_at_all'])", 'not_there_at_all'),
        ('a = 1 / 0', 'ZeroDivisionError'),
        ("_base_ = ['base.py']\nmodel = dict(type=dict(a=1))", 'type'),
    ],
)
def test_an_unreadable_config_gives_one_clear_error(write, text, message):
    write('base2.py', BASE)
    path = write('bad.py', text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert 'bad.py' in str(error.value) and '\n' not in str(error.value)


def test_an_absent_config(tmp_path):
    with pytest.raises(ConfigError, match=r'no.py: no such config file'):
        load_config(tmp_path / 'no.py')


def test_yaml_numbers_are_repaired_with_a_note(write):
    write('base.yaml', 'optim:\n  lr: 1e-4\n  decay: [1E-2, x, 1.0e-2]\n')
    path = write('child.yaml', '_base_: base.yaml\nname: 1e5x\n')
    notes = []
    cfg = load_config(path, note=notes.append)
    assert cfg.optim.lr == 1e-4 and cfg.optim.decay == [1e-2, 'x', 1e-2] and cfg.name == '1e5x'
    assert 'optim.lr=1e-4' in notes[0] and 'optim.decay.0' in notes[0]


def test_yaml_children_link_too(write):
    path = write('child.yaml', '_base_: base.py\nuse_mask: false\n')
    assert sides(load_config(path)) == (False, False)
