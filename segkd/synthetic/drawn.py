"""What drawn sets have in common: their images come from no folder."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo


def _refused(root: Path | None, info: ValidationInfo) -> Path | None:
    # Taken silently, it would score or train on drawn images instead of those of the folder.
    # A stored config may have one: earlier versions took it.
    if root is not None and not (info.context or {}).get("stored"):
        raise ValueError(
            f"got {root}, but this set draws its images and reads no folder. For the images of a "
            "folder name their dataset, e.g. data.name=culane or data.name=folder (`segkd list "
            "datasets`); for drawn ones leave root out (`segkd data make` takes --out)"
        )
    return root


NoFolder = Annotated[Path | None, AfterValidator(_refused)]
