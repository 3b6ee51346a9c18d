"""The offline side of TailGuard: images to a bundle. Start reading at trainer.py."""

import service.contract  # noqa: F401 - with it libraries are told to report nothing (service/__init__.py)
