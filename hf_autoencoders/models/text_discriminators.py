"""Judges of token sequences: what keeps the summaries of a seq2seq2seq model readable.

All of them read soft tokens: `tokens` is a float tensor `(batch_size, length, vocab_size)`, each row one-hot or a
distribution, so that a gradient can pass to whoever wrote them; `mask` is `(batch_size, length)`, 1 at tokens.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


class TextJudge(nn.Module):
    """Embeddings, and the state that all judges share."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch_size, length, hidden_size)` of soft tokens."""
        return tokens.to(self.embeddings.weight.dtype) @ self.embeddings.weight


class SequenceCritic(TextJudge):
    """Residual convolutions over the tokens, then one number: the critic of WGAN-GP (Gulrajani et al. 2017)."""

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.blocks = nn.ModuleList(nn.Conv1d(size, size, 5, padding=2) for _ in range(config.num_layers))
        self.score = nn.Linear(size, 1)

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores `(batch_size, 1)` of embedded tokens; higher for those that look real."""
        mask = mask.to(embeddings.dtype)[..., None]
        states = embeddings * mask
        for block in self.blocks:
            states = (states + F.leaky_relu(block(states.transpose(1, 2)).transpose(1, 2), 0.2)) * mask
        # The sum over a usual length, not the mean: a gradient penalty of a mean would forget long sentences' words.
        return self.score(states.sum(1) / 8)


class PrefixCritic(TextJudge):
    """A recurrent discriminator with a score after each token, for everything up to it (ScratchGAN)."""

    def __init__(self, config):
        super().__init__(config)
        self.recurrent = nn.GRU(config.hidden_size, config.hidden_size, config.num_layers, batch_first=True)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-odds of being real `(batch_size, length)`, of each prefix of the embedded tokens."""
        return self.score(self.recurrent(embeddings)[0])[..., 0]


class RecurrentLanguageModel(TextJudge):
    """A recurrent language model whose output layer is its table of embeddings."""

    def __init__(self, config):
        super().__init__(config)
        self.recurrent = nn.GRU(config.hidden_size, config.hidden_size, config.num_layers, batch_first=True)
        self.start = nn.Parameter(torch.zeros(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def initial_state(self) -> dict[str, torch.Tensor]:
        """No start and no bias."""
        return {"start": torch.zeros_like(self.start), "bias": torch.zeros_like(self.bias)}

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(batch_size, length, vocab_size)` of each token given those before it, float32."""
        first = self.start.expand(len(embeddings), 1, -1)
        states = self.recurrent(torch.cat([first, embeddings[:, :-1]], dim=1))[0]
        return F.log_softmax((states @ self.embeddings.weight.T + self.bias).float(), dim=-1)


JUDGES = {"wgan_gp": SequenceCritic, "critic": PrefixCritic, "language_model": RecurrentLanguageModel}


@torch.no_grad()
def initialize_judge(module: nn.Module) -> bool:
    """Weights of a part of a judge, as transformers asks for them; False for a module that is not initialised here."""
    if isinstance(module, (nn.GRU, nn.Conv1d, nn.Linear)):
        bound = module.hidden_size**-0.5 if isinstance(module, nn.GRU) else module.weight[0].numel() ** -0.5
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -bound, bound)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, RecurrentLanguageModel):
        for name, value in module.initial_state().items():
            init.copy_(getattr(module, name), value)
    else:
        return False
    return True


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the entries where `mask` is 1, as a float32 scalar."""
    mask = mask.float()
    return (values.float() * mask).sum() / mask.sum().clamp_min(1.0)


def gradient_penalty(
    judge, real: torch.Tensor, fake: torch.Tensor, mask: torch.Tensor, mixture: torch.Tensor
) -> torch.Tensor:
    """E (|gradient of the score| - 1)^2 between real and generated rows (Gulrajani et al. 2017).

    Args:
        judge: `(embeddings, mask) -> scores`.
        real, fake (`(batch_size, length, hidden_size)`): embedded tokens, zero where there are none.
        mask (`(batch_size, length)`): 1 where either has a token.
        mixture (`(batch_size,)`): share of the real row in each interpolation, in [0, 1].
    """
    mixture = mixture[:, None, None].to(real.dtype)
    between = (mixture * real + (1 - mixture) * fake).detach().requires_grad_()
    with torch.enable_grad():
        gradient = torch.autograd.grad(judge(between, mask).sum(), between, create_graph=True)[0]
    norms = (gradient.float().flatten(1).square().sum(1) + 1e-12).sqrt()
    return (norms - 1).square().mean()
