"""Settings that say something only beside another: alone they would be passed over, and nobody would know."""

from pydantic import BaseModel

from service.errors import SettingsError

NEEDS = {  # one of these, at another value than its default
    "requests_per_s": ("api_key", "api_keys", "admin_keys", "keys_file"),
    "burst_requests": ("requests_per_s", "keys_file"),
    "keep_images_per_s": ("keep",),
    "keep_burst_images": ("keep",),
    "gpu_mem_limit_bytes": ("provider",),
}


def require_use(given: BaseModel, prefix: str) -> None:
    """SettingsError for a setting that was given and does nothing, naming what it needs."""
    fields = type(given).model_fields
    changed = {name for name in NEEDS if getattr(given, name) != fields[name].default}
    for name in sorted(changed):
        if all(getattr(given, other) == fields[other].default for other in NEEDS[name]):
            needed = " or ".join(prefix + other.upper() for other in NEEDS[name])
            raise SettingsError(f"{prefix}{name.upper()} does nothing alone: set {needed} too, or leave it out")
