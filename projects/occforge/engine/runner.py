"""The runner of all systems: mmengine's, with what it lacks to be relied on.

* checkpoints are loaded as data and written atomically, with the random generators of every process and the position
  in the epoch, so that a killed and resumed training ends with the same weights as an uninterrupted one;
* a corrupt newest checkpoint falls back to the one before;
* the console shows what a reader needs; environment and the whole config go into the log file;
* several processes without a GPU (gloo), batch normalisation over processes on any backend, logged losses averaged
  over the processes;
* mixed precision on the CPU.
"""

import contextlib
import copy
import difflib
import gc
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping

import mmengine
import torch
from mmengine.device import get_device
from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, get_file_backend, join_path
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODEL_WRAPPERS, OPTIMIZERS, RUNNERS
from mmengine.runner import Runner, save_checkpoint, weights_to_cpu
from mmengine.utils import apply_to
from torch import distributed as torch_dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from ..fileio import remove_leftovers
from ..version import __version__
from . import checkpoint as checkpoints
from .channels_last import use_channels_last
from .dist import init_distributed, is_distributed, rank_and_world
from .load_report import LoadReport, log_report
from .memory import bound_onednn_caches, keep_freed_memory
from .param_groups import fit_optimizer_state, names_of_groups
from .partial_load import has_path, load_partially, parse_load_from
from .rng import rng_state, set_rng_state
from .shared_annotations import share_annotations
from .sync_batch_norm import convert_sync_batchnorm, count_batch_norms
from .temporal import load_temporal, remove_orphans, temporal_content, temporal_path
from .trainable import Trainability
from .worker_watch import dead_workers_named, watch_workers


@RUNNERS.register_module()
class OccRunner(Runner):
    """mmengine's ``Runner``; same arguments and config fields, and these more:

    * ``load_from``: a path, or a dict that says what is taken from which file, under which names and in which form
      (``occforge.engine.partial_load``);
    * ``resume``: False, True (as mmengine), 'auto' (newest loadable checkpoint of the work dir; where there is none,
      ``load_from`` or a fresh start) or a path;
    * ``resume_from``: a path. Resumes; takes the weights alone, with one warning, where the checkpoint is of another
      model type, does not fit this model or has already reached this config's last epoch;
    * ``freeze``: names of modules that do not train (``occforge.engine.names``): no gradients, and their batch
      normalisations keep their statistics;
    * ``channels_last = True``: convolution weights with channels last (``occforge.engine.channels_last``);
    * ``sync_bn = True``: batch normalisation over all processes, by our own layer;
    * ``find_unused_parameters``, ``model_wrapper_cfg``: as in mmengine.

    What modules remember of earlier frames is kept beside each checkpoint, and resuming goes on with it
    (``occforge.engine.temporal``).
    """

    # -------------------------------------------------------------------------------------------------- environment
    def setup_env(self, env_cfg: dict) -> None:
        bound_onednn_caches()
        if get_device() == 'cpu':
            keep_freed_memory()
        if self._launcher != 'none' and not is_distributed():
            dist_cfg = dict(env_cfg.get('dist_cfg', {}))
            dist_cfg.setdefault('backend', None)
            init_distributed(self._launcher, **dist_cfg)
        super().setup_env(env_cfg)
        self._pending_rng: dict | None = None
        self._epoch_rng: dict | None = None
        self._frozen_rng: dict | None = None
        self._saved_before = False
        self._testing = False
        self.trainability: Trainability | None = None

    def _log_env(self, env_cfg: dict) -> None:
        files = [handler for handler in self.logger.handlers if isinstance(handler, logging.FileHandler)]
        everywhere = self.logger.handlers
        self.logger.handlers = files
        try:
            super()._log_env(env_cfg)
        finally:
            self.logger.handlers = everywhere
        where = f'; environment and whole config in {files[0].baseFilename}' if files else ''
        self.logger.info(
            f'OccForge {__version__}, torch {torch.__version__}, Python {platform.python_version()}, seed {self.seed}, '
            f'config {self.cfg.filename or "given as fields"}{where}'
        )

    def get_hooks_info(self) -> str:
        """The hooks' names in the order in which each event calls those that listen to it."""
        return ', '.join(type(hook).__name__ for hook in self.hooks)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """As mmengine's, and None switches off any hook, not only one of mmengine's own six."""
        for name, hook in (hooks or {}).items():
            if not (hook is None or isinstance(hook, (Mapping, Hook))):
                raise ConfigError(f'default_hooks.{name}: a dict or None is expected, found {hook!r}')
        own = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
        super().register_default_hooks(
            {name: hook for name, hook in (hooks or {}).items() if hook is not None or name in own}
        )

    def _init_model_weights(self) -> None:
        # Shadows mmengine's listing of how every single parameter was initialised: hundreds of lines in the log.
        model = self._bare_model()
        model._dump_init_info = lambda: None
        try:
            super()._init_model_weights()
        finally:
            del model._dump_init_info

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        device = get_device()
        model = model.to(device)
        if self.trainability is None:  # before anything is told which gradients there will be
            self.trainability = Trainability(model)
            frozen = frozen_modules(self.cfg)
            if frozen:
                self.trainability.freeze(frozen)
        if self.cfg.get('channels_last'):
            use_channels_last(model)
        several = rank_and_world()[1] > 1
        if not several:
            model = revert_sync_batchnorm(model)
        elif self.cfg.get('sync_bn') or (device == 'cpu' and _has_torch_sync_bn(model)):
            model = convert_sync_batchnorm(model)
            self.logger.info(f'{count_batch_norms(model)} batch normalisations are synchronised over processes')
        if not self.distributed:
            return model
        wrapper = dict(model_wrapper_cfg or {})
        wrapper.setdefault('type', 'MMDistributedDataParallel')
        arguments = dict(module=model)
        if issubclass(MODEL_WRAPPERS.get(wrapper['type']), DistributedDataParallel):
            arguments['device_ids'] = [torch.cuda.current_device()] if device.startswith('cuda') else None
            arguments['broadcast_buffers'] = False
            arguments['find_unused_parameters'] = self.cfg.get('find_unused_parameters', False)
        return MODEL_WRAPPERS.build(wrapper, default_args=arguments)

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False):
        """As mmengine's; the processes of a machine have one copy of the annotations together, and a worker that dies
        leaves behind which sample it was reading."""
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        share_annotations(loader.dataset)
        watch_workers(loader)
        return loader

    def build_train_loop(self, loop):
        if isinstance(loop, dict):
            loop = copy.deepcopy(loop)
            by_epoch = loop.pop('by_epoch', None)
            known = {'EpochBasedTrainLoop': True, 'IterBasedTrainLoop': False}
            if 'type' not in loop or loop['type'] in known:
                by_epoch = known.get(loop.get('type'), by_epoch if by_epoch is not None else True)
                loop['type'] = 'OccEpochTrainLoop' if by_epoch else 'OccIterTrainLoop'
        loop = super().build_train_loop(loop)
        self._log_setting(loop.dataloader, 'training')
        return loop

    def build_test_loop(self, loop):
        loop = super().build_test_loop(loop)
        self._log_setting(loop.dataloader, 'testing')
        return loop

    def build_optim_wrapper(self, optim_wrapper):
        if isinstance(optim_wrapper, dict):
            optim_wrapper = {'constructor': 'OccOptimWrapperConstructor', **optim_wrapper}
            if optim_wrapper.get('type') == 'AmpOptimWrapper':
                optim_wrapper['type'] = 'OccAmpOptimWrapper'
        optimizer = optim_wrapper.get('optimizer') if isinstance(optim_wrapper, dict) else None
        if isinstance(optim_wrapper, dict) and 'optimizer' in optim_wrapper and optimizer is None:
            raise ConfigError('optim_wrapper.optimizer: a dict is expected, found None')
        kind = optimizer.get('type') if isinstance(optimizer, dict) else None
        if not (kind is None or isinstance(kind, str) or callable(kind)):
            raise ConfigError(f'optim_wrapper.optimizer.type: the name of an optimizer is expected, found {kind!r}')
        if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
            near = [name for name in OPTIMIZERS.module_dict if name.lower() == kind.lower()]
            near = near or difflib.get_close_matches(kind, OPTIMIZERS.module_dict, n=1)
            hint = f', did you mean {near[0]}?' if near else ''
            raise ConfigError(f'optim_wrapper.optimizer.type={kind!r} is not a registered optimizer{hint}')
        return super().build_optim_wrapper(optim_wrapper)

    def train(self) -> nn.Module:
        if rank_and_world()[0] == 0:
            leftovers = remove_leftovers(self.work_dir)
            if leftovers:
                self.logger.info(f'{len(leftovers)} unfinished files of a killed run removed from {self.work_dir}')
        frozen = frozen_modules(self.cfg)
        if frozen:
            self.logger.info(f'frozen: {", ".join(frozen)}')
            for line in self.trainability.table():
                self.logger.info(f'  {line}')
        with dead_workers_named(self._loaders):
            return super().train()

    def _loaders(self) -> list:
        """The dataloaders that have been built."""
        loops = (self._train_loop, self._val_loop, self._test_loop)
        return [loop.dataloader for loop in loops if hasattr(loop, 'dataloader')]

    def set_trainable(self, names: list[str] | None) -> None:
        """Train only what ``names`` name (None: all), apart from what ``freeze`` of the config holds for good.

        With several processes the model is wrapped anew, because DistributedDataParallel settles when it is made which
        gradients it waits for. Every process must call it.
        """
        changed = self.trainability.train_only(names)
        if changed and is_model_wrapper(self.model):
            bare = self.model.module
            self.model = None  # the old wrapper's hooks on the gradients go with it
            gc.collect()
            self.model = self.wrap_model(self.cfg.get('model_wrapper_cfg'), bare)

    def _log_setting(self, dataloader, phase: str) -> None:
        """One line: device, processes, batch."""
        world = rank_and_world()[1]
        device = get_device()
        name = f'{device} ({torch.cuda.get_device_name()})' if device.startswith('cuda') else device
        processes = '1 process' if world == 1 else f'{world} processes ({torch_dist.get_backend()})'
        batch = getattr(dataloader.batch_sampler, 'batch_size', None) or 1
        self.logger.info(
            f'{phase} on {name}, {processes}, {dataloader.num_workers} workers each, total batch {batch * world} = '
            f'{batch} x {world}, {len(dataloader.dataset)} samples, {len(dataloader)} iterations a pass'
        )

    def val(self):
        self._testing = True
        with dead_workers_named(self._loaders):
            return super().val()

    def test(self):
        self._testing = True
        with dead_workers_named(self._loaders):
            return super().test()

    # --------------------------------------------------------------------------------------- random generators
    @contextlib.contextmanager
    def preserved_rng(self) -> Iterator[None]:
        """The random generators are after the block as they were before it, whatever it draws."""
        self._frozen_rng = rng_state()
        try:
            yield
        finally:
            set_rng_state(self._frozen_rng)
            self._frozen_rng = None

    def begin_epoch_rng(self) -> None:
        """Called by the training loop before an epoch: a resumed one starts with the generators of the first run."""
        if self._pending_rng is not None:
            set_rng_state(self._pending_rng['epoch'])
        self._epoch_rng = rng_state()

    def enter_epoch_rng(self) -> None:
        """Called when the dataloader has started and before its first batch is fetched."""
        if self._pending_rng is not None:
            if self._pending_rng['inside'] is not None:
                set_rng_state(self._pending_rng['inside'])
            self._pending_rng = None

    def _rng_for_checkpoint(self, inside_epoch: bool) -> list[dict]:
        """Generators of every process, by rank; every process must call it."""
        now = self._frozen_rng or rng_state()
        own = dict(epoch=self._epoch_rng or now, inside=now) if inside_epoch else dict(epoch=now, inside=None)
        return _by_rank(own)

    # ------------------------------------------------------------------------------------------------- checkpoints
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save atomically, with the state that bit-for-bit resuming needs. Every process must call it.

        Arguments as mmengine's, except that ``file_client_args`` is not supported.
        """
        if file_client_args is not None:
            raise ConfigError('file_client_args: use backend_args instead')
        meta = dict(meta or {})
        meta.setdefault('epoch', self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault('iter', self.iter if by_epoch else self.iter + 1)
        position = self.train_loop.position(meta['epoch']) if hasattr(self.train_loop, 'position') else None
        inside_epoch = position is not None and position['batches_done'] > 0
        path = join_path(out_dir, filename, backend_args=backend_args)
        # for hooks that keep state of their own process in files beside the checkpoint
        self.call_hook('before_write_checkpoint', path=path)
        remembered = temporal_content(self._bare_model(), meta['iter'])
        if remembered is not None:
            if isinstance(get_file_backend(path, backend_args=backend_args), LocalBackend):
                remove_orphans(os.path.dirname(path))
            self._write(remembered, temporal_path(path), backend_args)
        state = dict(
            version=__version__,
            model_type=self.model_name,
            world_size=rank_and_world()[1],
            position=position,
            rng=self._rng_for_checkpoint(inside_epoch),
        )
        self._write_checkpoint(path, save_optimizer, save_param_scheduler, meta, state, backend_args)

    @master_only
    def _write_checkpoint(self, path, save_optimizer, save_param_scheduler, meta, state, backend_args):
        meta.update(
            cfg=self._cfg_text(),
            seed=self.seed,
            experiment_name=self.experiment_name,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine_version=mmengine.__version__,
        )
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            meta['dataset_meta'] = self.train_dataloader.dataset.metainfo
        model = self.model.module if is_model_wrapper(self.model) else self.model
        content = dict(
            meta=meta,
            state_dict=weights_to_cpu(model.state_dict()),
            message_hub=_on_cpu(self.message_hub.state_dict()),
            occforge=state,
        )
        if save_optimizer:
            content['optimizer'] = _on_cpu(self.optim_wrapper.state_dict())
            if isinstance(self.optim_wrapper, OptimWrapper):
                state['optimizer_names'] = names_of_groups(self.optim_wrapper.optimizer, model)
        if save_param_scheduler and self.param_schedulers is not None:
            content['param_schedulers'] = (
                {name: [one.state_dict() for one in many] for name, many in self.param_schedulers.items()}
                if isinstance(self.param_schedulers, dict)
                else [one.state_dict() for one in self.param_schedulers]
            )
        self.call_hook('before_save_checkpoint', checkpoint=content)
        if not self._saved_before:
            checkpoints.check_loadable(content)
            self._saved_before = True
        self._write(content, path, backend_args)

    @staticmethod
    def _write(content: dict, path: str, backend_args: dict | None) -> None:
        if isinstance(get_file_backend(path, backend_args=backend_args), LocalBackend):
            checkpoints.write_checkpoint(content, path)
        else:
            save_checkpoint(content, path, backend_args=backend_args)

    def _cfg_text(self) -> str:
        if not hasattr(self, '_cfg_text_cache'):
            self._cfg_text_cache = self.cfg.pretty_text
        return self._cfg_text_cache

    def load_checkpoint(self, filename, map_location='cpu', strict: bool = False, revise_keys=None) -> LoadReport:
        """Load weights alone, as far as they go, with a report by module in the log and as JSON in the work dir.

        Args:
            filename: a path, or a dict as ``load_from`` takes it (``occforge.engine.partial_load``).
            map_location: as in ``torch.load``.
            strict: nothing may be adapted, left out or missing.
            revise_keys: as mmengine's, [(regular expression, replacement)], instead of the dict's ``key_map``.

        Raises:
            DataError: a file cannot be read as data.
            ConfigError: a file gives nothing; less than ``min_loaded`` came in; with ``strict``, anything is not equal.
        """
        spec = parse_load_from(filename)
        if revise_keys:
            spec = parse_load_from(
                dict(path=filename, key_map=[dict(regex=pattern, to=to) for pattern, to in revise_keys])
            )

        report = self.load_partially(
            spec, 'load_report_test.json' if self._testing else 'load_report.json', map_location
        )
        if strict and not report.complete:
            raise ConfigError(f'{filename} does not fit the model: {report.summary()}')
        self._has_loaded = True
        return report

    def load_partially(self, spec, report_name: str, map_location='cpu') -> LoadReport:
        """Fill the model as ``spec`` (a ``LoadSpec``) says; the report goes into the log and the work dir.

        A model that is tested has to be whole, unless the spec has a ``min_loaded`` of its own.
        """

        def read(path):
            content = mmengine.runner.CheckpointLoader.load_checkpoint(path, map_location, self.logger)
            if 'state_dict' in content:
                self.call_hook('after_load_checkpoint', checkpoint=content)
            return content

        report = load_partially(
            self._bare_model(),
            spec,
            self._class_names(),
            read,
            min_loaded=1.0 if self._testing else None,
            fingerprints=self.rank == 0,
        )
        log_report(report, self.logger)
        if self.rank == 0:
            report.write(os.path.join(self.work_dir, report_name))
        return report

    def _class_names(self) -> list[str] | None:
        """Class names of the data set that is trained or tested on, as far as it is built or its config tells."""
        loader = self._test_dataloader if self._testing else self._train_dataloader
        dataset = loader.get('dataset') if isinstance(loader, dict) else getattr(loader, 'dataset', None)
        return class_names_of(dataset)

    def _read(self, filename: str, map_location='cpu') -> dict:
        content = mmengine.runner.CheckpointLoader.load_checkpoint(filename, map_location, self.logger)
        state = checkpoints.state_dict_of(content)
        return {**content, 'state_dict': state} if 'state_dict' in content else dict(state_dict=state)

    def _bare_model(self) -> nn.Module:
        return self.model.module if is_model_wrapper(self.model) else self.model

    def load_or_resume(self) -> None:
        if self._has_loaded:
            return
        resume, resume_from = self._resume, self.cfg.get('resume_from')
        path = None
        if isinstance(resume, str) and resume != 'auto':
            path = resume
        elif resume is True and isinstance(self._load_from, str):
            path = self._load_from
        elif resume:
            path = self._latest()
            if path is None:
                self._resume = False
                self.logger.info(f'Nothing to resume in {self.work_dir}')
            else:
                self.logger.info(f'Resuming from the newest checkpoint {path}')
        if path is not None:
            self.resume(path)
        elif resume_from is not None:
            self._resume_or_load(resume_from)
        elif has_path(self._load_from):
            self._resume = False
            self.load_checkpoint(self._load_from)
        self._has_loaded = True

    def _latest(self) -> str | None:
        """Decided by the first process, so that all resume from the same file."""
        found = [checkpoints.latest_checkpoint(self.work_dir, self.logger.warning)] if self.rank == 0 else [None]
        if rank_and_world()[1] > 1:
            torch_dist.broadcast_object_list(found)
        return found[0]

    def _resume_or_load(self, filename: str) -> None:
        content = self._read(filename)
        reason = self._why_not_resumable(content)
        if reason is None:
            self.resume(filename)
            return
        self.logger.warning(f'{filename} {reason}: its weights are taken and training starts at the beginning')
        self._resume = False
        self.load_checkpoint(filename)

    def _why_not_resumable(self, content: dict) -> str | None:
        meta = content.get('meta') or {}
        theirs = checkpoints.model_type_of(content)
        if theirs is not None and theirs.split('.')[-1] != self.model_name:
            return f'is of another model type ({theirs}, this config has {self.model_name})'
        if 'epoch' not in meta or 'iter' not in meta or 'optimizer' not in content:
            return 'holds no training state'
        if self.cfg.train_cfg.get('by_epoch', True) and meta['epoch'] >= self.max_epochs:
            return f'has already reached epoch {meta["epoch"]} of {self.max_epochs}'
        if meta['iter'] >= self.max_iters:
            return f'has already reached iteration {meta["iter"]} of {self.max_iters}'
        ours = {name: tuple(value.shape) for name, value in self._bare_model().state_dict().items()}
        if ours != {name: tuple(value.shape) for name, value in content['state_dict'].items()}:
            return 'does not have the same tensors as this model'
        return None

    def resume(
        self, filename: str, resume_optimizer: bool = True, resume_param_scheduler: bool = True, map_location='cpu'
    ) -> None:
        """Continue the training that wrote ``filename``.

        Raises:
            DataError: the file cannot be read as data.
            ConfigError: it is not a training checkpoint of this model.
        """
        self._resume = True
        content = self._read(filename, map_location)
        meta = content.get('meta') or {}
        if 'epoch' not in meta or 'iter' not in meta:
            raise ConfigError(
                f'{filename}: holds weights but no training state, so it cannot be resumed; use --load-from'
            )
        self.call_hook('after_load_checkpoint', checkpoint=content)
        report = checkpoints.load_weights(self._bare_model(), content['state_dict'], filename)
        if not report.complete:
            raise ConfigError(
                f'{filename}: cannot be resumed with this model: {report.summary()}. Use --resume-from or --load-from '
                'to take the weights that fit'
            )
        seed = meta.get('seed')
        if seed is not None and seed != self.seed:
            if self._randomness_cfg.get('seed') is not None:
                self.logger.warning(
                    f'{filename} was trained with seed {seed}, which is used; the config says {self.seed}'
                )
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)
        if 'message_hub' in content:
            self.message_hub.load_state_dict(content['message_hub'])
        self._resume_position(filename, content)
        reason = load_temporal(self._bare_model(), filename, meta['iter'])
        if reason:
            self.logger.warning(f'what was remembered of earlier frames is lost, the memory starts empty: {reason}')
        if resume_optimizer and 'optimizer' in content:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
            optimizer = content['optimizer']
            saved = content.get('occforge', {}).get('optimizer_names')
            if saved is not None and isinstance(self.optim_wrapper, OptimWrapper):
                names = names_of_groups(self.optim_wrapper.optimizer, self._bare_model())
                optimizer, remark = fit_optimizer_state(optimizer, saved, self.optim_wrapper.optimizer, names)
                if remark:
                    self.logger.warning(f'{filename}: {remark}')
            try:
                self.optim_wrapper.load_state_dict(optimizer)
            except (ValueError, KeyError) as error:
                raise ConfigError(
                    f'{filename}: the optimizer state does not fit this config ({error}); use --load-from to take the '
                    'weights alone'
                ) from error
        if resume_param_scheduler and self.param_schedulers is not None and 'param_schedulers' in content:
            self._resume_schedulers(filename, content['param_schedulers'])
        self._has_loaded = True
        self.call_hook('after_resume', filename=filename)
        self.logger.info(f'Resumed after {self.epoch} epochs, {self.iter} iterations')

    def _resume_position(self, filename: str, content: dict) -> None:
        meta, state = content['meta'], content.get('occforge', {})
        loop = self.train_loop
        if not hasattr(loop, 'resume_at'):
            loop._epoch, loop._iter = meta['epoch'], meta['iter']
            return
        remark = loop.resume_at(meta['epoch'], meta['iter'], state.get('position'))
        if remark:
            self.logger.warning(f'{filename}: {remark}')
        rank, world = rank_and_world()
        if 'rng' not in state:
            self.logger.warning(f'{filename}: holds no random state (another program wrote it)')
        elif len(state['rng']) != world:
            self.logger.warning(
                f'{filename}: written by {len(state["rng"])} processes, there are {world}: the random generators '
                'start anew'
            )
        else:
            self._pending_rng = state['rng'][rank]

    def _resume_schedulers(self, filename: str, states) -> None:
        self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        ours = self.param_schedulers
        ours, states = ({'': ours}, {'': states}) if isinstance(ours, list) else (ours, states)
        for name, schedulers in ours.items():
            if len(schedulers) != len(states.get(name, ())):
                raise ConfigError(
                    f'{filename}: holds {len(states.get(name, ()))} schedules, param_scheduler has {len(schedulers)}'
                )
            for scheduler, state in zip(schedulers, states[name]):
                scheduler.load_state_dict(state)


def frozen_modules(cfg) -> list[str]:
    """``freeze`` of a config as a list; ``freeze_encoder = True`` stands for both of MIT's encoders."""
    given = cfg.get('freeze') or []
    if not isinstance(given, (str, list, tuple)):
        raise ConfigError(f'freeze: a list of names is expected, found {given!r}')
    return ([given] if isinstance(given, str) else list(given)) + ['encoders'] * bool(cfg.get('freeze_encoder'))


def _by_rank(own) -> list:
    """What every process gives, on the first one; every process must call it."""
    rank, world = rank_and_world()
    if world == 1:
        return [own]
    gathered = [None] * world if rank == 0 else None
    torch_dist.gather_object(own, gathered)
    return gathered or []


def _has_torch_sync_bn(model: nn.Module) -> bool:
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def _on_cpu(content):
    return apply_to(content, lambda value: hasattr(value, 'cpu'), lambda value: value.cpu())


def class_names_of(dataset) -> list[str] | None:
    """Class names of a data set, or of a data set's config (its ``metainfo``, else the class's ``METAINFO``)."""
    while dataset is not None:
        metainfo = dataset.get('metainfo') if isinstance(dataset, dict) else getattr(dataset, 'metainfo', None)
        if isinstance(dataset, dict) and not (metainfo or {}).get('classes') and 'type' in dataset:
            metainfo = getattr(DATASETS.get(dataset['type']), 'METAINFO', None)
        names = (metainfo or {}).get('classes')
        if names:
            return list(names)
        dataset = dataset.get('dataset') if isinstance(dataset, dict) else getattr(dataset, 'dataset', None)
    return None


def default_work_dir(config_path: str | os.PathLike) -> str:
    """``work_dirs/<config name>``, where training writes if not told otherwise."""
    return os.path.join('work_dirs', os.path.splitext(os.path.basename(config_path))[0])
