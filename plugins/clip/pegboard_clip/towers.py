"""What is exported: two towers that run one without the other, sharing the model's weights."""

from __future__ import annotations

from torch import Tensor, nn

from pegboard_clip.model import ImageTower, TextTower


class Towers(nn.Module):
    """Pictures and captions to embeddings of unit length.

    Args:
        model: Its weights are shared, not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.image, self.text = ImageTower(model), TextTower(model)

    def forward(
        self, image: Tensor | None = None, tokens: Tensor | None = None
    ) -> dict[str, Tensor]:
        """uint8 (B, S, S, 3), int64 (B, L) -> `image_embedding`, `text_embedding` (B, D)."""
        outputs: dict[str, Tensor] = {}
        if image is not None:
            outputs |= self.image(image)
        if tokens is not None:
            outputs |= self.text(tokens)
        return outputs
