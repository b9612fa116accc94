"""Log lines with memory, also where there is no GPU."""

from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

from .memory import host_memory


@LOG_PROCESSORS.register_module()
class OccLogProcessor(LogProcessor):
    """mmengine's log lines plus the memory of the process and its workers, in MiB (``host_memory``).

    The lines hold epoch, iteration, learning rate, ETA, iteration and data time, GPU memory (``memory``, with a GPU),
    host memory and the losses.
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str):
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        memory = round(host_memory())
        tag['host_memory'] = memory
        marker = 'data_time: '
        if marker in line:  # beside the times, where mmengine has the GPU's memory
            head, _, tail = line.partition(marker)
            value, _, rest = tail.partition('  ')
            line = f'{head}{marker}{value}  host_memory: {memory}  {rest}'
        else:
            line = f'{line}  host_memory: {memory}'
        return tag, line

    def get_log_after_epoch(self, runner, batch_idx: int, mode: str, with_non_scalar: bool = False):
        """As mmengine's; a metric that breaks its figures down, as a/b/c, shows a and a/b in the line and all in the
        records."""
        tag, line = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        parts = line.split('  ')
        return tag, '  '.join(part for part in parts if part.partition(': ')[0].count('/') < 2)
