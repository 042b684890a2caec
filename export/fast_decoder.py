"""The prompt encoder and mask decoder for boxes, rewritten for speed, equal up to rounding.

Same inputs and outputs as `litemed.export.graphs.DecoderGraph`: embedding (1, 256, s, s) and boxes
(N, 4) in input pixels to logits (N, 4s, 4s) and predicted IoU (N,). N boxes, T = 7 tokens per box,
H = 8 heads, L = s * s image tokens.

What is computed differently, and why it is the same:

- The first block sees the same image tokens for every box: its keys and values are computed once.
- There are only H T = 56 rows per box against 128 projected channels. Where image tokens differ
  between boxes their projections move to the prompt tokens: scores = (q_h W_k,h) X^T and
  context = (A_h X) W_v,h^T, and for the way back softmax(X (W_q,h^T k_h^T)) (V_h W_o,h^T).
- What is the same for all keys of a softmax cancels in it: key biases. What is the same for all
  values passes through it, since its rows sum to one: value and output biases.
- Heads are not split: a row per head and token, zero outside its head's channels (`_per_head`),
  makes every product a plain matrix product.
- Only mask token 0 and the IoU token are used at the end: the last attention asks for these two,
  and one hypernetwork and one column of the IoU head remain.
- The transposed convolutions have stride = kernel = 2, hence are matrix products on tokens; the
  pixels are put in their places once, on the single-channel logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litemed.models.litemedsam import LiteMedSAM
from litemed.models.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from litemed.models.transformer import DIM, HEADS, Attention

TOKENS = 7  # IoU, four masks, two corners
INNER = DIM // 2  # width of the projections between tokens and image


class SelfAttention(nn.Module):
    """Attention among the tokens of one box: (N, T, 256) queries and values to (N, T, 256)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        scale = (DIM // HEADS) ** -0.5
        self.q_weight, self.q_bias = _buffers(self, "q", attention.q_proj, scale)
        self.k_weight, _ = _buffers(self, "k", attention.k_proj)
        self.v_weight, self.v_bias = _buffers(self, "v", attention.v_proj)
        self.out_weight, self.out_bias = _buffers(self, "out", attention.out_proj)
