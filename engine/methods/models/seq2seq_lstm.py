"""Two stacked LSTMs: one reads a sequence, the other one writes its answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.fields import Count, NonNegative
from engine.kit.anatomy import Anatomy
from engine.parts import Model, Offer, model

State = tuple[Tensor, Tensor]  # h and c of every layer, [layers, B, width] each


def reversed_rows(tokens: Tensor, real: Tensor) -> Tensor:
    """The real tokens of each row [B, S] in reverse order; the padding behind them stays where it is."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    last = real.sum(1, keepdim=True) - 1
    return tokens.gather(1, torch.where(real, last - place, place))


def last_states(lstm: nn.LSTM, x: Tensor, real: Tensor) -> State:
    """The states of every layer of an LSTM behind the last real step of each row [B, S, inputs].

    At a padded step a row's states stay what they are. So nothing of the padding gets in, and the lengths need not be
    known on the CPU, as they must for packed sequences.
    """
    hs, cs = [], []
    for layer in range(lstm.num_layers):
        weights = [getattr(lstm, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = c = x.new_zeros(len(x), lstm.hidden_size)
        outputs = []
        for now, there in zip(x.unbind(1), real.unbind(1), strict=True):
            new_h, new_c = torch.lstm_cell(now, (h, c), *weights)
            h, c = (torch.where(there.unsqueeze(1), new, old) for new, old in ((new_h, h), (new_c, c)))
            outputs.append(h)
        x = torch.stack(outputs, 1)
        hs.append(h)
        cs.append(c)
    return torch.stack(hs), torch.stack(cs)


@model(
    id="seq2seq-lstm",
    name="Sequence to sequence LSTM",
    paper="Sequence to Sequence Learning with Neural Networks",
    arxiv="1409.3215",
    recommends={
        "loss": {"use": "sequence-likelihood", "scale": "sentence"},
        "optimizer": {"use": "sgd", "lr": 0.7, "momentum": 0.0},
        "schedule": {"use": "step-decay", "after": 5.0, "every": 0.5, "decay": 0.5},
        "techniques": [{"use": "gradient-clipping", "limit": 5.0}],
        "decoder": {"use": "beam-search", "width": 12},
        "training": {"batch_size": 128},
        "budget": {"epochs": 7.5},
    },
    example={
        "task": {"use": "string-rewriting", "longest": 5, "alphabet": 4, "samples": 120, "held_out": 20},
        "model": {"layers": 2, "hidden": 8, "embed": 4},
    },
)
class Seq2SeqLSTM(Model):
    """Reads a sequence with one stacked LSTM and writes the answer with another one, which starts from the first one's
    last states: they are all that it knows of what was read. Reading backwards brings the beginnings close together.

        (h, c) = LSTM_enc(x_S, ..., x_1)                     each layer's last states
        p(y_t | y_<t, x) = softmax(W LSTM_dec(y_(t-1); from (h, c)))
        in training y_(t-1) is the true token;  when it answers it is the one that was chosen

    Helps: translation and rewriting, where question and answer are sequences of different lengths.
    Hurts: long sequences, all of which must fit into the states; models with attention look back instead.
    Cost: one step after the other, through as many as were read and are written.
    Choices: only real tokens are reversed, and padding never enters a state. The answer is written in its own order,
        from a token that begins it up to one that ends it, and both words and end are scored. The softmax covers the
        tokens of reading and writing together. With init_range 0 the weights start as PyTorch's do. The paper's
        settings go with gradient clipping at 5 on the loss that is summed over a sentence; for small trainings take
        Adam and the mean over tokens.

    Args:
        layers: LSTM layers of each of the two.
        hidden: Cells of a layer.
        embed: Numbers that a token becomes before it is read.
        init_range: All weights start uniformly between minus and plus this.
        reverse_source: Whether it reads backwards.

    Raises:
        ValueError: For a task whose answer is not a sequence of tokens made from another one.
    """

    def __init__(
        self,
        offer: Offer,
        layers: Count = 4,
        hidden: Count = 1000,
        embed: Count = 1000,
        init_range: NonNegative = 0.08,
        reverse_source: bool = True,
    ):
        super().__init__()
        if offer.input != "tokens" or offer.output != "sequence":
            raise ValueError(
                f"It reads tokens and writes a sequence, and the task offers {offer.input} in and {offer.output} out. "
                "Choose a task that rewrites sequences."
            )
        self.padding, self.reverse_source = int(offer.about["padding"]), reverse_source
        self.read = nn.Embedding(offer.vocabulary, embed)
        self.encoder = nn.LSTM(embed, hidden, layers, batch_first=True)
        self.written = nn.Embedding(offer.size, embed)
        self.decoder = nn.LSTM(embed, hidden, layers, batch_first=True)
        self.features = nn.Identity()
        self.head = nn.Linear(hidden, offer.size)
        if init_range:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init_range, init_range)

    def encode(self, source: Tensor) -> State:
        """What was read, as the states of every layer."""
        real = source != self.padding
        if self.reverse_source:
            source = reversed_rows(source, real)
        return last_states(self.encoder, self.read(source), real)

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        """The logits of each token, given the true ones before it."""
        hidden, _ = self.decoder(self.written(before), self.encode(source))
        return self.head(self.features(hidden))

    def begin(self, source: Tensor) -> Any:
        return tuple(each.transpose(0, 1) for each in self.encode(source))

    def advance(self, state: Any, token: Tensor) -> tuple[Tensor, Any]:
        h, c = (each.transpose(0, 1).contiguous() for each in state)
        hidden, (h, c) = self.decoder(self.written(token.unsqueeze(1)), (h, c))
        log_p = self.head(self.features(hidden))[:, 0].log_softmax(-1)
        return log_p, (h.transpose(0, 1), c.transpose(0, 1))

    def anatomy(self) -> Anatomy:
        blocks: list[nn.Module] = [self.encoder, self.decoder]
        return Anatomy(self, stem=self.read, blocks=blocks, features=self.features, head=self.head)
