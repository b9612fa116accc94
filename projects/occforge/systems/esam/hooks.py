"""What the runner does for ESAM."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ...errors import ConfigError


@HOOKS.register_module()
class FusionStatisticsHook(Hook):
    """Says after every epoch whether Bi-Fusion ran: frames whose image features were computed in place of read, frames
    without any, and the share of points that lie in their image. ``metrics.csv`` gets them with the next evaluation.

    Args:
        min_projected: a warning comes where less than this share of the points lies in the image.
    """

    priority = 'NORMAL'  # before the table of metrics is written

    def __init__(self, min_projected: float = 0.99):
        self.min_projected = min_projected

    def before_train(self, runner) -> None:
        encoder(runner).reset_counts()

    def after_train_epoch(self, runner) -> None:
        self._report(runner, 'training')

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._report(runner, 'validation', metrics)

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._report(runner, 'test', metrics)

    def _report(self, runner, phase: str, metrics: dict | None = None) -> None:
        part = encoder(runner)
        share = part.projected['valid'] / max(part.projected['points'], 1)
        print_log(
            f'{phase}: Bi-Fusion computed the image features of {part.fallback_count} frames itself, '
            f'{part.missing_count} frames had none; {share:.2%} of the points lie in their image',
            logger='current',
            level=20 if share >= self.min_projected else 30,
        )
        if metrics is not None:
            metrics.update(clip_fallback_count=part.fallback_count, projected_share=share)
        part.reset_counts()


def encoder(runner):
    """The runner's ``BiFusionEncoder``."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    part = getattr(model, 'bi_encoder', None)
    if part is None:
        raise ConfigError(f'FusionStatisticsHook: {type(model).__name__} has no bi_encoder')
    return part
