"""What changes while a model learns: the learning rate and the weight of the KL term.

Both are functions of the epochs done so far, parts of one included, so a resume needs no state of theirs.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The tutorial keeps both constant, which is the default here.

    Arguments:
        lr: Adam's learning rate, at the beginning.
        beta: weight of the KL term in the objective, at the end (Higgins et al., 2017).
        cosine_epochs: over so many epochs the learning rate falls to 0 along half a cosine
            (Loshchilov & Hutter, 2017, equation 5, without restarts); None keeps it.
        kl_warmup: over so many epochs the weight grows from 0 to beta on a straight line (Sonderby et
            al., 2016): the decoder finds use for the code before the prior pulls at it.
    """

    lr: float
    beta: float = 1.0
    cosine_epochs: int | None = None
    kl_warmup: int = 0

    def lr_after(self, epochs: float) -> float:
        """The learning rate of the next step, `epochs` into the training."""
        if self.cosine_epochs is None:
            return self.lr
        return self.lr * (1 + math.cos(math.pi * epochs / self.cosine_epochs)) / 2

    def kl_weight_after(self, epochs: float) -> float:
        """The KL term's weight in the objective of the next step, `epochs` into the training."""
        return self.beta * min(1.0, epochs / self.kl_warmup) if self.kl_warmup else self.beta
