"""A pipeline: the settings of all stages together, and the rules between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SerializeAsAny, ValidationError, field_validator, model_validator

from hdm import values
from hdm.acquisition.settings import DownloadSettings
from hdm.captioning.settings import CaptionSettings
from hdm.curation.settings import FilterSettings
from hdm.encoding.settings import EncodeSettings
from hdm.errors import ConfigError
from hdm.evaluation.settings import EvaluateSettings
from hdm.models.settings import Components
from hdm.pictures.settings import ImageSettings
from hdm.settings import ExecutionSettings, Settings, runtime, since
from hdm.stage_list import added_stages
from hdm.training.settings import TrainSettings
from hdm.vae.settings import VaeSettings


class Pipeline(Settings):
    """One entry of pipelines.yaml."""

    name: str = ""
    description: str = ""
    components: Components = Components()
    images: ImageSettings = ImageSettings()
    download: DownloadSettings = DownloadSettings()
    filter: FilterSettings = FilterSettings()
    caption: CaptionSettings = CaptionSettings()
    vae: VaeSettings | None = None
    """Fine-tune the autoencoder on the kept training pictures before encoding; None: use it
    unchanged.
    """
    encode: EncodeSettings = EncodeSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    # Without SerializeAsAny, pydantic would write only the fields of `Settings`, which has none.
    stages: dict[str, SerializeAsAny[Settings]] = since("0.2.0", {})
    """Settings of stages that other packages add, by name, as {mosaic: {}}; a pipeline has the
    stages that are listed here.
    """
    threads: values.Workers | None = runtime(None)
    """Number of CPU threads. In training, torch's; training keeps the number that it began with. In
    other stages, the workers, whose number changes no result. None: OMP_NUM_THREADS, or one per
    core.
    """
    execution: ExecutionSettings = runtime(ExecutionSettings())
    # In no digest by itself: training depends on outputs of these pipelines, which are among its
    # inputs.
    mixed: dict[str, Pipeline] = runtime({})
    """The pipelines that `train.mix` and `train.start` name, as `load_pipeline` read them. Users do
    not set this.
    """

    @field_validator("stages", mode="before")
    @classmethod
    def _read_added(cls, given: Any) -> Any:
        """Each stage's own class reads its settings."""
        if not isinstance(given, Mapping):
            return given
        return {name: _added_settings(str(name), of_stage) for name, of_stage in given.items()}

    @model_validator(mode="after")
    def _drawn_captions_are_encoded_live(self) -> Pipeline:
        if self.train.redraws_tags and self.encode.text_embeddings:
            raise ConfigError(
                "captions whose tags are drawn anew have no text embeddings in a cache",
                where="encode.text_embeddings",
                do="set it to false, or tag_drop and group_drop to 0 and tag_shuffle to false",
            )
        return self

    @model_validator(mode="after")
    def _aligned_to_something(self) -> Pipeline:
        if self.train.align_weight and not self.encode.features:
            raise ConfigError(
                "train.align_weight pulls towards features of a vision model, which are not made",
                where="encode.features",
                do="set encode.features: true and components.vision, or train.align_weight: 0",
            )
        return self

    @property
    def own_channels(self) -> int | None:
        """Latent channels of the autoencoder that the pipeline trains from scratch; None: it uses
        the autoencoder that it names.
        """
        return self.vae.channels if self.vae is not None and self.vae.scratch else None

    @property
    def encoded_from(self) -> dict[int, int | None]:
        """Resolution → the larger resolution whose latents it is downscaled from, or None if
        pictures are encoded; encoded ones come first.
        """
        resolutions = sorted({phase.resolution for phase in self.train.phases})
        encoded = [size for size in resolutions if size not in self.encode.from_larger]
        found: dict[int, int | None] = dict.fromkeys(encoded)
        for size in resolutions:
            if size in self.encode.from_larger:
                found[size] = min(larger for larger in encoded if larger > size)
        return found

    @model_validator(mode="after")
    def _larger_is_encoded(self) -> Pipeline:
        resolutions = {phase.resolution for phase in self.train.phases}
        for size in self.encode.from_larger:
            if size not in resolutions:
                raise ConfigError(
                    f"no phase has resolution {size}",
                    where="encode.from_larger",
                    do="name resolutions of train.phases",
                )
            encoded = resolutions.difference(self.encode.from_larger)
            if max(encoded, default=0) <= size:
                raise ConfigError(
                    f"no larger resolution than {size} is encoded",
                    where="encode.from_larger",
                    do="leave it out",
                )
            larger = self.encoded_from[size]
            if larger in self.encode.shares:
                raise ConfigError(
                    f"only a share of the pictures is encoded at {larger} px, from which"
                    f" {size} px would be downscaled",
                    where="encode.from_larger, encode.shares",
                    do=f"leave {size} out of from_larger, or {larger} out of shares",
                )
        for size in self.encode.shares:
            if self.encoded_from.get(size, size) is not None:
                raise ConfigError(
                    f"no phase's pictures are encoded at {size} px",
                    where="encode.shares",
                    do="name resolutions of train.phases that are not in from_larger",
                )
        return self


def _added_settings(name: str, given: Any) -> Settings:
    known = added_stages()
    stage = known.get(name)
    if stage is None or stage.settings is None:
        raise ConfigError(
            f"no installed package adds a stage {name!r}",
            where=f"stages.{name}",
            do=f"use one of {', '.join(known)}" if known else "install the package that does",
        )
    try:
        return stage.settings.model_validate(given)
    except ValidationError as error:
        first = ".".join(map(str, error.errors()[0]["loc"]))
        faults = "; ".join(values.faults_of(error))
        raise ConfigError(faults, where=f"stages.{name}.{first}") from error
