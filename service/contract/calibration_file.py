"""What a manifest says of the file with the calibration images' outcomes."""

from pydantic import Field

from service.contract.reference import Frozen


class OutcomesFile(Frozen):
    """A file with a row for each calibration image; read by service.contract.outcomes."""

    file: str
    in_distribution_images: int = Field(gt=0)
    outlier_images: int = Field(ge=0)
