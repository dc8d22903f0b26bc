"""Models and guides without a fault, in the ways that Pyro's users write them; `check` has nothing to say of any.

Most are Pyro's own examples and tutorials, written anew at a size that runs in milliseconds.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib import gp
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineTransform, affine_autoregressive
from pyro.infer import autoguide, config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from support import eight_schools_data, radon_data
from torch import Tensor, nn

from ingle.guides import hierarchical as hierarchical_guides
from ingle.guides import mixture as mixture_guides
from ingle.guides import vae as vae_guides
from ingle.models import hierarchical, mixture, vae

__all__ = ["RIGHT"]

_generator = torch.Generator().manual_seed(0)


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator)


X = normals(12, 3)
Y = X @ torch.tensor([1.0, -1.0, 0.5]) + 0.1 * normals(12)
BITS = (Y > 0).float()
COUNTS = torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0, 5.0, 1.0, 2.0, 4.0, 1.0, 0.0, 2.0])
POSITIVE = constraints.positive

# Coin and first steps: the SVI tutorial, part I.


def coin(data: Tensor) -> None:
    f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
    for i in pyro.plate("data_loop", len(data)):
        pyro.sample(f"obs_{i}", dist.Bernoulli(f), obs=data[i])


def coin_guide(data: Tensor) -> None:
    alpha = pyro.param("alpha_q", torch.tensor(15.0), constraint=POSITIVE)
    beta = pyro.param("beta_q", torch.tensor(15.0), constraint=POSITIVE)
    pyro.sample("latent_fairness", dist.Beta(alpha, beta))


def coin_beside(data: Tensor) -> None:
    """The same by a Normal sent through a sigmoid, and moved by an affine transform of the identity."""
    loc = pyro.param("loc", torch.tensor(0.0))
    base = dist.Normal(loc, 0.1)
    squashed = [dist.transforms.SigmoidTransform(), AffineTransform(0.0, 1.0)]
    pyro.sample("latent_fairness", dist.TransformedDistribution(base, squashed))


def coin_within(data: Tensor) -> None:
    """A narrower support than the model's is a choice."""
    width = pyro.param("width", torch.tensor(0.5), constraint=constraints.interval(0.1, 0.9))
    pyro.sample("latent_fairness", dist.Uniform(0.05, width))


def coin_own_rows(data: Tensor) -> None:
    f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
    with pyro.plate("data", len(data), subsample_size=4) as i:
        pyro.sample("obs", dist.Bernoulli(f), obs=data[i])


# Regression: the Bayesian regression tutorials.


class Regression(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean: Tensor = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


class Logistic(PyroModule):
    """Weights of the model itself are learned, a latent intercept for each group."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.spread = PyroParam(torch.tensor(1.0), constraint=POSITIVE)

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("group", 3):
            intercept = pyro.sample("intercept", dist.Normal(0.0, self.spread))
        with pyro.plate("data", len(x)) as i:
            pyro.sample("y", dist.Bernoulli(logits=x[i] @ self.weight + intercept[i % 3]), obs=y[i])


def ruggedness(is_cont_africa: Tensor, ruggedness: Tensor, log_gdp: Tensor | None = None) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
    b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    mean = a + b_a * is_cont_africa + b_r * ruggedness
    with pyro.plate("data", len(ruggedness)):
        pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)


def ruggedness_guide(is_cont_africa: Tensor, ruggedness: Tensor, log_gdp: Tensor | None = None) -> None:
    loc = pyro.param("a_loc", torch.tensor(0.0))
    scale = pyro.param("a_scale", torch.tensor(1.0), constraint=POSITIVE)
    sigma_loc = pyro.param("sigma_loc", torch.tensor(1.0), constraint=constraints.interval(0.1, 9.0))
    weights_loc = pyro.param("weights_loc", torch.zeros(2))
    weights_scale = pyro.param("weights_scale", torch.ones(2), constraint=POSITIVE)
    pyro.sample("a", dist.Normal(loc, scale))
    pyro.sample("bA", dist.Normal(weights_loc[0], weights_scale[0]))
    pyro.sample("bR", dist.Normal(weights_loc[1], weights_scale[1]))
    pyro.sample("sigma", dist.Delta(sigma_loc))


def poisson(x: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 0.3).expand([3]).to_event(1))
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=5) as i:
        pyro.sample("y", dist.Poisson((a + x[i] @ b).exp()), obs=y[i])


def matrix_of_counts(total: Tensor, y: Tensor) -> None:
    """Dirichlet and multinomial, group by group."""
    with pyro.plate("group", 4):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        pyro.sample("y", dist.Multinomial(int(total), p), obs=y)


def matrix_of_counts_guide(total: Tensor, y: Tensor) -> None:
    concentration = pyro.param("concentration", torch.ones(4, 3), constraint=POSITIVE)
    with pyro.plate("group", 4):
        pyro.sample("p", dist.Dirichlet(concentration))


# Hierarchies: baseball, and one with an outer plate.


def baseball(at_bats: Tensor, hits: Tensor) -> None:
    m = pyro.sample("m", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("num_players", len(at_bats)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def baseball_guide(at_bats: Tensor, hits: Tensor) -> None:
    n = len(at_bats)
    a, b = (pyro.param(name, torch.full((n,), 5.0), constraint=POSITIVE) for name in "ab")
    with pyro.plate("num_players", n):
        pyro.sample("phi", dist.Beta(a, b))
    pyro.sample("m", dist.Beta(pyro.param("m_a", torch.tensor(5.0), constraint=POSITIVE), 5.0))
    over = dist.LogNormal(pyro.param("kappa_loc", torch.tensor(1.0)), 0.1)
    pyro.sample("kappa", dist.TransformedDistribution(over, [AffineTransform(1.0, 1.0)]))


def crossed(y: Tensor) -> None:
    """Two crossed plates, the first with dim given, the second minibatched."""
    rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows as i, columns as j:
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y[i.unsqueeze(-1), j])


def crossed_guide(y: Tensor) -> None:
    rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.zeros(4, 1), event_dim=0), 0.1))
    with columns:
        pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.zeros(3), event_dim=0), 0.1))


def german_tanks(serial: Tensor) -> None:
    """The support of the data depends on a latent, and that of a latent on another."""
    top = pyro.sample("top", dist.Pareto(1.0, 0.5))
    low = pyro.sample("low", dist.Uniform(0.0, 0.01 * top))
    with pyro.plate("data", len(serial)):
        pyro.sample("serial", dist.Uniform(low, top), obs=serial)


def german_tanks_in_place(serial: Tensor) -> None:
    """The same, its bounds written into a tensor and the one told from the other by Python."""
    top = pyro.sample("top", dist.Pareto(1.0, 0.5))
    low = pyro.sample("low", dist.Uniform(0.0, 0.01 * top))
    bounds = torch.zeros(2)
    bounds[0], bounds[1] = top, low
    low, top = bounds.flip(0) if bounds[0] > bounds[1] else bounds
    with pyro.plate("data", len(serial)):
        pyro.sample("serial", dist.Uniform(low, top), obs=serial)


def german_tanks_guide(serial: Tensor) -> None:
    excess = pyro.param("excess", torch.tensor(1.0), constraint=POSITIVE)
    top = pyro.sample("top", dist.TransformedDistribution(dist.Exponential(excess), [AffineTransform(40.0, 1.0)]))
    part = pyro.param("part", torch.tensor(0.5), constraint=constraints.interval(0.1, 0.9))
    pyro.sample("low", dist.Uniform(0.0, part * 0.01 * top))


# Mixtures and discrete latents.


@config_enumerate
def gaussian_mixture(data: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


gaussian_mixture_delta = autoguide.AutoDelta(poutine.block(gaussian_mixture, expose=["weights", "locs", "scale"]))


def gaussian_mixture_full(data: Tensor) -> None:
    """The assignments in the guide too, drawn and not summed out."""
    weights = pyro.param("share", torch.ones(2), constraint=POSITIVE)
    pyro.sample("weights", dist.Dirichlet(weights))
    pyro.sample("scale", dist.Gamma(pyro.param("shape", torch.tensor(5.0), constraint=POSITIVE), 5.0))
    with pyro.plate("components", 2):
        pyro.sample("locs", dist.Normal(pyro.param("locs_loc", torch.tensor([-1.0, 1.0]), event_dim=0), 0.1))
    probs = pyro.param("probs", torch.full((len(data), 2), 0.5), constraint=constraints.simplex)
    with pyro.plate("data", len(data)):
        pyro.sample("assignment", dist.Categorical(probs))


def bernoulli_for_poisson(y: Tensor) -> None:
    n = pyro.sample("n", dist.Poisson(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def bernoulli_for_poisson_guide(y: Tensor) -> None:
    """A finite support within an endless one."""
    pyro.sample("n", dist.Bernoulli(pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)))


def lda(words: Tensor) -> None:
    """Latent Dirichlet allocation, 5 documents of 7 words, 2 topics, 6 words known."""
    with pyro.plate("topics", 2):
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(6) / 6))
    with pyro.plate("documents", 5) as i:
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(2) / 2))
        with pyro.plate("words", 7):
            topic = pyro.sample("word_topics", dist.Categorical(doc_topics), infer={"enumerate": "parallel"})
            pyro.sample("doc_words", dist.Categorical(topic_words[topic]), obs=words[:, i])


def lda_guide(words: Tensor) -> None:
    posterior = pyro.param("topic_words_posterior", torch.ones(2, 6), constraint=POSITIVE)
    with pyro.plate("topics", 2):
        pyro.sample("topic_words", dist.Dirichlet(posterior))
    with pyro.plate("documents", 5) as i:
        shares = pyro.param("doc_topics_posterior", torch.ones(5, 2), constraint=POSITIVE)
        pyro.sample("doc_topics", dist.Dirichlet(shares[i]))


def hidden_markov(sequence: Tensor) -> None:
    """The first of the HMM examples: states summed out along a markov chain."""
    with pyro.plate("states", 2):
        moves = pyro.sample("moves", dist.Dirichlet(0.9 * torch.eye(2) + 0.1))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    state: Any = 0
    for t in pyro.markov(range(len(sequence))):
        state = pyro.sample(f"state_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"})
        pyro.sample(f"y_{t}", dist.Poisson(rate[state]), obs=sequence[t])


def mixed_markov(sequences: Tensor, lengths: Tensor) -> None:
    """Sequences of several lengths under a mask, each with a random effect on its rate."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor([2.0, 4.0]), 1.0).to_event(1))
    stay = pyro.sample("stay", dist.Beta(5.0, 1.0))
    with pyro.plate("sequences", len(sequences)):
        effect = pyro.sample("effect", dist.Gamma(5.0, 5.0))
        state: Any = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(sequences.shape[1])):
            with poutine.mask(mask=t < lengths):
                p = torch.where(state == 0, 1 - stay, stay)
                state = pyro.sample(f"state_{t}", dist.Bernoulli(p), infer={"enumerate": "parallel"}).long()
                pyro.sample(f"y_{t}", dist.Poisson(effect * Vindex(rate)[..., state]), obs=sequences[:, t])


def capture_recapture(capture: Tensor) -> None:
    """The first Cormack-Jolly-Seber model, animals in a plate, the years in a chain."""
    survive = pyro.sample("survive", dist.Uniform(0.0, 1.0))
    seen = pyro.sample("seen", dist.Uniform(0.0, 1.0))
    with pyro.plate("animals", len(capture)):
        alive: Any = torch.ones(len(capture))
        met = torch.zeros(len(capture)).bool()
        for t in pyro.markov(range(capture.shape[1])):
            with poutine.mask(mask=met):
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(survive * alive), infer={"enumerate": "parallel"})
                pyro.sample(f"seen_{t}", dist.Bernoulli(seen * alive), obs=capture[:, t])
            met = met | capture[:, t].bool()


# Networks.


class Autoencoder(nn.Module):
    """The VAE tutorial: an `nn.Module` whose methods are model and guide."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Softplus(), nn.Linear(5, 3))
        self.encoder = nn.Sequential(nn.Linear(3, 5), nn.Softplus(), nn.Linear(5, 4))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class SemiSupervised(nn.Module):
    """Labels of some data are known: a label is observed in the model where it is, and in the guide left out."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(4, 3), nn.Linear(5, 4)
        self.classifier = nn.Linear(3, 2)

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss", self)
        with pyro.plate("data", len(xs)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(xs), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.full((2,), 0.5)), obs=ys)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(torch.cat([z, y], -1))).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data", len(xs)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(xs)))
            loc, log_scale = self.encoder(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class DeepMarkov(nn.Module):
    """A deep Markov model: sequences of several lengths, a mask at each step, the KL annealed in both."""

    def __init__(self) -> None:
        super().__init__()
        self.transition, self.emission = nn.Linear(2, 4), nn.Linear(2, 3)
        self.combine, self.rnn = nn.Linear(4, 4), nn.GRU(3, 2, batch_first=True)

    def model(self, batch: Tensor, mask: Tensor, annealing: float = 1.0) -> None:
        pyro.module("dmm", self)
        z = torch.zeros(len(batch), 2)
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(batch.shape[1])):
                loc, scale = self.transition(z).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale.exp()).mask(mask[:, t : t + 1]).to_event(1))
                pyro.sample(
                    f"obs_{t}",
                    dist.Bernoulli(logits=self.emission(z)).mask(mask[:, t : t + 1]).to_event(1),
                    obs=batch[:, t],
                )

    def guide(self, batch: Tensor, mask: Tensor, annealing: float = 1.0) -> None:
        pyro.module("dmm", self)
        hidden, _ = self.rnn(batch)
        z = torch.zeros(len(batch), 2)
        with pyro.plate("z_minibatch", len(batch)):
            for t in pyro.markov(range(batch.shape[1])):
                loc, scale = self.combine(torch.cat([z, hidden[:, t]], -1)).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale.exp()).mask(mask[:, t : t + 1]).to_event(1))


# Others.


def sparse_gamma(x: Tensor) -> None:
    """Two layers of the deep exponential family of the sparse gamma example."""
    with pyro.plate("w_top_plate", 2 * 3):
        w_top = pyro.sample("w_top", dist.Gamma(0.5, 0.5))
    with pyro.plate("w_bottom_plate", 3 * 3):
        w_bottom = pyro.sample("w_bottom", dist.Gamma(0.5, 0.5))
    with pyro.plate("data", x.shape[0]):
        z_top = pyro.sample("z_top", dist.Gamma(torch.tensor([0.5]), 0.5).expand([2]).to_event(1))
        middle = z_top @ w_top.reshape(2, 3)
        z_bottom = pyro.sample("z_bottom", dist.Gamma(0.5, 0.5 / (middle + 1e-3)).to_event(1))
        pyro.sample("obs", dist.Poisson(z_bottom @ w_bottom.reshape(3, 3) + 1e-3).to_event(1), obs=x)


def sparse_gamma_guide(x: Tensor) -> None:
    def gamma(name: str, *shape: int) -> Any:
        shape_of, mean = (pyro.param(f"{name}_{part}", torch.ones(shape), constraint=POSITIVE) for part in "am")
        return dist.Gamma(shape_of, shape_of / mean)

    with pyro.plate("w_top_plate", 6):
        pyro.sample("w_top", gamma("w_top", 6))
    with pyro.plate("w_bottom_plate", 9):
        pyro.sample("w_bottom", gamma("w_bottom", 9))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z_top", gamma("z_top", len(x), 2).to_event(1))
        pyro.sample("z_bottom", gamma("z_bottom", len(x), 3).to_event(1))


def gaussian_process(x: Tensor, y: Tensor) -> None:
    """One multivariate normal for all data: an event, and no plate."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    kernel = (-0.5 * ((x[:, None] - x) / length) ** 2).exp() + noise * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel + 1e-4 * torch.eye(len(x))), obs=y)


def correlated(x: Tensor) -> None:
    """An LKJ prior on a correlation and scales for its columns."""
    scales = pyro.sample("scales", dist.HalfCauchy(torch.ones(3)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=scales.diag() @ factor), obs=x)


def missing(y: Tensor, there: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=there)


def missing_guide(y: Tensor, there: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(0.0)), 0.1))
    with pyro.plate("data", len(y)), poutine.mask(mask=~there):
        pyro.sample("y_unobserved", dist.Normal(pyro.param("y_loc", torch.zeros(len(y)), event_dim=0), 1.0))


def local(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, scale), obs=y[i])


def local_guide(y: Tensor) -> None:
    pyro.sample("scale", dist.LogNormal(pyro.param("loc", torch.tensor(0.0)), 0.1))
    locs = pyro.param("locs", torch.zeros(len(y)))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("z", dist.Normal(locs[i], 0.1))


def local_own_rows(y: Tensor) -> None:
    with pyro.plate("data", len(y), subsample_size=5) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def local_own_rows_guide(y: Tensor) -> None:
    locs = pyro.param("locs", torch.zeros(len(y)))
    with pyro.plate("data", len(y), subsample_size=5) as i:
        pyro.sample("z", dist.Normal(locs[i], 0.1))


def easy_model(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=5) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, scale), obs=y[i])


class Easy(EasyGuide):
    """Scale as a point, the rest as one normal for each row."""

    def guide(self, y: Tensor) -> None:
        self.map_estimate("scale")
        group = self.group(match="z")
        with self.plate("data", len(y), subsample_size=5):
            loc = pyro.param("easy_loc", torch.zeros(len(y), 1), event_dim=1)
            group.sample("group", dist.Normal(loc, 1.0).to_event(1))


def vector(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


_flow = affine_autoregressive(3, hidden_dims=[8])


def flow_guide(y: Tensor) -> None:
    pyro.module("flow", _flow)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    pyro.sample("z", dist.TransformedDistribution(base, [_flow]))


def auxiliary_guide(y: Tensor) -> None:
    """A joint normal whose halves go to two latents."""
    loc, tril = pyro.param("loc", torch.zeros(2)), 0.1 * torch.eye(2)
    both = pyro.sample("both", dist.MultivariateNormal(loc, scale_tril=tril), infer={"is_auxiliary": True})
    pyro.sample("mu", dist.Delta(both[..., 0]))
    pyro.sample("nu", dist.Delta(both[..., 1]))


def two(y: Tensor) -> None:
    mu, nu = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("mu", "nu"))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + nu, 1.0), obs=y)


def penalised(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    pyro.factor("penalty", -(mu**2))
    with pyro.plate("data", len(y)):
        pyro.factor("likelihood", -0.5 * (y - mu) ** 2)
    pyro.deterministic("square", mu**2)


def maximum_likelihood(y: Tensor) -> None:
    mu = pyro.param("mu", torch.tensor(0.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


def relaxed(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)


def relaxed_guide(y: Tensor) -> None:
    """Bits drawn straight through: continuous by name, 0 or 1 in fact."""
    logits = pyro.param("logits", torch.tensor(0.3))
    pyro.sample("k", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=logits))


def effects(y: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("tau", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def zeros_inflated(y: Tensor) -> None:
    rate, gate = pyro.sample("rate", dist.Normal(0.0, 1.0)), pyro.sample("gate", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.ZeroInflatedPoisson(rate=rate.exp(), gate=gate), obs=y)


def ordered(y: Tensor) -> None:
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()]))
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.OrderedLogistic(x.expand(len(y)), cuts), obs=y)


def shares(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)


def shares_guide(y: Tensor) -> None:
    """A normal broken into sticks."""
    base = dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1)
    pyro.sample("p", dist.TransformedDistribution(base, [torch.distributions.StickBreakingTransform()]))


def attend(y: Tensor) -> None:
    """Attend, infer, repeat: what a step draws is masked once the steps have ended."""
    there, total = torch.ones(len(y), 1), torch.zeros(len(y))
    with pyro.plate("data", len(y)):
        for t in range(2):
            there = pyro.sample(f"there_{t}", dist.Bernoulli(0.5 * there).to_event(1))
            what = pyro.sample(f"what_{t}", dist.Normal(torch.zeros(len(y), 2), 1.0).mask(there).to_event(1))
            total = total + (what * there).sum(-1)
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def attend_guide(y: Tensor) -> None:
    there = torch.ones(len(y), 1)
    p, loc = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval), pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(y)):
        for t in range(2):
            there = pyro.sample(f"there_{t}", dist.Bernoulli(p * there).to_event(1))
            pyro.sample(f"what_{t}", dist.Normal(loc.expand(len(y), 2), 1.0).mask(there).to_event(1))


def random_walk(y: Tensor) -> None:
    drift = pyro.sample("drift", dist.LogNormal(0.0, 1.0))
    with pyro.plate("time", len(y), dim=-1):
        step = pyro.sample("step", dist.Normal(0.0, drift))
    pyro.sample("y", dist.Normal(step.cumsum(-1), 1.0).to_event(1), obs=y)


def kalman(y: Tensor) -> None:
    """A linear Gaussian chain of any length, the length not in its event shape."""
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    one, start = torch.eye(1), dist.MultivariateNormal(torch.zeros(1), torch.eye(1))
    seen = dist.MultivariateNormal(torch.zeros(1), noise * torch.eye(1))
    pyro.sample("y", dist.GaussianHMM(start, one, start, one, seen), obs=y[:, None])


def impossible_states(y: Tensor) -> None:
    """Summed out, one of two states is ruled out by each datum."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(p))
        pyro.factor("fits", torch.where(k == y, 0.0, -torch.inf))


def listed(model: Any) -> Any:
    """A list of automatic guides, one for each latent."""
    parts = autoguide.AutoGuideList(model)
    parts.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=["mu"])))
    parts.append(autoguide.AutoDelta(poutine.block(model, expose=["nu"])))
    return parts


_process = gp.models.VariationalSparseGP(
    X[:, 0], Y, gp.kernels.RBF(1), Xu=torch.linspace(-1.0, 1.0, 3), likelihood=gp.likelihoods.Gaussian(), whiten=True
)
_vae = Autoencoder()
_semi = SemiSupervised()
_dmm = DeepMarkov()
_shipped_vae = vae.VAE(3, hidden=(4,))
_tanks = torch.tensor([19.0, 40.0, 31.0])
_three = mixture.GaussianMixture(num_components=3)
_regression = {"x": X, "y": Y}
_counts = (torch.tensor(5), torch.tensor([[1.0, 2.0, 2.0], [5.0, 0.0, 0.0], [0.0, 4.0, 1.0], [1.0, 1.0, 3.0]]))
_words = torch.tensor([[0, 1, 5, 2, 3], [1, 1, 4, 2, 0], [2, 3, 3, 1, 0], [0, 0, 5, 5, 1]] + [[1, 2, 3, 4, 5]] * 3)
_sequences = (COUNTS.reshape(3, 4), torch.tensor([4, 2, 3]))
_masked = (BITS.reshape(2, 2, 3), torch.tensor([[True, True], [True, False]]))
_rugged = {"is_cont_africa": BITS, "ruggedness": X[:, 0], "log_gdp": Y}
_there = (torch.where(torch.arange(12) == 3, 0.0, Y), torch.arange(12) != 3)
_bats = (torch.full((5,), 45.0), torch.tensor([18.0, 17.0, 16.0, 15.0, 14.0]))

# A name, then model, guide, data and the options of `check`.
RIGHT: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "coin": (coin, coin_guide, BITS, {}),
    "coin, sigmoid": (coin, coin_beside, BITS, {}),
    "coin, narrower": (coin, coin_within, BITS, {}),
    "coin, own rows": (coin_own_rows, coin_guide, BITS, {}),
    "coin, normal": (coin_own_rows, "normal", BITS, {}),
    "regression, diagonal normal": (Regression(), autoguide.AutoDiagonalNormal, _regression, {}),
    "regression, multivariate normal": (Regression(), autoguide.AutoMultivariateNormal, _regression, {}),
    "regression, laplace": (Regression(), "laplace", _regression, {}),
    "logistic": (Logistic(), "normal", _regression | {"y": BITS}, {}),
    "logistic, rows": (Logistic(), "normal", _regression | {"y": BITS}, {"batch_size": {"data": 5}}),
    "ruggedness": (ruggedness, ruggedness_guide, _rugged, {}),
    "ruggedness, low rank": (ruggedness, "low_rank", _rugged, {}),
    "poisson, own rows": (poisson, "multivariate_normal", (X, COUNTS), {}),
    "dirichlet and multinomial": (matrix_of_counts, matrix_of_counts_guide, _counts, {}),
    "dirichlet and multinomial, normal": (matrix_of_counts, "normal", _counts, {}),
    "baseball": (baseball, baseball_guide, _bats, {}),
    "baseball, normal": (baseball, "normal", _bats, {}),
    "crossed": (crossed, crossed_guide, COUNTS.reshape(4, 3), {}),
    "crossed, structured": (crossed, autoguide.AutoStructured, COUNTS.reshape(4, 3), {}),
    "german tanks": (german_tanks, german_tanks_guide, _tanks, {}),
    "german tanks, in place": (german_tanks_in_place, german_tanks_guide, _tanks, {}),
    "gaussian mixture, summed out": (gaussian_mixture, gaussian_mixture_delta, Y, {}),
    "gaussian mixture, by name": (gaussian_mixture, "normal", Y, {}),
    "gaussian mixture, drawn": (gaussian_mixture, gaussian_mixture_full, Y, {}),
    "finite within endless": (bernoulli_for_poisson, bernoulli_for_poisson_guide, Y, {}),
    "lda": (lda, lda_guide, _words, {}),
    "hidden markov": (hidden_markov, "normal", COUNTS[:4], {}),
    "mixed markov": (mixed_markov, "delta", _sequences, {}),
    "capture recapture": (capture_recapture, "normal", BITS.reshape(3, 4), {}),
    "autoencoder": (_vae.model, _vae.guide, BITS.reshape(4, 3), {}),
    "semi-supervised, labels": (_semi.model, _semi.guide, (X.sigmoid().round(), torch.eye(2)[BITS.long()]), {}),
    "semi-supervised, none": (_semi.model, _semi.guide, X.sigmoid().round(), {}),
    "deep markov": (_dmm.model, _dmm.guide, _masked, {}),
    "deep markov, annealed": (_dmm.model, _dmm.guide, (*_masked, 0.3), {}),
    "sparse gamma": (sparse_gamma, sparse_gamma_guide, COUNTS.reshape(4, 3), {}),
    "gaussian process": (gaussian_process, "normal", (X[:, 0], Y), {}),
    "correlated": (correlated, "normal", X, {}),
    "missing": (missing, missing_guide, _there, {}),
    "missing, normal": (missing, "normal", _there, {}),
    "local, rows": (local, local_guide, Y, {"batch_size": {"data": 5}}),
    "local, normal, rows": (local, "normal", Y, {"batch_size": {"data": 5}}),
    "local, own rows": (local_own_rows, local_own_rows_guide, Y, {}),
    "local, own rows, normal": (local_own_rows, "normal", Y, {}),
    "flow of one's own": (vector, flow_guide, Y, {}),
    "flow": (vector, "flow", Y, {}),
    "auxiliary": (two, auxiliary_guide, Y, {}),
    "easy guide": (easy_model, Easy(easy_model), Y, {}),
    "list of guides": (two, listed(two), Y, {}),
    "messenger": (two, autoguide.AutoNormalMessenger(two), Y, {}),
    "factors alone": (penalised, "normal", Y, {}),
    "maximum likelihood": (maximum_likelihood, nothing, Y, {}),
    "straight through": (relaxed, relaxed_guide, Y, {}),
    "effects, not centred": (poutine.reparam(effects, {"theta": LocScaleReparam(0.0)}), "normal", Y, {}),
    "effects, one gaussian": (effects, autoguide.AutoGaussian, Y, {}),
    "effects, inverse flow": (effects, autoguide.AutoIAFNormal, Y, {}),
    "zeros inflated": (zeros_inflated, "normal", COUNTS, {}),
    "ordered": (ordered, "normal", torch.tensor([0, 1, 2, 0, 1, 2]), {}),
    "shares": (shares, shares_guide, torch.tensor([0, 1, 2, 0, 1, 2]), {}),
    "attend": (attend, attend_guide, Y, {}),
    "random walk": (random_walk, "low_rank", Y, {}),
    "conditioned": (pyro.condition(two, {"nu": torch.tensor(0.5)}), "normal", Y, {}),
    "kalman": (kalman, "normal", Y, {}),
    "impossible states": (impossible_states, "normal", BITS, {}),
    "sparse gaussian process": (_process.model, _process.guide, (), {}),
    "shipped: eight schools": (
        hierarchical.eight_schools, hierarchical_guides.eight_schools_guide, eight_schools_data(), {},
    ),
    "shipped: eight schools, centred": (
        hierarchical.eight_schools_centred, hierarchical_guides.eight_schools_centred_guide, eight_schools_data(), {},
    ),
    "shipped: radon": (
        hierarchical.radon_varying_intercepts, hierarchical_guides.radon_varying_intercepts_guide, radon_data(), {},
    ),
    "shipped: radon, rows": (
        hierarchical.radon_varying_intercepts, hierarchical_guides.radon_varying_intercepts_guide, radon_data(),
        {"batch_size": {"house": 100}},
    ),
    "shipped: mixture": (_three, mixture_guides.GaussianMixtureGuide(_three), X, {}),
    "shipped: autoencoder": (_shipped_vae, vae_guides.VAEGuide(_shipped_vae), X.sigmoid().round(), {}),
    "shipped: autoencoder, rows": (
        _shipped_vae, vae_guides.VAEGuide(_shipped_vae), X.sigmoid().round(), {"batch_size": {"data": 5}},
    ),
}  # fmt: skip
