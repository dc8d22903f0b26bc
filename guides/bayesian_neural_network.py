"""A guide for the Bayesian neural network: an independent normal for every weight and bias."""

import math
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ingle.models.bayesian_neural_network import BayesianNeuralNetwork

__all__ = ["BayesianNeuralNetworkGuide"]

_SPREAD = 0.1  # of the start, in standard deviations of the prior
_NOISE = 0.3  # likewise


@dataclass(frozen=True)
class BayesianNeuralNetworkGuide:
    """Independent factors: weights and biases Normal, sigma LogNormal.

    The locations start at a draw from the prior, since hidden units that begin as one would stay one; another `seed`
    begins elsewhere and may end in another mode, a little better or worse. The scales start at a tenth of the prior's,
    and the noise at 0.3 of its prior scale.

    What independence costs. Noise comes out a little too large and bands for new data a little too wide, the more so
    the wider the network is for its data, since weights that the data leave open return to their prior and shake the
    function; far too wide a network ignores the data. And where there are no data the band of the function says little.
    With one layer of "relu" it cannot be wide between two places where it is narrow, on a line through the centre of x:
    in a gap of the inputs it is often narrower than where data are, and it grows outside. With "tanh" it was seen to
    widen in a gap, but outside the data it stays as narrow as among them, since units saturate, however far the
    function has gone elsewhere.

    Args:
        model: the network that this is a guide for.
        seed: of the start, which no other random state touches.

    References:
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), Weight Uncertainty in Neural Networks.
        Foong, Burt, Li and Turner (2020), On the Expressiveness of Approximate Inference in Bayesian Neural Networks
        (uncertainty between data).
        Coker, Bruinsma, Burt, Pan and Doshi-Velez (2022), Wide Mean-Field Bayesian Neural Networks Ignore the Data.
    """

    model: BayesianNeuralNetwork
    seed: int = 0

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        """One run of the guide.

        Args:
            x: inputs, shape (N, D); only their device is used.
            y: not used.
        """
        for name, (shape, scale) in self.model.shapes().items():
            loc = pyro.param(f"{name}_loc", partial(self._start, name, x.device))
            small = torch.full(shape, _SPREAD * scale, device=x.device)
            sd = pyro.param(f"{name}_scale", small, constraint=constraints.softplus_positive)
            pyro.sample(name, dist.Normal(loc, sd).to_event(len(shape)))
        noise = math.log(_NOISE * self.model.noise_scale * self.model.y_spread)
        loc = pyro.param("sigma_loc", torch.full((), noise, device=x.device))
        sd = pyro.param("sigma_scale", torch.full((), 0.1, device=x.device), constraint=constraints.softplus_positive)
        pyro.sample("sigma", dist.LogNormal(loc, sd))

    def _start(self, name: str, device: torch.device) -> Tensor:
        """A draw from the prior of one site, the same whichever others were asked for."""
        places = self.model.shapes()
        generator = torch.Generator().manual_seed(len(places) * self.seed + list(places).index(name))
        shape, scale = places[name]
        return (scale * torch.randn(shape, generator=generator, device="cpu")).to(device)
