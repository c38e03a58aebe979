"""Every layout of weights, run once more in float64 numpy from the tensors' names alone: what ours is proven against.

Each layout has `random_...(spec, rng)`, a whole file of float32 tensors none of which is at a special value, and
`logits_...(tensors, images_BCHW)`, (B, K) in float64. Where the codes differ:

| | official, big_vision | BiT (big_transfer) | timm ViT and hybrid | timm BiT | Hugging Face |
|---|---|---|---|---|---|
| GELU | tanh form | - | erf | - | erf |
| LayerNorm eps | 1e-6 | - | 1e-6 | - | 1e-12, in the config |
| GroupNorm eps, 32 groups | 1e-6 | 1e-5 | 1e-5 | 1e-5 | - |
| standardised kernel | / (std + 1e-5) | / sqrt(var + 1e-10) | / sqrt(var + 1e-8) | / sqrt(var + 1e-8) | - |
| padding of convolutions | SAME | (k - 1) / 2 each side | SAME | (k - 1) / 2 each side | - |
| max pool pads with | -inf, SAME | zeros, 1 each side | -inf, SAME | zeros, 1 each side | - |
| GAP | mean of normed tokens | | norm of the mean (`fc_norm`) or as official (`norm`) | | - |
"""
