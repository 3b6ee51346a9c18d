"""How do the bytes of an image file become pixels? Training, scoring and the service read files through `load` alone.

    images.load(data, manifest.input, max_pixels=50_000_000).pixels
    images.decoded_bytes(data, manifest.input)    # memory that `load` will need, from the header

Orientation, colour profile, alpha, depth and layout of a file are settled here once, so that a threshold measured at
calibration meets the same pixels in service. A file is read right or refused with a message that names its kind.
IMAGES.md beside this package lists the kinds.
"""

from service.contract.images.estimate import decoded_bytes
from service.contract.images.fitting import fit
from service.contract.images.limits import DIVISORS, MAX_SCANS
from service.contract.images.reading import FORMATS, TURNS, Loaded, load

__all__ = ["DIVISORS", "FORMATS", "MAX_SCANS", "TURNS", "Loaded", "decoded_bytes", "fit", "load"]
