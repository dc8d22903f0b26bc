"""A Bayesian neural network for regression: a multilayer perceptron with a prior on every weight and bias."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["BayesianNeuralNetwork"]

Activation = Literal["tanh", "relu"]
_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class BayesianNeuralNetwork:
    """Regression on the output of a perceptron, all of whose weights and biases are latent.

    h_0 = (x_i - centre) / spread, h_l = activation(h_{l-1} weight_l + bias_l) for each hidden layer,
    mean_i = y_centre + y_spread (h_L weight_out + bias_out), y_i ~ Normal(mean_i, sigma);
    weight_l, weight_out ~ Normal(0, weight_scale / sqrt(fan-in)), bias_l, bias_out ~ Normal(0, bias_scale),
    sigma ~ HalfNormal(y_spread noise_scale).

    The priors are in standard deviations of x and y. `BayesianNeuralNetwork.standardised(x, y)` takes those from the
    training data, after which the units of x and y do not matter; the bare class takes x and y as standardised
    already. Predictions are in the units of y either way.

    The posterior has many modes by symmetry alone: hidden units may stand in any order, and with "tanh" the weights
    into and out of a unit may all change sign, which makes H! 2^H copies with one layer of H units. A guide holds one
    of them. Predictions do not see that. The evidence does: `log_evidence` misses the copies, and importance weights
    over so many latents are so uneven that it calls itself unreliable, which it is. Compare networks by the log density
    of held-out data instead, and read no meaning into a single weight.

    Args:
        num_columns: columns D of x.
        hidden: widths of the hidden layers; none makes the model a linear regression.
        activation: of the hidden layers, "tanh" or "relu".
        weight_scale: prior sd of h_{l-1} weight_l where the entries of h_{l-1} have size 1; where it is larger,
            functions bend more.
        bias_scale: prior sd of a bias; a hidden unit turns about bias / weight from the centre of x.
        noise_scale: of the half-normal prior on sigma, in standard deviations of y.
        centre, spread: of the columns of x, in their units: one number for all, or D of them.
        y_centre, y_spread: of y, in its units.

    Raises:
        ValueError: sizes or scales that are not positive, another activation, or a number of centres or
            spreads that is not D.

    References:
        MacKay (1992), A Practical Bayesian Framework for Backpropagation Networks.
        Neal (1996), Bayesian Learning for Neural Networks (the scale by fan-in).
    """

    num_columns: int
    hidden: tuple[int, ...] = (16,)
    activation: Activation = "tanh"
    weight_scale: float = 2.0
    bias_scale: float = 2.0
    noise_scale: float = 1.0
    centre: float | tuple[float, ...] = 0.0
    spread: float | tuple[float, ...] = 1.0
    y_centre: float = 0.0
    y_spread: float = 1.0

    def __post_init__(self) -> None:
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation must be 'tanh' or 'relu', got {self.activation!r}")
        if not isinstance(self.hidden, tuple):
            raise ValueError(f"hidden must be a tuple of widths, as in (16,) or (16, 16), got {self.hidden!r}")
        if self.num_columns < 1 or any(width < 1 for width in self.hidden):
            raise ValueError(
                f"num_columns and the widths of hidden layers must be at least 1, got num_columns={self.num_columns} "
                f"and hidden={self.hidden}; for no hidden layer say hidden=()"
            )
        for name in ("centre", "spread"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.num_columns:
                raise ValueError(
                    f"{name} has {len(value)} numbers and num_columns is {self.num_columns}: give one for each column, "
                    "or one number for all"
                )
        if not torch.isfinite(torch.tensor(self.centre)).all() or not math.isfinite(self.y_centre):
            raise ValueError(f"centre and y_centre must be finite, got {self.centre} and {self.y_centre}")
        for name in ("weight_scale", "bias_scale", "noise_scale", "spread", "y_spread"):
            value = getattr(self, name)
            if not all(0 < one < math.inf for one in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{name} must be positive and finite, got {value}")

    @classmethod
    def standardised(cls, x: Any, y: Any, hidden: tuple[int, ...] = (16,), **hyperparameters: Any) -> Self:
        """The model with centres and spreads of training data: mean and standard deviation of each column, and of y.

        Args:
            x: inputs, shape (N, D), tensor, array or data frame.
            y: outputs, shape (N,).
            hidden, hyperparameters: the other arguments of the class.

        Raises:
            ValueError: x or y of another shape, values that are not finite, or a column that is constant.
        """
        inputs, outputs = _numbers(x), _numbers(y)
        _refuse(inputs, outputs)
        if len(inputs) < 2:
            raise ValueError(f"x has {len(inputs)} row, and a standard deviation takes 2 at least")
        spread, y_spread = inputs.std(0), outputs.std(0)
        # Rounding leaves a constant column a spread that is small beside its size, not one of zero.
        constant = (spread <= 1e-12 * inputs.abs().amax(0)).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"column {', '.join(map(str, constant))} of x is constant over its {len(inputs)} rows: leave it "
                "out, the biases say what a constant can say"
            )
        if not y_spread > 1e-12 * outputs.abs().max():
            raise ValueError(
                f"y is constant over its {len(outputs)} rows, {float(outputs[0])}: there is nothing to fit"
            )
        return cls(
            inputs.shape[1],
            hidden,
            centre=tuple(inputs.mean(0).tolist()),
            spread=tuple(spread.tolist()),
            y_centre=float(outputs.mean()),
            y_spread=float(y_spread),
            **hyperparameters,
        )

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        """One run of the model.

        Args:
            x: inputs, shape (N, D), in the units of `centre` and `spread`; one column is (N, 1).
            y: outputs, shape (N,), in the units of `y_centre` and `y_spread`; None draws them.

        Raises:
            ValueError: x or y of another shape, or values that are not finite.
        """
        _refuse(x, y, self.num_columns)
        drawn = {
            name: pyro.sample(name, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))
            for name, (shape, scale) in self.shapes().items()
        }
        sigma = pyro.sample("sigma", dist.HalfNormal(self.y_spread * self.noise_scale))
        with pyro.plate("row", len(x)) as i:
            h = (x[i] - torch.tensor(self.centre, device=x.device)) / torch.tensor(self.spread, device=x.device)
            for layer in range(1, len(self.hidden) + 1):
                weight, bias = drawn[f"weight_{layer}"], drawn[f"bias_{layer}"]
                # Particles in front come with a place for the rows, which a product of matrices makes itself.
                weight = weight.squeeze(-3) if weight.dim() > 2 else weight
                h = _FUNCTIONS[self.activation](h @ weight + bias)
            output = (h * drawn["weight_out"]).sum(-1) + drawn["bias_out"]
            mean = pyro.deterministic("mean", self.y_centre + self.y_spread * output, event_dim=0)
            pyro.sample("y", dist.Normal(mean, sigma), obs=None if y is None else y[i])

    def shapes(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Shape and prior scale of every weight and bias by the name of its site, first layer to last."""
        found: dict[str, tuple[tuple[int, ...], float]] = {}
        widths = (self.num_columns, *self.hidden)
        for layer, (inputs, outputs) in enumerate(pairwise(widths), 1):
            found[f"weight_{layer}"] = (inputs, outputs), self.weight_scale / math.sqrt(inputs)
            found[f"bias_{layer}"] = (outputs,), self.bias_scale
        found["weight_out"] = (widths[-1],), self.weight_scale / math.sqrt(widths[-1])
        found["bias_out"] = (), self.bias_scale
        return found


def _numbers(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64)
    plain = value.to_numpy() if hasattr(value, "to_numpy") else value  # torch would go by the labels of pandas
    return torch.tensor(plain, dtype=torch.float64, device="cpu")


def _refuse(x: Tensor, y: Tensor | None, num_columns: int | None = None) -> None:
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (N, D), got {tuple(x.shape)}; one column is x[:, None], of shape (N, 1)")
    if num_columns not in (None, x.shape[1]):
        raise ValueError(f"x has {x.shape[1]} columns, and the model was made for num_columns={num_columns}")
    if y is not None and y.shape != x.shape[:1]:
        raise ValueError(
            f"y must have shape ({len(x)},), a number for each row of x, got {tuple(y.shape)}; where y is one column, "
            "y[:, 0] is what is needed"
        )
    for name, value in (("x", x), ("y", y)):
        bad = 0 if value is None else int((~value.isfinite()).sum())
        if bad:
            raise ValueError(
                f"{name} has {bad} value{'s' if bad > 1 else ''} that {'are' if bad > 1 else 'is'} NaN or infinite: "
                "leave the rows out, or fill them in"
            )
