"""Pictures of log-mels: time goes right, frequency up, loud is dark."""

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw

PANEL_HEIGHT = 160  # pixels: mel bins are enlarged until a panel is at least about this high
CAPTION_HEIGHT = 14
GAP = 8  # pixels between panels and around the picture


def mel_picture(rows: Sequence[Mapping[str, torch.Tensor]]) -> Image.Image:
    """Log-mels side by side, one row for each example.

    Args:
        rows: for each example its panels by caption, such as source, target and converted; each
            `(frames, num_mel_bins)` without padding. All are drawn on one scale.

    Raises:
        ValueError: there is nothing to draw, or a panel is no log-mel.
    """
    panels = [panel for row in rows for panel in row.values()]
    if not panels:
        raise ValueError("there are no log-mels to draw")
    for panel in panels:
        if panel.ndim != 2 or 0 in panel.shape or panel.shape[1] != panels[0].shape[1]:
            raise ValueError(
                f"expected log-mels (frames, num_mel_bins) of {panels[0].shape[-1]} bins, got {tuple(panel.shape)}"
            )
    values = torch.cat([panel.detach().float().cpu().flatten() for panel in panels]).nan_to_num(0)
    low, high = (values.kthvalue(max(1, round(share * len(values)))).values for share in (0.02, 0.998))
    factor = max(1, round(PANEL_HEIGHT / panels[0].shape[1]))
    drawn = [[(caption, _panel(mel, low, high, factor)) for caption, mel in row.items()] for row in rows]
    columns = max(map(len, drawn))
    measure = ImageDraw.Draw(Image.new("L", (1, 1))).textlength
    widths = [
        max(math.ceil(max(row[column][1].width, measure(row[column][0]))) for row in drawn if column < len(row))
        for column in range(columns)
    ]
    height = drawn[0][0][1].height + CAPTION_HEIGHT + GAP
    picture = Image.new("L", (GAP + sum(width + GAP for width in widths), GAP + height * len(drawn)), 255)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(drawn):
        left, top = GAP, GAP + number * height
        for (caption, panel), width in zip(row, widths, strict=False):
            draw.text((left, top), caption, fill=0)
            picture.paste(panel, (left, top + CAPTION_HEIGHT))
            left += width + GAP
    return picture


def _panel(mel: torch.Tensor, low: torch.Tensor, high: torch.Tensor, factor: int) -> Image.Image:
    shade = (mel.detach().float().cpu().nan_to_num(0) - low) / (high - low).clamp_min(1e-6)
    levels = (255 * (1 - shade.clamp(0, 1))).round().byte().T.flip(0).contiguous()  # highest frequency on top
    image = Image.fromarray(levels.numpy())
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
