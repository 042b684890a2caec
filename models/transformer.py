"""SAM's two-way transformer: N prompts of T tokens and L image tokens attend to each other.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A.
"""

from collections import OrderedDict

from torch import Tensor, nn

DIM, HEADS, HIDDEN = 256, 8, 2048


class Attention(nn.Module):
    """Attention of width 256 / `downsample`: q (N, Tq, 256), k, v (N or 1, Tk, 256) to (N, Tq, 256)."""

    def __init__(self, downsample: int = 1) -> None:
        super().__init__()
        inner = DIM // downsample
        self.q_proj = nn.Linear(DIM, inner)
        self.k_proj = nn.Linear(DIM, inner)
        self.v_proj = nn.Linear(DIM, inner)
        self.out_proj = nn.Linear(inner, DIM)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        context = scores.softmax(dim=-1) @ v
        return self.out_proj(context.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention()
        self.norm1 = nn.LayerNorm(DIM)
        self.cross_attn_token_to_image = Attention(downsample=2)
        self.norm2 = nn.LayerNorm(DIM)
        layers = {"lin1": nn.Linear(DIM, HIDDEN), "relu": nn.ReLU(), "lin2": nn.Linear(HIDDEN, DIM)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.norm3 = nn.LayerNorm(DIM)
        self.norm4 = nn.LayerNorm(DIM)
        self.cross_attn_image_to_token = Attention(downsample=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (N, T, 256) and image tokens (N, L, 256); the encodings are added to q and k only."""
        if self.first:  # the prompt tokens are their own positional encoding here, as published
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        q, k = tokens + token_pe, image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(q, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(k, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two blocks and a last attention from the tokens to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(first) for first in (True, False))
        self.final_attn_token_to_image = Attention(downsample=2)
        self.norm_final_attn = nn.LayerNorm(DIM)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run on image tokens and their encoding, (N or 1, L, 256) each, and prompt tokens (N, T, 256).

        Returns the updated tokens (N, T, 256) and image tokens (N, L, 256).
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image
