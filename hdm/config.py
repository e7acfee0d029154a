"""A pipeline: the settings of all stages together, and the rules between them."""

from __future__ import annotations

from pydantic import model_validator

from hdm import values
from hdm.acquisition.settings import DownloadSettings
from hdm.captioning.settings import CaptionSettings
from hdm.curation.settings import FilterSettings
from hdm.encoding.settings import EncodeSettings
from hdm.errors import ConfigError
from hdm.evaluation.settings import EvaluateSettings
from hdm.models.settings import Components
from hdm.pictures.settings import ImageSettings
from hdm.settings import Settings, runtime
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
    """Fine-tune the autoencoder on the kept training pictures before encoding; None: it is used as
    it is.
    """
    encode: EncodeSettings = EncodeSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    threads: values.Workers | None = runtime(None)
    """CPU threads: of torch in a training, which keeps the number that it began with; in other
    stages, how many work at once, on which no result depends. None: one a core, or
    OMP_NUM_THREADS.
    """
    mixed: dict[str, Pipeline] = runtime({})
    """The pipelines that `train.mix` and `train.start` name, as `load_pipeline` read them. Not for
    writing.
    """

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
        """Latent channels of the autoencoder that it trains from new weights; None: it uses the one
        that it names.
        """
        return self.vae.channels if self.vae is not None and self.vae.scratch else None

    @property
    def encoded_from(self) -> dict[int, int | None]:
        """Resolution → the larger one whose latents it is downscaled from, or None where pictures
        are encoded; those first.
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
            if not any(
                larger > size and larger not in self.encode.from_larger for larger in resolutions
            ):
                raise ConfigError(
                    f"no larger resolution than {size} is encoded",
                    where="encode.from_larger",
                    do="leave it out",
                )
        return self
