import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from occforge.ops import confusion_matrix
from occforge.ops.confusion import confusion_matrix_reference
from op_testing import OPCHECK_TESTS, awkward, check_fake, needs_extension, run_without_extension


def labels(shape, classes, seed, dtype=torch.uint8, ignore=255):
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.randint(0, classes, (2, *shape), generator=generator)
    target = torch.where(torch.rand(shape, generator=generator) < 0.1, ignore, target)
    return pred.to(dtype), target.to(dtype), torch.rand(shape, generator=generator) < 0.5


def test_hand_numbers():
    target = torch.tensor([0, 0, 1, 2, 2, 255], dtype=torch.uint8)
    pred = torch.tensor([0, 1, 1, 0, 2, 77], dtype=torch.uint8)  # 77 where the target does not count
    assert confusion_matrix(pred, target, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    mask = torch.tensor([True, False, True, False, True, True])
    assert confusion_matrix(pred, target, 3, mask).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(0, 23), min_size=0, max_size=4).map(tuple),
    classes=st.sampled_from([1, 2, 17, 18, 200]),
    dtypes=st.tuples(*(st.sampled_from([torch.uint8, torch.int64, torch.int32, torch.int16]) for _ in range(2))),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_reference_and_numpy(shape, classes, dtypes, masked, seed):
    pred, target, mask = labels(shape, classes, seed)
    pred, target = pred.to(dtypes[0]), target.to(dtypes[1])
    mask = mask if masked else None
    found = confusion_matrix(pred, target, classes, mask)
    assert torch.equal(found, confusion_matrix_reference(pred, target, classes, mask))
    check_fake('confusion_matrix', pred.long(), target.long(), classes, mask)
    counts = (target.numpy() < classes) & (mask.numpy() if masked else True)
    flat = target.numpy()[counts].astype(np.int64) * classes + pred.numpy()[counts]
    expected = np.bincount(flat.ravel(), minlength=classes**2).reshape(classes, classes)
    np.testing.assert_array_equal(found.numpy(), expected)


@needs_extension
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
def test_opcheck(dtype):
    for shape in ((), (0,), (5, 4, 3)):
        pred, target, mask = labels(shape, 18, 0, dtype)
        for chosen in (None, mask):
            arguments = (pred, target, 18, chosen)
            torch.library.opcheck(torch.ops.occforge.confusion_matrix.default, arguments, test_utils=OPCHECK_TESTS)


def test_empty_and_all_masked():
    empty = torch.zeros(0, 4, dtype=torch.uint8)
    assert confusion_matrix(empty, empty, 3).tolist() == [[0] * 3] * 3
    pred, target, mask = labels((7, 5), 18, 1)
    assert not confusion_matrix(pred, target, 18, mask & False).any()
    assert not confusion_matrix(pred, target.fill_(255), 18, mask).any()


def test_memory_layout_and_threads():
    pred, target, mask = labels((100, 100, 16), 18, 2)
    expected = confusion_matrix(pred, target, 18, mask)
    assert torch.equal(confusion_matrix(awkward(pred), awkward(target), 18, awkward(mask)), expected)
    assert torch.equal(confusion_matrix(pred, target, 18, mask.to(torch.uint8) * 2), expected)
    batched = (torch.stack([value, value.flip(0)]) for value in (pred, target))
    assert torch.equal(confusion_matrix(*batched, 18, torch.stack([mask, mask.flip(0)])), 2 * expected)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(confusion_matrix(pred, target, 18, mask), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
def test_predictions_outside_the_classes(dtype):
    pred, target, mask = labels((9, 9), 18, 3, dtype)
    place = (mask & (target < 18)).nonzero()[0]
    unseen = (~mask).nonzero()[0]
    for label in (18, 200) if dtype == torch.uint8 else (18, -1, 2**40, -(2**63)):
        bad = pred.clone()
        bad[tuple(unseen)] = label
        assert torch.equal(confusion_matrix(bad, target, 18, mask), confusion_matrix(pred, target, 18, mask))
        bad[tuple(place)] = label
        with pytest.raises(ValueError, match='found 1 cells with another label'):
            confusion_matrix(bad, target, 18, mask)


def test_targets_outside_the_classes_do_not_count():
    pred = torch.zeros(4, dtype=torch.int64)
    target = torch.tensor([-1, 3, 2**40, 1])
    assert confusion_matrix(pred, target, 3).sum() == 1


def test_bad_input():
    pred, target, mask = labels((4, 4), 5, 0)
    for message, call in {
        'pred must be of dtype': lambda: confusion_matrix(pred.float(), target, 5),
        'pred and target must have the same shape': lambda: confusion_matrix(pred[:2], target, 5),
        'mask must have the shape': lambda: confusion_matrix(pred, target, 5, mask[:2]),
        'mask must be of dtype': lambda: confusion_matrix(pred, target, 5, mask.float()),
        'num_classes must be': lambda: confusion_matrix(pred, target, 0),
        'target must be a tensor': lambda: confusion_matrix(pred, target.numpy(), 5),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@needs_extension
def test_compile():
    pred, target, mask = labels((7, 5), 18, 1)
    compiled = torch.compile(confusion_matrix, fullgraph=True, backend='aot_eager')
    for chosen in (None, mask):
        assert torch.equal(compiled(pred, target, 18, chosen), confusion_matrix(pred, target, 18, chosen))


def test_without_extension():
    code = """
import warnings, torch
warnings.simplefilter('always')
with warnings.catch_warnings(record=True) as caught:
    from occforge.ops import confusion_matrix, has_extension
    target = torch.tensor([0, 0, 1, 255], dtype=torch.uint8)
    found = confusion_matrix(torch.tensor([0, 1, 1, 9], dtype=torch.uint8), target, 2)
    found = confusion_matrix(torch.tensor([0, 1, 1, 9], dtype=torch.uint8), target, 2)
print(has_extension(), *found.flatten().tolist())
print(sum('compiled operators of occforge' in str(item.message) for item in caught))
"""
    assert run_without_extension(code).split() == ['False', '1', '1', '0', '1', '1']
