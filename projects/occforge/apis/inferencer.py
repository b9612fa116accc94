"""One way to run any trained model on a few samples or frame by frame."""

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS, DefaultScope

from occforge.engine import load_config, load_partially, parse_load_from, use_channels_last
from occforge.errors import ConfigError

from .inputs import ArrayFolder, as_list, build_dataset, find_info_file, index_of
from .results import FORMATS, Instances, Result, Scene, Setting, array_of, results_of, scene_of, setting_of


class ModelStream(Protocol):
    """What ``model.open_stream()`` returns, for models that remember earlier frames of a drive or scene."""

    def reset(self) -> None:
        """Forget everything; the next frame starts a new drive."""

    def step(self, inputs: dict, data_sample) -> Any:
        """Take the next frame, as the pipeline packs it, without a batch dimension."""

    def result(self):
        """The ``Det3DDataSample`` with the answer after the last frame."""


class FrameStream(Protocol):
    """What ``model.open_frame_stream()`` returns, for models that take a camera's own frames and grow one scene."""

    def reset(self) -> None:
        """Forget everything; the next frame starts a new scene."""

    def step(self, **frame) -> Any:
        """Take the next frame: for RGB-D ``rgb``, ``depth``, ``pose`` and what else the model knows."""

    def result(self):
        """The scene so far: ``points`` (P, 3 or more), ``masks`` (M, P) bool, ``labels``, ``scores`` (M,), ``semantic``
        (P,) and, where instances have numbers that never change, ``ids`` (M,)."""


@dataclass
class Prediction:
    """A model's answers for one sample; ``prediction.occupancy`` and so on are those of one task.

    Attributes:
        scene: the sample.
        results: {task: result}.
        sample: the model's own data sample.
    """

    scene: Scene
    results: dict
    sample: Any = None

    @property
    def name(self) -> str:
        return self.scene.name

    def __getattr__(self, task: str) -> Result:
        results = self.__dict__.get('results', {})
        if task not in results:
            raise AttributeError(f'{task!r}: this prediction has {", ".join(results) or "nothing"}')
        return results[task]

    def save(self, folder, formats: Sequence[str] = ('npz',)) -> list:
        """Write ``<folder>/<task>/<name>.<format>``; returns the paths.

        A form that a task does not have is left out as long as another one is written for it.

        Raises:
            ConfigError: an unknown format, or none that the task has.
        """
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise ConfigError(f'formats: expected some of {", ".join(FORMATS)}, found {list(formats)}')
        written = []
        for task, result in self.results.items():
            paths, refusal = [], None
            for suffix in formats:
                try:
                    paths.append(result.save(Path(folder, task, f'{self.name}.{suffix}'), self.scene))
                except ConfigError as error:
                    refusal = error
            if refusal is not None and not paths:
                raise refusal
            written += paths
        return written


class Inferencer:
    """A trained model of any system. ::

        inferencer = Inferencer('configs/fusion_occ/fusion_occ_synthetic.py', 'epoch_5.pth')
        prediction = inferencer('8e3d...')[0]              # a sample token of the config's test data
        prediction.occupancy.semantics                     # (200, 200, 16) uint8
        prediction.save('out', formats=('npz', 'png', 'html'))

        stream = inferencer.stream()                       # frame by frame
        for frame in drive:
            prediction = stream.step(frame)

    Inputs are tokens or numbers of samples in the config's test data set; folders, in which the config's info file (or
    the only one there) lists the samples; info files (``.pkl``); or frames of arrays, see
    :class:`~occforge.apis.inputs.ArrayFolder`.

    A call treats its samples as unrelated: a model that remembers starts each anew. Use :meth:`stream` for drives.

    Args:
        config: config file, or a config.
        checkpoint: file with the weights; all parameters must be in it. None: random weights, for trying things out.
        device: 'auto' (a GPU where torch sees one), 'cpu', 'cuda', 'cuda:1', ...
        cfg_options: overrides of the config, {'a.b': value} or ['a.b=value'].
        data_root: folder of the data, in place of the config's.
        with_labels: load labels, too, so that pictures show the truth beside the prediction.
        min_loaded: least share of the parameters that the checkpoint must give.

    Raises:
        ConfigError: bad config or device.
        DataError: a file or sample cannot be used.
    """

    def __init__(
        self,
        config,
        checkpoint=None,
        device: str = 'auto',
        cfg_options: Iterable[str] | Mapping | None = None,
        data_root=None,
        with_labels: bool = False,
        min_loaded: float = 1.0,
    ):
        self.cfg = load_config(config, cfg_options or []) if isinstance(config, (str, os.PathLike)) else config
        for field in ('model', 'test_dataloader'):
            if self.cfg.get(field) is None:
                raise ConfigError(f'{config}: {field} is missing')
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.device = torch.device(device)
        if self.device.type == 'cuda' and not torch.cuda.is_available():
            raise ConfigError(f'device {device!r}: torch sees no GPU')
        self.with_labels = with_labels
        self._changes = {} if data_root is None else dict(data_root=str(data_root))
        self._datasets: dict = {}
        # models build their children through the default scope's registries
        if not DefaultScope.check_instance_created('occforge_inferencer'):
            DefaultScope.get_instance('occforge_inferencer', scope_name=self.cfg.get('default_scope', 'mmdet3d'))
        self.model = MODELS.build(self.cfg.model)
        self.load_report = None
        if checkpoint is not None:
            spec = parse_load_from(dict(path=os.fspath(checkpoint), min_loaded=min_loaded))
            self.load_report = load_partially(self.model, spec, fingerprints=False)
        self.model.to(self.device)
        if self.cfg.get('channels_last'):
            use_channels_last(self.model)
        self.model.eval()
        collate = self.cfg.test_dataloader.get('collate_fn') or dict(type='pseudo_collate')
        collate = dict(collate) if isinstance(collate, Mapping) else dict(type=collate)
        kind = collate.pop('type')
        function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
        self._collate = (lambda batch: function(batch, **collate)) if function else pseudo_collate

    # ------------------------------------------------------------------------------------------------------- samples
    @property
    def dataset(self):
        """The config's test data set; read when it is first needed."""
        return self._dataset(**self._changes)

    def _dataset(self, **changes):
        key = tuple(sorted(changes.items()))
        if key not in self._datasets:
            self._datasets[key] = build_dataset(self.cfg.test_dataloader.dataset, self.with_labels, **changes)
        return self._datasets[key]

    def samples(self, inputs) -> list:
        """(data set, number) of each sample of some inputs; frames of arrays are not among them."""
        chosen = []
        for one in as_list(inputs):
            text = os.fspath(one) if isinstance(one, (str, os.PathLike)) else None
            if text is not None and text.endswith('.pkl') and os.path.isfile(text):
                root = self._changes.get('data_root', os.path.dirname(os.path.abspath(text)))
                dataset = self._dataset(ann_file=os.path.abspath(text), data_root=root)
            elif text is not None and (os.path.isdir(text) or os.sep in text):
                info_file = find_info_file(text, self.cfg.test_dataloader.dataset.get('ann_file'))
                dataset = self._dataset(ann_file=str(info_file.resolve()), data_root=os.path.abspath(text))
            else:
                chosen.append((self.dataset, index_of(self.dataset, one if text is None else text)))
                continue
            chosen += [(dataset, number) for number in range(len(dataset))]
        return chosen

    @property
    def setting(self) -> Setting:
        """Class names, colours and range that results are given with."""
        return setting_of(self.cfg, self.model, getattr(next(iter(self._datasets.values()), None), 'metainfo', None))

    # ----------------------------------------------------------------------------------------------------- prediction
    def __call__(self, inputs, batch_size: int = 1, out_dir=None, formats: Sequence[str] = ('npz',)) -> list:
        """Predictions of the samples of some inputs, in their order.

        Args:
            inputs: see the class; one or a list.
            batch_size: samples that the model sees at once.
            out_dir: folder that each prediction is saved to when it is there. None: nothing is written.
            formats: see :meth:`Prediction.save`.
        """
        return list(self.iterate(inputs, batch_size, out_dir, formats))

    def iterate(self, inputs, batch_size: int = 1, out_dir=None, formats: Sequence[str] = ('npz',)):
        """As a call, one prediction after another: for more samples than memory holds predictions."""
        if batch_size < 1:
            raise ConfigError(f'batch_size: expected 1 or more, found {batch_size}')
        items = as_list(inputs)
        frames = [one for one in items if isinstance(one, Mapping)]
        if frames and hasattr(self.model, 'open_frame_stream'):
            raise ConfigError('inputs: this model takes frames one after another; use stream()')
        if frames and len(frames) < len(items):
            raise ConfigError('inputs: frames of arrays and other inputs do not go together in one call')
        folder = ArrayFolder() if frames else None
        try:
            if folder is None:
                chosen = self.samples(items)
            else:
                tokens = [folder.add(frame) for frame in frames]
                dataset = self._arrays(folder)
                chosen = [(dataset, index_of(dataset, token)) for token in tokens]
            for start in range(0, len(chosen), batch_size):
                for prediction in self._predict(chosen[start : start + batch_size]):
                    if out_dir is not None:
                        prediction.save(out_dir, formats)
                    yield prediction
        finally:
            if folder is not None:
                folder.close()

    def _arrays(self, folder: ArrayFolder):
        dataset = folder.dataset(self.cfg.test_dataloader.dataset)
        self._datasets['arrays'] = dataset
        return dataset

    def _load(self, dataset, number):
        item = dataset[number]
        scene = scene_of(dataset, number, item['inputs'], item['data_samples'], self.with_labels)
        if dataset is self._datasets.get('arrays'):  # its files will not stay
            scene.load()
        item['data_samples'] = item['data_samples'].clone()
        item['data_samples'].pop('gt_occ', None)
        return item, scene

    @torch.no_grad()
    def _predict(self, chosen) -> list:
        loaded = [self._load(dataset, number) for dataset, number in chosen]
        if hasattr(self.model, 'open_stream'):  # it remembers: each sample starts a drive of its own
            samples = []
            for item, _ in loaded:
                stream = self.model.open_stream()
                stream.step(item['inputs'], item['data_samples'])
                samples.append(stream.result())
        else:
            samples = self.model.test_step(self._collate([item for item, _ in loaded]))
        return [self._prediction(sample, scene) for sample, (_, scene) in zip(samples, loaded)]

    def _prediction(self, sample, scene: Scene) -> Prediction:
        return Prediction(scene, results_of(sample, self.setting, scene), sample)

    def stream(self) -> 'InferenceStream':
        """A drive, frame after frame. Several streams may share the model."""
        return InferenceStream(self)


class _Single:
    """The stream of a model that remembers nothing."""

    def __init__(self, inferencer: Inferencer):
        self.inferencer = inferencer
        self.reset()

    def reset(self) -> None:
        self._sample = None

    @torch.no_grad()
    def step(self, inputs: dict, data_sample) -> None:
        batch = self.inferencer._collate([dict(inputs=inputs, data_samples=data_sample)])
        self._sample = self.inferencer.model.test_step(batch)[0]

    def result(self):
        return self._sample


class InferenceStream:
    """Frames of one drive or scene in order: ``reset``, ``step``, ``result``.

    Where the model has ``open_frame_stream``, a frame that is a dict goes to its ``step`` by name (RGB-D: ``rgb``,
    ``depth``, ``pose``), and the results are the instances of the whole scene so far. Else:

    Frames are what an :class:`Inferencer` takes as one sample. Of frames of arrays so many earlier ones are kept as the
    data set's ``num_adjacent`` says (those of the same ``scene_token``; without one, all since :meth:`reset`).
    """

    def __init__(self, inferencer: Inferencer):
        self.inferencer = inferencer
        model = inferencer.model
        self._inner: ModelStream = model.open_stream() if hasattr(model, 'open_stream') else _Single(inferencer)
        self._frames: FrameStream | None = model.open_frame_stream() if hasattr(model, 'open_frame_stream') else None
        self._count = 0
        self._folder: ArrayFolder | None = None
        self._drive = 0
        self.reset()

    def reset(self) -> None:
        """Forget the drive; the next frame starts a new one."""
        self._inner.reset()
        if self._frames is not None:
            self._frames.reset()
        self._count = 0
        self._last: Prediction | None = None
        self._drive += 1
        if self._folder is not None:
            self._folder.forget()

    def step(self, frame) -> Prediction:
        """Take the next frame; returns :meth:`result`."""
        if isinstance(frame, Mapping) and self._frames is not None:
            return self._step_frame(frame)
        if isinstance(frame, Mapping):
            if self._folder is None:
                self._folder = ArrayFolder()
            self._folder.forget(keep=self.inferencer.cfg.test_dataloader.dataset.get('num_adjacent', 0))
            token = self._folder.add({'scene_token': f'drive {self._drive}', **frame})
            dataset = self.inferencer._arrays(self._folder)
            number = index_of(dataset, token)
        else:
            chosen = self.inferencer.samples(frame)
            if len(chosen) != 1:
                raise ConfigError(f'a step takes one frame, {frame!r} are {len(chosen)}')
            ((dataset, number),) = chosen
        return self.step_sample(dataset, number)

    def _step_frame(self, frame: Mapping) -> Prediction:
        try:
            inspect.signature(self._frames.step).bind(**frame)
        except TypeError as error:
            raise ConfigError(f'a frame of this model: {error}') from None
        self._frames.step(**frame)
        whole = self._frames.result()
        instances = Instances(
            array_of(whole.masks).astype(bool),
            array_of(whole.labels).astype(np.int64),
            array_of(whole.scores).astype(np.float32),
            None if whole.semantic is None else array_of(whole.semantic).astype(np.int64),
            array_of(whole.points)[:, :3].astype(np.float32),
            self.inferencer.setting.class_names,
            ids=None if getattr(whole, 'ids', None) is None else array_of(whole.ids).astype(np.int64),
        )
        self._last = Prediction(Scene(f'frame{self._count:06d}'), {Instances.task: instances}, whole)
        self._count += 1
        return self._last

    def step_sample(self, dataset, number: int) -> Prediction:
        """As :meth:`step`, with one of what ``Inferencer.samples`` lists."""
        item, scene = self.inferencer._load(dataset, number)
        self._inner.step(item['inputs'], item['data_samples'])
        self._last = self.inferencer._prediction(self._inner.result(), scene)
        return self._last

    def result(self) -> Prediction:
        """The answer after the last frame.

        Raises:
            ConfigError: there has been none since the start or :meth:`reset`.
        """
        if self._last is None:
            raise ConfigError('the stream has seen no frame yet')
        return self._last

    def close(self) -> None:
        """Remove the kept frames of arrays."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
