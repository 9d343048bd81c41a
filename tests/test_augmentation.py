"""Random geometric changes of images: where known changes put known pixels."""

import math

import pytest
import torch

from hf_autoencoders.data import elastic_deformation, random_affine

ROTATION, WIDTH, HEIGHT, SHEAR, RIGHT, DOWN = range(6)
RANGES = {"rotation_degrees": 30, "scale": 1.3, "shear_degrees": 20, "translation": 0.1}
SHAPES = [(3, 1, 8, 8), (2, 3, 9, 14), (1, 5, 16, 7), (2, 1, 1, 1)]


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def noise_of(which: int, value: float, rows: int = 1) -> torch.Tensor:
    noise = torch.full((rows, 6), 0.5)
    noise[:, which] = value
    return noise


def point(x: float, y: float, height: int = 21, width: int = 21) -> torch.Tensor:
    """A small bright spot so many pixels to the right and down of the centre."""
    down, right = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    return torch.exp(-((right - x) ** 2 + (down - y) ** 2) / 2)[None, None]


def place(image: torch.Tensor) -> tuple[float, float]:
    """The centre of mass, to the right and down of the image's centre."""
    height, width = image.shape[-2:]
    mass = image[0, 0] / image.sum()
    right = (mass.sum(0) * (torch.arange(width) - (width - 1) / 2)).sum()
    down = (mass.sum(1) * (torch.arange(height) - (height - 1) / 2)).sum()
    return right.item(), down.item()


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_changes_in_the_middle_or_without_ranges(shape):
    pixel_values = images(*shape)
    middle = torch.full((shape[0], 6), 0.5)
    torch.testing.assert_close(random_affine(pixel_values, middle, **RANGES), pixel_values, atol=1e-5, rtol=0)
    torch.testing.assert_close(random_affine(pixel_values, images(shape[0], 6)), pixel_values, atol=1e-5, rtol=0)
    still = elastic_deformation(pixel_values, torch.zeros(shape[0], 2, 4, 4), 3.0)
    torch.testing.assert_close(still, pixel_values, atol=1e-5, rtol=0)
    none = elastic_deformation(pixel_values, torch.randn(shape[0], 2, 3, 5), 0.0)
    torch.testing.assert_close(none, pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("which", "noise", "start", "end"),
    [
        (ROTATION, 1.0, (6, 0), (6 * math.cos(math.pi / 6), -6 * math.sin(math.pi / 6))),  # counter-clockwise
        (ROTATION, 0.0, (6, 0), (6 * math.cos(math.pi / 6), 6 * math.sin(math.pi / 6))),
        (ROTATION, 0.75, (0, 6), (6 * math.sin(math.pi / 12), 6 * math.cos(math.pi / 12))),
        (WIDTH, 1.0, (4, 4), (5.2, 4)),
        (WIDTH, 0.0, (5.2, 4), (4, 4)),
        (HEIGHT, 1.0, (4, -4), (4, -5.2)),
        (SHEAR, 1.0, (0, -5), (5 * math.tan(math.pi / 9), -5)),  # the top goes to the right
        (SHEAR, 0.0, (0, -5), (-5 * math.tan(math.pi / 9), -5)),
        (RIGHT, 1.0, (0, 3), (2.1, 3)),  # a tenth of 21 pixels
        (DOWN, 0.0, (0, 3), (0, 0.9)),
    ],
)
def test_known_changes_move_a_point(which, noise, start, end):
    moved = random_affine(point(*start), noise_of(which, noise), **RANGES)
    assert place(moved) == pytest.approx(end, abs=0.1)


def test_changes_follow_each_other_in_the_order_told():
    noise = torch.tensor([[0.9, 0.8, 0.2, 0.7, 0.9, 0.3]])
    moved = random_affine(point(5, -3, 31, 41), noise, **RANGES)
    x, y = 5 * 1.3**0.6, -3 * 1.3**-0.6
    x, y = x - y * math.tan(math.radians(20 * 0.4)), y
    angle = math.radians(30 * 0.8)
    x, y = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    assert place(moved) == pytest.approx((x + 0.8 * 0.1 * 41, y - 0.4 * 0.1 * 31), abs=0.1)


def test_a_quarter_turn_of_a_square_is_rot90():
    pixel_values = images(2, 3, 12, 12)
    turned = random_affine(pixel_values, noise_of(ROTATION, 1.0, 2), rotation_degrees=90)
    torch.testing.assert_close(turned, torch.rot90(pixel_values, 1, (2, 3)), atol=1e-5, rtol=0)


def test_whole_pixels_are_shifted_exactly_and_the_border_is_black():
    pixel_values = images(1, 2, 8, 16)
    shifted = random_affine(pixel_values, noise_of(RIGHT, 1.0), translation=0.125)  # two pixels
    torch.testing.assert_close(shifted[..., 2:], pixel_values[..., :-2], atol=1e-5, rtol=0)
    assert (shifted[..., :2] == 0).all()
    drawn = torch.zeros(1, 2, 3, 3)
    drawn[:, 0] = 1.0  # read from the right: the image goes to the left
    shifted = elastic_deformation(pixel_values, drawn, 3.0)
    torch.testing.assert_close(shifted[..., :-3], pixel_values[..., 3:], atol=1e-5, rtol=0)
    assert (shifted[..., -3:] == 0).all()
    drawn = drawn.flip(1)  # from below
    torch.testing.assert_close(
        elastic_deformation(pixel_values, drawn, 3.0)[..., :-3, :], pixel_values[..., 3:, :], atol=1e-5, rtol=0
    )


def test_elastic_deformation_is_local():
    """Noise at one corner of the grid moves what is there and leaves the other corner."""
    drawn = torch.zeros(1, 2, 5, 5)
    drawn[0, 0, 0, 0] = -1.0
    near, far = point(-12, -12, 33, 33), point(10, 10, 33, 33)
    moved = elastic_deformation(near + far, drawn, 2.0)
    assert place(moved[..., :16, :16])[0] > place((near + far)[..., :16, :16])[0] + 0.2
    torch.testing.assert_close(moved[..., 20:, 20:], far[..., 20:, 20:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_stay_in_their_range_and_rows_do_not_know_of_each_other(shape):
    pixel_values, generator = images(*shape), torch.Generator().manual_seed(1)
    uniform = torch.rand(shape[0], 6, generator=generator)
    normal = torch.randn(shape[0], 2, 4, 3, generator=generator)

    def change(rows: slice) -> torch.Tensor:
        changed = random_affine(pixel_values[rows], uniform[rows], **RANGES)
        return elastic_deformation(changed, normal[rows], 1.5)

    changed = change(slice(None))
    assert changed.shape == pixel_values.shape and changed.min() >= 0 and changed.max() <= 1 + 1e-6
    alone = torch.cat([change(slice(row, row + 1)) for row in range(shape[0])])
    assert torch.equal(changed, alone)
    assert not torch.equal(changed, pixel_values)


def test_dtype_is_kept_and_places_are_exact_under_autocast():
    pixel_values, noise = images(2, 1, 40, 40), images(2, 6)
    expected = random_affine(pixel_values, noise, **RANGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_affine(pixel_values, noise, **RANGES), expected)
    half = random_affine(pixel_values.bfloat16(), noise, **RANGES)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.02, rtol=0)


def test_wrong_inputs_are_refused():
    pixel_values, noise = images(2, 1, 8, 8), images(2, 6)
    with pytest.raises(ValueError, match=r"pixel_values must be float \(batch.*got torch.uint8 \(2, 1, 8, 8\)"):
        random_affine(pixel_values.to(torch.uint8), noise)
    with pytest.raises(ValueError, match=r"pixel_values must be float .*got torch.float32 \(1, 8, 8\)"):
        elastic_deformation(pixel_values[0], images(1, 2, 3, 3), 1.0)
    with pytest.raises(ValueError, match=r"noise must be of shape \(2, 6\) for these pixel_values, got \(1, 6\)"):
        random_affine(pixel_values, noise[:1])
    with pytest.raises(ValueError, match=r"noise must be of shape \(2, 2, any, any\).*got \(2, 3, 4, 4\)"):
        elastic_deformation(pixel_values, images(2, 3, 4, 4), 1.0)
    for name, value in (("rotation_degrees", -1), ("scale", 0.9), ("shear_degrees", 90), ("translation", math.nan)):
        with pytest.raises(ValueError, match=f"{name} must be from .* got {value}"):
            random_affine(pixel_values, noise, **{name: value})
    with pytest.raises(ValueError, match="strength_pixels must not be negative, got -1"):
        elastic_deformation(pixel_values, images(2, 2, 4, 4), -1.0)
