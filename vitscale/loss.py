"""Losses on soft targets, computed in fp32. B images, K classes."""

import torch
import torch.nn.functional as F


def softmax(logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with a distribution over classes -> loss_B."""
    return -(targets_BK * F.log_softmax(logits_BK.float(), dim=-1)).sum(dim=-1)


def sigmoid(logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
    """Independent binary cross-entropies, summed over the classes -> loss_B (the ViT authors' pretraining loss)."""
    logits_BK = logits_BK.float()
    # Not binary_cross_entropy_with_logits: at the first logits of -10 its float32 is off by 1 % in every absent class.
    return (F.softplus(logits_BK) - targets_BK * logits_BK).sum(dim=-1)


LOSSES = {"softmax": softmax, "sigmoid": sigmoid}
