import pytest
import torch
from occforge.errors import ConfigError, DataError, cli_errors


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise KeyError('inner')
        except KeyError as error:
            raise DataError('labels.npz: field semantics is missing') from error


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_of_a_data_worker_is_one_line(capsys, workers):
    with pytest.raises(SystemExit) as caught, cli_errors():
        list(torch.utils.data.DataLoader(Broken(), num_workers=workers))
    assert caught.value.code == 2
    assert capsys.readouterr().err == 'error: labels.npz: field semantics is missing\n'


def test_what_is_no_users_error_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit), cli_errors():
        raise ConfigError('a\n b')
    assert capsys.readouterr().err == 'error: a b\n'
    with pytest.raises(ValueError, match='bug'), cli_errors():
        raise ValueError('bug')
