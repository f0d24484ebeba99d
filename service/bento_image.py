"""What every Bento of this service carries beside its source: backbone, promoted releases, pinned packages."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from bentoml._internal.bento.build_config import BentoEnvSchema
from bentoml.images import Image

from service.catalogue import INDEX
from service.settings import BUNDLED, Settings

# bentoml itself is BentoML's to add.
_REQUIREMENTS = (
    "fastapi",
    "httptools",
    "jinja2",
    "llguidance",
    "numpy",
    "peft",
    "opentelemetry-sdk",
    "prometheus-client",
    "pydantic",
    "python-json-logger",
    "python-multipart",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
    "uvloop",
)
# A container has a network of its own: 127.0.0.1 would be reached by nobody outside it.
_ENVIRONMENT = {"GRAFTLINE_HOST": "0.0.0.0", "BENTOML_DO_NOT_TRACK": "True"}


class SelfContained(Image):  # type: ignore[misc]  # BentoML publishes no types
    """BentoML freezes a service's image while it builds and at no other time: then the folder that is served is written.

    The settings are those of GRAFTLINE_* variables, as when serving. A folder that was included is left as it is.
    """

    def freeze(self, bento_fs: Path, envs: list[BentoEnvSchema], *args: Any, **kwargs: Any) -> Any:
        frozen = bento_fs / "src" / BUNDLED.name
        if not (frozen / INDEX).is_file():
            _freeze_models(frozen)
        self.python_requirements = "".join(f"{pin}\n" for pin in pins())
        ours = [BentoEnvSchema(name=name, value=value) for name, value in _ENVIRONMENT.items()]
        return super().freeze(bento_fs, [*envs, *ours], *args, **kwargs)


def self_contained() -> SelfContained:
    """Nothing is resolved while building: the pins are what runs here."""
    return SelfContained(lock_python_packages=False)


def pins() -> list[str]:
    return [f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS]


def _freeze_models(directory: Path) -> None:
    from service.frozen import write_frozen
    from service.startup import open_parts

    # On the CPU, where a backbone is loaded in float32: what is stored loses nothing.
    write_frozen(directory, *open_parts(Settings.from_environment().model_copy(update={"device": "cpu"})))
