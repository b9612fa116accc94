import pytest
import torch
from occforge.engine import reduce_mean_count, reduce_mean_values
from occforge.engine.dist import _environment_from_mpi, detect_launcher, first_slurm_node, init_distributed
from occforge.errors import ConfigError
from ranks import run_ranks

TORCHRUN = dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='a', MASTER_PORT='1', TORCHELASTIC_RUN_ID='x')


@pytest.mark.parametrize(
    'environment, expected',
    [
        ({}, 'none'),
        (dict(WORLD_SIZE='1', RANK='0'), 'none'),
        (TORCHRUN, 'pytorch'),
        (dict(OMPI_COMM_WORLD_SIZE='1', OMPI_COMM_WORLD_RANK='0'), 'none'),
        (dict(OMPI_COMM_WORLD_SIZE='8', OMPI_COMM_WORLD_RANK='3'), 'mpi'),
        (dict(TORCHRUN, WORLD_SIZE='2'), 'pytorch'),
        (dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='a', MASTER_PORT='1'), 'pytorch'),
    ],
)
def test_torchrun_is_detected_without_being_named(environment, expected):
    assert detect_launcher(None, environment) == expected
    assert detect_launcher('none', environment) == 'none'


def test_torchpacks_master_is_understood():
    environment = dict(OMPI_COMM_WORLD_SIZE='8', OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_LOCAL_RANK='3')
    environment['MASTER_HOST'] = 'node7:4321'
    _environment_from_mpi(environment)
    assert (environment['MASTER_ADDR'], environment['MASTER_PORT']) == ('node7', '4321')
    assert (environment['RANK'], environment['WORLD_SIZE']) == ('3', '8')


def test_an_unknown_launcher_is_named():
    with pytest.raises(ConfigError, match='torchpack'):
        detect_launcher('torchpack')


def test_a_missing_environment_is_named(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match='MASTER_ADDR'):
        init_distributed('pytorch')
    with pytest.raises(ConfigError, match='SLURM_PROCID'):
        init_distributed('slurm')


@pytest.mark.parametrize(
    'nodes, first',
    [('gpu7', 'gpu7'), ('gpu[03-05,9],login1', 'gpu03'), ('a-1,b-2', 'a-1'), ('n[1,3]-ib,x', 'n1-ib')],
)
def test_the_first_slurm_node_is_the_master(nodes, first, monkeypatch):
    monkeypatch.setenv('PATH', '')  # no scontrol
    assert first_slurm_node(nodes) == first


def test_one_process_needs_no_group():
    assert reduce_mean_count(torch.tensor(7)).item() == 7.0
    assert reduce_mean_count(0).item() == 1.0
    values = dict(loss=torch.tensor(1.0), name='x')
    assert reduce_mean_values(values) is values


def _reduce(rank, _world):
    count = reduce_mean_count(torch.tensor([3, 9][rank]))
    empty = reduce_mean_count(torch.tensor(0.0))
    values = reduce_mean_values(dict(b=torch.tensor(2.0 * rank), a=float(rank), text='x'))
    return dict(count=count.item(), empty=empty.item(), values={k: v for k, v in values.items()})


def test_two_processes_share_the_mean(tmp_path):
    for result in run_ranks(_reduce, 2, tmp_path):
        assert result['count'] == 6.0
        assert result['empty'] == 0.5  # 1 term in total
        assert result['values']['text'] == 'x'
        assert result['values']['a'].item() == 0.5 and result['values']['b'].item() == 1.0
