"""Views against a brute-force search, colorsys, and the definition of the colour jitter written out per pixel."""

import colorsys

import numpy as np
import pytest
import torch

from training.data import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(n, size=6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (n, size, size, 3), dtype=np.uint8))


def window_of(image, view, padding):
    """(row, column, mirrored) of the one window of the padded image that is `view`; or None."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width, _ = image.shape
    found = []
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            window = padded[row : row + height, column : column + width]
            found += [(row, column, m) for m, w in ((False, window), (True, window[:, ::-1])) if (w == view).all()]
    return found[0] if len(found) == 1 else None


# ---- Crop and flip ----


@pytest.mark.parametrize("flip", [True, False])
def test_every_view_is_a_window_of_the_padded_image(flip):
    images = pixels(400)
    windows = augment.draw_windows(400, generator(), padding_px=1, flip=flip)
    views = augment.crop_and_flip(images, windows, padding_px=1)
    assert views.dtype == torch.uint8
    assert views.shape == images.shape
    found = [window_of(i, v, 1) for i, v in zip(images.numpy(), views.numpy(), strict=True)]
    assert None not in found
    corners = [(row, column) for row, column, _ in found]
    assert all(20 <= corners.count((r, c)) <= 75 for r in range(3) for c in range(3))  # 44 each on average
    mirrored = sum(m for _, _, m in found)
    assert 160 <= mirrored <= 240 if flip else mirrored == 0


def test_crop_of_a_rectangle_without_padding():
    images = pixels(5)[:, :, :4]
    windows = augment.draw_windows(5, generator(), padding_px=0, flip=False)
    assert torch.equal(augment.crop_and_flip(images, windows, padding_px=0), images)


# ---- Colours ----


def test_grey_is_luma():
    image = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    assert augment.grey(image).item() == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    assert augment.grey(torch.full((1, 3, 2, 2), 0.7)) == pytest.approx(0.7)


def test_hue_of_pure_colours():
    red, green, blue = (torch.eye(3)[i].view(1, 3, 1, 1) for i in range(3))
    third = torch.tensor([1 / 3])
    for start, end in ((red, green), (green, blue), (blue, red)):
        torch.testing.assert_close(augment.shift_hue(start, third), end, atol=1e-5, rtol=0)
        torch.testing.assert_close(augment.shift_hue(end, -third), start, atol=1e-5, rtol=0)


def test_hue_shift_of_nothing():
    images = torch.rand(4, 3, 8, 8, generator=generator())
    for turns in (0.0, 1.0, -1.0):
        torch.testing.assert_close(augment.shift_hue(images, torch.full((4,), turns)), images, atol=1e-5, rtol=0)


def test_hue_leaves_grey_alone():
    images = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    torch.testing.assert_close(augment.shift_hue(images, torch.full((5,), 0.37)), images)


def shift_hue_of_pixel(rgb, turns):
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    return colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)


def test_hue_against_colorsys():
    images = torch.rand(20, 3, 3, 3, generator=generator(1))
    images[0, :, 0, 0] = torch.tensor([0.5, 0.5, 0.2])  # two channels share the maximum
    images[1, :, 0, 0] = torch.tensor([0.2, 0.5, 0.5])
    images[2, :, 0, 0] = torch.tensor([0.5, 0.2, 0.5])
    turns = torch.rand(20, generator=generator(2)) * 2 - 1
    expected = np.empty((20, 3, 3, 3))
    for i, row, column in np.ndindex(20, 3, 3):
        expected[i, :, row, column] = shift_hue_of_pixel(images[i, :, row, column].tolist(), turns[i].item())
    np.testing.assert_allclose(augment.shift_hue(images, turns).numpy(), expected, atol=2e-6)


def jitter_of_image(image, draws, order):
    """torchvision's ColorJitter(.4, .4, .4, .1) with p = .8, then RandomGrayscale(.2): [3, H, W] in float64."""
    luma = np.array([0.299, 0.587, 0.114])
    applied, brightness, contrast, saturation, hue, turned_grey = draws
    factors = [0.6 + 0.8 * u for u in (brightness, contrast, saturation)]
    for step in order if applied < 0.8 else []:
        grey = np.tensordot(luma, image, 1)
        if step == 0:
            image = image * factors[0]
        elif step == 1:
            image = factors[1] * image + (1 - factors[1]) * grey.mean()
        elif step == 2:
            image = factors[2] * image + (1 - factors[2]) * grey
        else:
            image = np.apply_along_axis(shift_hue_of_pixel, 0, image, 0.2 * hue - 0.1)
        image = image.clip(0, 1)
    return np.repeat(np.tensordot(luma, image, 1)[None], 3, axis=0) if turned_grey < 0.2 else image


@pytest.mark.parametrize("seed", range(6))
def test_jitter_against_its_definition(seed):
    images = torch.rand(12, 3, 3, 3, generator=generator(100 + seed))
    same = generator(seed)
    draws = torch.rand(6, 12, 1, 1, 1, generator=same).flatten(1).T.tolist()
    order = torch.randperm(4, generator=same).tolist()
    expected = [jitter_of_image(i, d, order) for i, d in zip(images.double().numpy(), draws, strict=True)]
    np.testing.assert_allclose(
        augment.jitter(images.clone(), augment.draw_colours(12, generator(seed))).numpy(), expected, atol=5e-6
    )


def test_jitter_shares():
    images = torch.rand(5000, 3, 2, 2, generator=generator(3))
    jittered = augment.jitter(images.clone(), augment.draw_colours(5000, generator(4)))
    assert jittered.min() >= 0
    assert jittered.max() <= 1
    grey = (jittered.amax(dim=1) - jittered.amin(dim=1)).amax(dim=(1, 2)) < 1e-6
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.025)
    untouched = (jittered - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert untouched.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.025)


# ---- The whole view ----


@pytest.mark.parametrize("n", [0, 1, 64, 100])
def test_view(n):
    images = pixels(n)
    view = augment.view(images, generator(), padding_px=1)
    assert view.shape == (n, 3, 6, 6)
    assert view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert n == 0 or 0 <= view.min() <= view.max() <= 1


def test_one_generator_one_view():
    images = pixels(70)
    assert torch.equal(augment.view(images, generator(5)), augment.view(images, generator(5)))
    assert not torch.equal(augment.view(images, generator(5)), augment.view(images, generator(6)))


def test_images_of_a_batch_get_views_of_their_own():
    images = pixels(1, size=12).expand(100, -1, -1, -1)
    assert len({v.numpy().tobytes() for v in augment.view(images, generator())}) >= 95  # a grey one may come twice


def test_view_leaves_the_images_as_they_were():
    images = pixels(10)
    before = images.clone()
    augment.view(images, generator())
    assert torch.equal(images, before)


# ---- Kinds ----


def test_none_changes_nothing():
    images = pixels(5)
    plain = images.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(augment.view(images, generator(), kind="none"), plain, atol=0, rtol=0)


def test_flip_mirrors_half_and_nothing_else():
    images = pixels(400)
    plain = images.permute(0, 3, 1, 2).float() / 255
    views = augment.view(images, generator(), kind="flip")
    same = (views == plain).flatten(1).all(1)
    mirrored = (views == plain.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 160 <= mirrored.sum() <= 240
    assert torch.equal(augment.view(images, generator(), kind="flip", flip=False), plain)


def test_crop_never_mirrors():
    images = pixels(200).numpy()
    views = augment.view(torch.from_numpy(images), generator(), kind="crop", padding_px=1)
    back = (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    windows = [window_of(i, v, 1) for i, v in zip(images, back, strict=True)]
    assert None not in windows
    assert not any(mirrored for _, _, mirrored in windows)
    assert len({(row, column) for row, column, _ in windows}) == 9


def test_resized_crop_of_the_whole_image_is_the_image_and_mirrors():
    images = torch.rand(2, 3, 8, 10, generator=generator())
    whole = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[-1.0, 0, 0], [0, 1, 0]]])
    same, mirrored = augment.resized_crop(images, whole)
    torch.testing.assert_close(same, images[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored, images[1].flip(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flip", [True, False])
def test_windows_of_photographs_lie_inside_and_have_their_area(flip):
    boxes = augment.draw_boxes(2000, generator(), flip=flip)
    width, height, left, top = boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, 0, 2], boxes[:, 1, 2]
    assert (width.abs() + left.abs() <= 1 + 1e-6).all()
    assert (height + top.abs() <= 1 + 1e-6).all()
    area = width.abs() * height
    assert 0.3 <= area.min() <= 0.4
    assert 0.95 <= area.max() <= 1
    ratio = width.abs() / height
    assert ratio.min() >= 0.74
    assert ratio.max() <= 1.35
    assert (width < 0).float().mean().item() == pytest.approx(0.5 if flip else 0, abs=0.05)


def test_photo_keeps_range_and_hues():
    images = pixels(64, size=16)
    views = augment.view(images, generator(), kind="photo")
    assert views.shape == (64, 3, 16, 16)
    assert 0 <= views.min() <= views.max() <= 1
    assert (views.amax(1) - views.amin(1)).flatten(1).amax(1).min() > 0.01  # none is turned grey
    red = torch.zeros(100, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 200
    hue = augment.view(red, generator(), kind="photo").mean((2, 3))
    assert (hue[:, 0] > 2 * hue[:, 1:].amax(1)).all()  # red stays red: colours tell photographs apart


@pytest.mark.parametrize("kind", augment.KINDS)
def test_processes_that_divide_a_batch_make_the_views_of_one(kind):
    images = pixels(150)
    whole = augment.view(images, generator(3), kind=kind)
    parts = [augment.view(images, generator(3), kind=kind, rows=slice(i, i + 50)) for i in (0, 50, 100)]
    assert torch.equal(torch.cat(parts), whole)


def test_jitter_never_waits_for_the_device():
    """On the meta device, which holds no values, whatever would have to read one raises."""
    colours = augment.draw_colours(8, generator())
    there = augment.Colours(colours.draws.to("meta"), colours.order)
    assert augment.jitter(torch.empty(8, 3, 4, 4, device="meta"), there).device.type == "meta"
    boxes = augment.draw_boxes(8, generator(), flip=True).to("meta")
    assert augment.resized_crop(torch.empty(8, 3, 4, 4, device="meta"), boxes).device.type == "meta"


def test_orders_of_a_device_are_drawn_on_the_host():
    """A stand-in for a GPU's generator: the order must follow from its state without drawing from it."""

    class Far:
        device = torch.device("cuda")
        state = torch.arange(16, dtype=torch.uint8)

        def get_state(self):
            return self.state

    orders = set()
    for offset in range(40):
        far = Far()
        far.state = far.state + offset
        first, again = (torch.randperm(4, generator=augment._on_host(far)).tolist() for _ in range(2))
        assert first == again
        orders.add(tuple(first))
    assert len(orders) >= 12  # of 24
