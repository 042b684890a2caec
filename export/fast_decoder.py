"""The prompt encoder and mask decoder, rewritten for speed, equal up to rounding.

What `litemed.models.litemedsam.LiteMedSAM.decode` gives, its single-mask output: embedding (1, 256, s, s) and
prompts, P points each (a box is two of them), to logits (N, 4s, 4s) and predicted IoU (N,). N prompts,
T = 5 + P tokens each, H = 8 heads, L = s * s image tokens. What is computed differently, and why it is the
same:

- The first block sees the same image tokens for every prompt: its keys and values are computed once.
- There are only T H rows per prompt, 56 for a box, against 128 projected channels. Where image tokens differ
  between prompts, their projections move to the prompt tokens: scores = (q_h W_k,h) X^T and
  context = (A_h X) W_v,h^T, and for the way back softmax(X (W_q,h^T k_h^T)) (V_h W_o,h^T).
- What is the same for all keys of a softmax cancels in it: key biases. What is the same for all values passes
  through it, since its rows sum to one: value and output biases.
- Heads are not split: one row per head and token, zero outside the head's channels (`PerHead`), makes every
  product a plain matrix product.
- Only mask token 0 and the IoU token are used at the end: the last attention asks for these two, and one
  hypernetwork and one column of the IoU head remain.
- The transposed convolutions have stride = kernel = 2, hence are matrix products on tokens; the pixels are
  put in their places once, on the single-channel logits.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.export.fast_encoder import channel_norm, linear
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.prompt_encoder import BOTTOM_RIGHT, NOT_A_POINT
from litemed.models.transformer import DIM, HEADS, Attention, TwoWayBlock

USED = 2  # of them after the last attention: IoU and mask 0
INNER = DIM // 2  # width of the projections between tokens and image


def scaled_queries(attention: Attention) -> nn.Linear:
    """The projection of the queries with the scale of the scores in it."""
    layer = attention.q_proj
    scale = (layer.out_features // HEADS) ** -0.5
    return linear(layer.weight * scale, layer.bias * scale)


class SelfAttention(nn.Module):
    """Attention among the tokens of one prompt: q (N, T, 256) and v (N, T, 256) to (N, T, 256)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.q = scaled_queries(attention)
        self.k = linear(attention.k_proj.weight)
        self.v = attention.v_proj
        self.out = attention.out_proj

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        scores = self._heads(self.q(q)) @ self._heads(self.k(q)).transpose(-2, -1)
        context = scores.softmax(dim=-1) @ self._heads(self.v(v))
        return self.out(context.transpose(1, 2).reshape(q.shape[0], -1, DIM))

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, HEADS, DIM // HEADS).transpose(1, 2)


class PerHead(nn.Module):
    """Rows per head: (N, T, 128) to (N, T H, 128), row t H + h being token t with only head h's channels."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        heads = torch.arange(INNER) // (INNER // HEADS)
        self.register_buffer("mask", (heads == torch.arange(HEADS)[:, None]).float())  # (H, 128)

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(2) * self.mask).reshape(x.shape[0], -1, INNER)

    def gather(self, x: Tensor) -> Tensor:
        """Take head h's channels from row t H + h, for all h: (N, T H, 128) to (N, T, 128)."""
        return (x.reshape(x.shape[0], -1, HEADS, INNER) * self.mask).sum(dim=2)


class TokensToImage(nn.Module):
    """Attention from t tokens of each prompt (N, t, 256) to its image (N, L, 256), projections absorbed."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.per_head = PerHead()
        self.q = scaled_queries(attention)
        self.k = linear(attention.k_proj.weight.T)
        self.v = linear(attention.v_proj.weight)
        out = attention.out_proj
        self.out = linear(out.weight, out.bias + out.weight @ attention.v_proj.bias)

    def forward(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = self.k(self.per_head(self.q(q))) @ keys.transpose(1, 2)  # (N, H t, L)
        context = self.v(scores.softmax(dim=-1) @ values)  # (N, H t, 128)
        return self.out(self.per_head.gather(context))


class TokensToSharedImage(nn.Module):
    """Attention from the tokens of all prompts to one image's tokens, which are projected once.

    q (N, T, 256) and image (256, L) to (N, T, 256). `offset` (256,) is added to the image tokens, `positions`
    (256, L) to the keys besides.
    """

    key_offset: Tensor

    def __init__(self, attention: Attention, offset: Tensor, positions: Tensor) -> None:
        super().__init__()
        self.q = scaled_queries(attention)
        self.key_weight, self.value_weight = attention.k_proj.weight, attention.v_proj.weight
        offset_key = attention.k_proj.weight @ (positions + offset[:, None])
        self.register_buffer("key_offset", offset_key.detach())
        value = attention.v_proj.weight @ offset + attention.v_proj.bias
        out = attention.out_proj
        self.out = linear(out.weight, out.bias + out.weight @ value)

    def forward(self, q: Tensor, image: Tensor) -> Tensor:
        keys = (self.key_weight @ image + self.key_offset).reshape(HEADS, INNER // HEADS, -1)
        values = (self.value_weight @ image).reshape(HEADS, INNER // HEADS, -1)
        rows = self.q(q).reshape(-1, HEADS, INNER // HEADS).transpose(0, 1)  # (H, N T, 16)
        context = (rows @ keys).softmax(dim=-1) @ values.transpose(1, 2)
        return self.out(context.transpose(0, 1).reshape(q.shape[0], -1, INNER))


class ImageToTokens(nn.Module):
    """Attention from an image (N or 1, L, 256) to tokens of each prompt (N, T, 256), projections absorbed."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        scale = (INNER // HEADS) ** -0.5
        self.per_head = PerHead()
        self.k = linear(attention.k_proj.weight)
        self.q = linear(attention.q_proj.weight.T * scale)
        self.query_bias = linear(attention.q_proj.bias[None] * scale)
        self.v = attention.v_proj
        # every head's rows sum to one, so that an eighth of the bias on each row gives the bias
        self.out = linear(attention.out_proj.weight, attention.out_proj.bias / HEADS)

    def forward(self, image: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = self.per_head(self.k(k))  # (N, T H, 128)
        scores = image @ self.q(keys).transpose(1, 2) + self.query_bias(keys).transpose(1, 2)
        weights = scores.reshape(k.shape[0], image.shape[1], -1, HEADS).softmax(dim=-2)
        return weights.reshape(k.shape[0], image.shape[1], -1) @ self.out(self.per_head(self.v(v)))


class Upscaling(nn.Module):
    """Image tokens (N, L, 256), each 4 x 4 pixels, and mask weights (N, 32) to logits (N, 4s, 4s)."""

    def __init__(self, upscaling: nn.Sequential, side: int) -> None:
        super().__init__()
        first, norm, _, second, _ = cast(Any, upscaling)
        self.side = side
        self.first, self.norm, self.second = _unrolled(first), channel_norm(norm), _unrolled(second)

    def forward(self, image: Tensor, weights: Tensor) -> Tensor:
        side, channels = self.side, weights.shape[1]
        x = self.first(image).reshape(-1, 4 * side * side, self.norm.normalized_shape[0])
        x = F.gelu(self.second(F.gelu(self.norm(x)))).reshape(-1, 16 * side * side, channels)
        logits = (x @ weights.unsqueeze(-1)).reshape(-1, side, side, 2, 2, 2, 2)  # y, x, then dy, dx twice
        return logits.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * side, 4 * side)


def _unrolled(convolution: Any) -> nn.Linear:
    """A transposed convolution of stride = kernel = 2 as a layer from C to 2 * 2 * C' (dy, dx, C')."""
    return linear(convolution.weight.permute(2, 3, 1, 0).flatten(0, 2), convolution.bias.repeat(4))


class MaskEncoderGraph(nn.Module):
    """A mask (1, 1, 4s, 4s) in logits to what it adds to the embedding of its image (1, 256, s, s).

    So a decoder need not know of masks: what it adds to every image without one is taken off here.
    """

    no_mask: Tensor

    def __init__(self, model: LiteMedSAM) -> None:
        super().__init__()
        self.downscaling = model.prompt_encoder.mask_downscaling
        self.register_buffer("no_mask", model.prompt_encoder.no_mask_embed.weight.detach()[0, :, None, None])

    def forward(self, mask: Tensor) -> Tensor:
        return self.downscaling(mask) - self.no_mask


class FastDecoderGraph(nn.Module):
    """Prompts and an image embedding to logits and predicted IoU of a network, which is not changed.

    Prompts are points (N, P, 2), x y in input pixels, and what each is (N, P): 1 in the object, 0 in the
    background, 2 and 3 the upper left and lower right corner of a box, -1 none at all. As published, a prompt
    has a box or a -1, and points come before either.
    """

    offset: Tensor
    learnt: Tensor
    kinds: Tensor
    positions: Tensor

    def __init__(self, model: LiteMedSAM) -> None:
        super().__init__()
        prompt, decoder = model.prompt_encoder, model.mask_decoder
        self.size = model.size
        self.pe_layer = prompt.pe_layer
        learnt = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        self.register_buffer("learnt", learnt.detach())
        kinds = [prompt.point_embeddings.get_parameter(f"{i}.weight") for i in range(BOTTOM_RIGHT + 1)]
        self.register_buffer("kinds", torch.cat([prompt.not_a_point_embed.weight, *kinds]).detach())
        positions = prompt.image_positions().detach().flatten(2)[0]  # (256, L)
        offset = prompt.no_mask_embed.weight.detach()[0]
        self.register_buffer("offset", offset)
        self.register_buffer("positions", positions.T.contiguous())

        first, second = (cast(TwoWayBlock, block) for block in decoder.transformer.layers)
        self.shared = TokensToSharedImage(first.cross_attn_token_to_image, offset, positions)
        self.absorbed = TokensToImage(second.cross_attn_token_to_image)
        self.last = TokensToImage(decoder.transformer.final_attn_token_to_image)
        self.self_attention = nn.ModuleList(SelfAttention(b.self_attn) for b in (first, second))
        self.back = nn.ModuleList(ImageToTokens(b.cross_attn_image_to_token) for b in (first, second))
        self.first, self.second = first, second
        self.last_norm = decoder.transformer.norm_final_attn
        self.hypernetwork = decoder.output_hypernetworks_mlps[0]
        self.iou = decoder.iou_prediction_head
        self.upscaling = Upscaling(decoder.output_upscaling, model.size // 4)

    def forward(self, image_embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        first, second, positions = self.first, self.second, self.positions
        embedding = image_embedding.reshape(DIM, -1)  # (256, L)
        image = embedding.T.unsqueeze(0) + self.offset
        placed = self.pe_layer((points + 0.5) / self.size) * (labels != NOT_A_POINT).unsqueeze(-1)
        prompts = placed + self.kinds[labels.long() - NOT_A_POINT]
        token_pe = torch.cat([self.learnt.expand(prompts.shape[0], -1, -1), prompts], dim=1)

        tokens = first.norm1(self.self_attention[0](token_pe, token_pe))
        tokens = first.norm2(tokens + self.shared(tokens + token_pe, embedding))
        tokens = first.norm3(tokens + first.mlp(tokens))
        image = first.norm4(image + self.back[0](image + positions, tokens + token_pe, tokens))

        placed = image + positions
        q = tokens + token_pe
        tokens = second.norm1(tokens + self.self_attention[1](q, tokens))
        tokens = second.norm2(tokens + self.absorbed(tokens + token_pe, placed, image))
        tokens = second.norm3(tokens + second.mlp(tokens))
        image = second.norm4(image + self.back[1](placed, tokens + token_pe, tokens))

        tokens, token_pe = tokens[:, :USED], token_pe[:, :USED]
        tokens = self.last_norm(tokens + self.last(tokens + token_pe, image + positions, image))
        logits = self.upscaling(image, self.hypernetwork(tokens[:, 1]))
        return logits, self.iou(tokens[:, 0])[:, 0]
