"""Files to pixels by several processes: the same as one by one, in order, with the failures listed, memory bounded."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from service.contract import images
from training.data import processes
from training.data.decode import decode, iterate, pixels_of, square
from training.data.readers import DataError


@pytest.fixture
def paths(tmp_path):
    """Thirty different pictures of several sizes and kinds; the numbers 7 and 20 are damaged."""
    draw = np.random.default_rng(0)
    made = []
    for i in range(30):
        path = tmp_path / f"{i:02}.{('png', 'jpg', 'webp')[i % 3]}"
        Image.fromarray(draw.integers(0, 256, (20 + i, 31, 3), dtype=np.uint8)).save(path)
        made.append(str(path))
    for i in (7, 20):
        (tmp_path / os.path.basename(made[i])).write_bytes(b"damaged")
    return made


@pytest.mark.parametrize("count", [1, 3])
def test_every_image_is_what_the_service_decodes(paths, count):
    failures = []
    batches = list(decode(paths, square(16), batch_images=8, processes=count, failures=failures))
    index = np.concatenate([b.index for b in batches])
    assert index.tolist() == [i for i in range(30) if i not in (7, 20)]
    assert [len(b.index) for b in batches] == [7, 8, 7, 6]
    assert [f.path for f in failures] == [paths[7], paths[20]]
    assert all(f.reason for f in failures)
    for batch in batches:
        for i, pixels in zip(batch.index, batch.pixels, strict=True):
            with open(paths[i], "rb") as file:
                expected = images.load(file.read(), square(16), max_pixels=10**6).pixels
            np.testing.assert_array_equal(pixels, expected)


def test_without_a_list_for_them_the_first_failure_is_raised(paths):
    with pytest.raises(DataError, match=r"07\.jpg cannot be read as an image \(.*\): mend or remove it"):
        pixels_of(paths, square(8))


def test_batches_stay_valid_when_the_next_one_comes(paths):
    kept = [b.pixels for b in decode(paths[:6], square(8), batch_images=2, processes=2)]
    np.testing.assert_array_equal(np.concatenate(kept), pixels_of(paths[:6], square(8)))


def test_a_target_may_be_cropped(paths):
    target = images_input(24, 16, "crop")
    (batch,) = decode(paths[:2], target)
    assert batch.pixels.shape == (2, 24, 16, 3)


def images_input(height, width, fit):
    from service.contract.bundle import Input

    return Input(height_px=height, width_px=width, fit=fit, resampling="bilinear")


def test_arrays_are_fitted_as_files_are(paths):
    array = pixels_of(paths[:5], square(32))
    (batch,) = iterate(array, square(16))
    fitted = [images.fit(Image.fromarray(a), square(16)) for a in array]
    np.testing.assert_array_equal(batch.pixels, np.stack(fitted))
    assert batch.index.tolist() == [0, 1, 2, 3, 4]
    (same,) = iterate(paths[:5], square(32))
    np.testing.assert_array_equal(same.pixels, array)


def test_no_more_is_read_than_a_few_tasks_ahead():
    begun = []
    tasks = (begun.append(i) or i for i in itertools.count())
    results = processes.in_processes(abs, tasks, 2)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(begun) <= 10 + processes.AHEAD * 2
    results.close()


def test_a_process_that_dies_is_an_error_and_no_hang():
    from concurrent.futures.process import BrokenProcessPool

    with pytest.raises(BrokenProcessPool):
        list(processes.in_processes(die, range(4), 2))


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)


ENDLESS = """
from training.data.processes import in_processes
for done in in_processes(abs, iter(int, 1), 2):
    print(done, flush=True)
"""


def test_processes_whose_parent_was_killed_end_too():
    """They waited for ever for a task, with the lock on the folder in which the parent had been at work."""
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout.readline() == b"0\n"
        parent.kill()
        parent.communicate(timeout=30)  # until nobody holds the pipe any more
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
