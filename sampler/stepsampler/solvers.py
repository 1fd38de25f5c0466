"""Each solver as a tableau of plain numbers.

With levels (alpha, sigma) of x = alpha * x0 + sigma * noise, every solver is linear in what it
knows: the state, the points at which the network was called, and its x0-predictions there. So a
schedule becomes a list of rows of numbers, one for each network call, computed once in float64;
`sample` executes them. Three forms of one update from (alpha, sigma) to (alpha', sigma'):

    data        x' = sigma'/sigma x + alpha' sum_j w_j x0_j       w from lambda = log(alpha/sigma)
    noise       x' = alpha'/alpha x + sigma' sum_j w_j eps_j      w from -lambda
    derivative  x' = x + (sigma' - sigma) sum_j w_j d_j           d = (x_j - x0_j) / sigma_j

with eps_j = (x_j - alpha_j x0_j) / sigma_j. The rules that give w integrate an extrapolation of the
predictions; data and noise form are the same formula with the roles of alpha and sigma exchanged.
A step may have weights of its own instead, as shares s_j of the whole step, which is the w of order
1: [1] is order 1, [3/2, -1/2] in the derivative form is Adams-Bashforth. Shares that do not add to
1 have a gain; a step's `gain` is one more factor of all w (epsilon scaling, arXiv 2308.15321, is of
this kind; AMED, arXiv 2312.00094, calls it `scale_dir`).

A step's `repeats` iterate its guidance first (Foresight Guidance, arXiv 2510.21512): the step at
order 1 with guidance, and back with the unconditional prediction made where it lands,

    x <- Phi(sigma' -> sigma; uncond) Phi(sigma -> sigma'; guided) x

whose fixed points go the same way under both: «foresight sampling» of the authors' code with one
sub-step. There it may go further than the step, and the step is unguided.

DPM-Solver-v3 has numbers of the model for each entry of a latent: its updates hold tensors that
broadcast over a batch, and a constant (`statistics`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import exp, expm1, inf, log, sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np

from stepsampler.errors import UserError
from stepsampler.schedule import BY_STATISTICS, Schedule, Step
from stepsampler.schedule.parts import Unconditional


class Update(NamedTuple):
    """A new state, linear in the old one and in the history, newest first."""

    state: float
    x0: tuple[float, ...] = ()
    points: tuple[float, ...] = ()  # empty where no point but the state itself is used
    constant: Any = None  # a tensor of the shape of a latent that is added


class Row(NamedTuple):
    """One network call, and where the state goes from it."""

    step: Step  # what the denoiser is called with
    correct: Update | None  # the state at this level, from the one before; None: where it was made
    advance: Update  # the next point
    ends: bool  # a step of the schedule ends here
    fresh: float = 0.0  # deviation of the noise that is added to the next point
    alone: bool = False  # before a step: no history, neither of those before nor for those after


Rule = Callable[[list[float], float], list[float]]
# (lambdas of the predictions, newest first; h = lambda' - lambda) -> weights at alpha' = 1


class Levels(NamedTuple):
    """Of n + 1 noise levels."""

    alphas: Sequence[float]
    sigmas: Sequence[float]

    def at(self, i: int) -> tuple[float, float]:
        """(alpha, sigma)."""
        return self.alphas[i], self.sigmas[i]

    def log_snr(self, i: int) -> float:
        """lambda = log(alpha / sigma)."""
        alpha, sigma = self.alphas[i], self.sigmas[i]
        return inf if sigma == 0 else -inf if alpha == 0 else log(alpha / sigma)


def levels(schedule: Schedule) -> Levels:
    """x = (1 - sigma) x0 + sigma noise for flow models, x = x0 + sigma noise for all others."""
    alphas = [1 - s if schedule.flow else 1.0 for s in schedule.sigmas]
    return Levels(alphas, schedule.sigmas)


class Updates(Protocol):
    """A solver whose numbers are of the model at hand: its steps, as those of the rules here."""

    def advance(self, at: Levels, i: int, step: Step) -> Update:
        """From level i to i + 1."""
        ...

    def correct(self, at: Levels, i: int, step: Step) -> Update | None:
        """The step onto level i once more, now with the prediction made there."""
        ...


def tableau(schedule: Schedule, updates: Updates | None = None) -> list[Row]:
    """The rows of a schedule, one for each network call (an analytic first step has one too).

    Raises:
        UserError: the solver goes by statistics, of which there are none.
    """
    if schedule.solver == BY_STATISTICS and updates is None:
        raise UserError(
            f"the solver {BY_STATISTICS} goes by statistics of the model, which only sampling "
            "in our own loop knows"
        )
    golden = _golden_noise(schedule) if schedule.raw_noise else []
    rows: list[Row] = []
    for i, step in enumerate(schedule.steps):
        at, fresh = _landing(schedule, i)
        rows += [row for _ in range(step.repeats) for row in _iteration(schedule, i)]
        if schedule.solver == "heun":
            rows += _heun(at, i, step, fresh)
            continue
        correct = None
        before = schedule.steps[i - 1] if i and schedule.steps[i - 1].corrector else None
        if before:
            rule = schedule.solver
            correct = (
                updates.correct(at, i, before) if updates else _correction(at, i, rule, before)
            )
        if updates and step.weights is None and at.sigmas[i + 1] > 0:
            advance = updates.advance(at, i, step)
        else:
            advance = _advance(at, i, schedule.solver, step)
        rows.append(Row(step, correct, advance, ends=True, fresh=fresh))
    return golden + rows


def _landing(schedule: Schedule, i: int) -> tuple[Levels, float]:
    """The levels of step i, and the fresh noise of the step after it, below which it lands."""
    at = levels(schedule)
    churn = schedule.steps[i + 1].churn if i + 1 < schedule.num_steps else 0.0
    sigma = at.sigmas[i + 1]
    below = [*at.sigmas[: i + 1], sigma * sqrt(1 - churn**2), *at.sigmas[i + 2 :]]
    return Levels(at.alphas, below), sigma * churn


def _advance(at: Levels, i: int, solver: str, step: Step) -> Update:
    if step.weights is None:
        return multistep(at, i, solver, step.order, step.prediction, step.gain)
    form = FORMS.get(solver, "data") if step.prediction is None else step.prediction
    if form == "noise" and at.alphas[i] == 0:  # there epsilon is the state itself
        form = "data"
    whole = step.gain * _whole(at, i, form)
    past = range(i, i - len(step.weights), -1)
    return _update(at, i, past, form, [whole * share for share in step.weights])


def shares(schedule: Schedule, i: int) -> list[float]:
    """What step i takes of its predictions, newest first, as shares of the whole: its `weights`.

    Those of the rule, or its own; without the gain. Not of a step with a corrector, nor of Heun's.
    """
    step = schedule.steps[i]
    if step.weights is not None:
        return list(step.weights)
    at, _ = _landing(schedule, i)
    past, form = _history(at, i, schedule.solver, step.order, step.prediction)
    whole = _whole(at, i, form)
    return [w / whole for w in _weights(at, i, past, form, RULES[schedule.solver], 1.0)]


def multistep(
    at: Levels, i: int, solver: str, order: int, prediction: str | None = None, gain: float = 1.0
) -> Update:
    """The update from level i to i + 1, with the predictions of levels i, i - 1, …

    A step onto sigma 0, or from alpha 0, has order 1 and is exact for a constant prediction.
    """
    past, form = _history(at, i, solver, order, prediction)
    return _update(at, i, past, form, _weights(at, i, past, form, RULES[solver], gain))


def _history(
    at: Levels, i: int, solver: str, order: int, prediction: str | None
) -> tuple[list[int], str]:
    """The levels whose predictions a rule takes, newest first, and in which form."""
    form = FORMS.get(solver, "data") if prediction is None else prediction
    past = list(range(i, i - order, -1))
    if at.log_snr(i + 1) == inf or at.log_snr(i) == -inf:
        past, form = [i], "data"
    elif form != "derivative" and at.log_snr(past[-1]) == -inf:  # infinite noise has no lambda
        past.pop()
    return past, form


def _correction(at: Levels, i: int, solver: str, step: Step) -> Update | None:
    """UniC: the step onto level i once more, now with the prediction made there."""
    form = FORMS.get(solver, "data") if step.prediction is None else step.prediction
    past = list(range(i, i - step.order - 1, -1))
    while at.log_snr(past[-1]) == -inf:
        past.pop()
    if len(past) < 2:
        return None
    weights = _weights(at, i - 1, past, form, CORRECTORS[solver], step.gain)
    return _update(at, i - 1, past, form, weights)


def _weights(
    at: Levels, i: int, past: Sequence[int], form: str, rule: Rule, gain: float
) -> list[float]:
    """What the rule gives the predictions made at the levels `past` in the step from i to i + 1."""
    if form == "data":
        h = at.log_snr(i + 1) - at.log_snr(i)
        found = rule([at.log_snr(j) for j in past], h) if h < inf else [1.0]
        unit = at.alphas[i + 1]
    elif form == "noise":
        found = rule([-at.log_snr(j) for j in past], at.log_snr(i) - at.log_snr(i + 1))
        unit = at.sigmas[i + 1]
    else:
        unit = at.sigmas[i + 1] - at.sigmas[i]
        found = rule([at.sigmas[j] for j in past], unit)
    return [gain * unit * w for w in found]


def _whole(at: Levels, i: int, form: str) -> float:
    """The weight of a single prediction in the step from i to i + 1, exact for a constant one."""
    alpha, sigma, alpha_next, sigma_next = *at.at(i), *at.at(i + 1)
    if form == "data":
        return alpha_next - alpha * sigma_next / sigma
    return sigma_next - (alpha_next * sigma / alpha if form == "noise" else sigma)


def _update(at: Levels, i: int, past: Sequence[int], form: str, weights: Sequence[float]) -> Update:
    """From level i to i + 1 with the predictions made at the levels `past`, newest first."""
    alpha, sigma, alpha_next, sigma_next = *at.at(i), *at.at(i + 1)
    if form == "data":
        return Update(sigma_next / sigma, tuple(weights))
    pairs = list(zip(weights, past, strict=True))
    noise = form == "noise"
    return Update(
        alpha_next / alpha if noise else 1.0,
        tuple(-w * (at.alphas[j] if noise else 1.0) / at.sigmas[j] for w, j in pairs),
        tuple(w / at.sigmas[j] for w, j in pairs),
    )


def _heun(at: Levels, i: int, step: Step, fresh: float) -> list[Row]:
    """Heun's method on dx / dsigma (Karras et al. 2022, algorithm 1); order 1 is Euler."""
    whole = step.gain * _whole(at, i, "derivative")
    euler = _update(at, i, [i], "derivative", [whole])
    if step.order == 1:
        return [Row(step, None, euler, ends=True, fresh=fresh)]
    average = _update(at, i, [i + 1, i], "derivative", [whole / 2, whole / 2])
    again = replace(step, sigma=at.sigmas[i + 1])
    last = Row(again, average, Update(1.0), ends=True, fresh=fresh)
    return [Row(step, None, euler, ends=False), last]


def _golden_noise(schedule: Schedule) -> list[Row]:
    """Down to `golden.sigma`, a new epsilon there, and back up to the first sigma with it."""
    golden, first = schedule.raw_noise, schedule.steps[0]
    assert golden
    down = Step(first.sigma, golden.guidance_scale)
    there = Step(golden.sigma, golden.guidance_scale)
    land = multistep(Levels((1.0, 1.0), (first.sigma, golden.sigma)), 0, "ddim", 1)
    if golden.start == "prediction":  # x0 of the first call + sigma * epsilon of the second
        ratio = first.sigma / golden.sigma
        back = Update(0.0, (-ratio, 1.0), (ratio,))
    else:
        slope = (first.sigma - golden.sigma) / golden.sigma
        back = Update(1.0, (-slope,), (slope,))
    return [Row(down, None, land, ends=False), Row(there, None, back, ends=False)]


def _iteration(schedule: Schedule, i: int) -> list[Row]:
    """Step i at order 1 and back, without fresh noise: the calls of one of its `repeats`."""
    at, called = levels(schedule), replace(schedule.steps[i], repeats=0)
    back = Levels(*((numbers[i + 1], numbers[i]) for numbers in at))

    def row(call: Step, way: Levels, k: int) -> Row:
        update = _update(way, k, [k], "data", [_whole(way, k, "data")])
        return Row(call, None, update, ends=False, alone=True)

    return [row(called, at, i), row(Unconditional(at.sigmas[i + 1], 0.0), back, 0)]


def ddim(lambdas: list[float], h: float) -> list[float]:
    """Song et al. 2021; the same as DPM-Solver++(1), and as Euler in (x, sigma)."""
    return [-expm1(-h)]


def exact(lambdas: list[float], h: float) -> list[float]:
    """Exponential Adams-Bashforth: a polynomial through the predictions, integrated exactly.

    The moments are the integrals of s^k e^(s - h) over [0, h]; order k + 1 has local error h^(k+2).
    In noise form this is DEIS (Zhang & Chen 2023) with the polynomial in log rho.
    """
    moments = [-expm1(-h)]
    for k in range(1, len(lambdas)):
        moments.append(h**k - k * moments[-1])
    vandermonde = np.vander(np.asarray(lambdas) - lambdas[0], increasing=True).T
    return np.linalg.solve(vandermonde, moments).tolist()  # type: ignore[no-any-return]


def dpmpp_midpoint(lambdas: list[float], h: float) -> list[float]:
    """DPM-Solver++ (Lu et al. 2022): 2M with the first difference weighted by half of 1 - e^-h."""
    if len(lambdas) == 2:
        return _second(lambdas, h, -expm1(-h) / 2)
    return _dpmpp_third(lambdas, h)


def dpmpp_heun(lambdas: list[float], h: float) -> list[float]:
    """DPM-Solver++ with diffusers' `solver_type="heun"`: the first difference exactly weighted."""
    if len(lambdas) == 2:
        return _second(lambdas, h, (exp(-h) - 1) / h + 1)
    return _dpmpp_third(lambdas, h)


def _second(lambdas: list[float], h: float, slope: float) -> list[float]:
    """x0 plus `slope` times (x0_0 - x0_1) / r, where r = (lambda_0 - lambda_1) / h."""
    share = slope * h / (lambdas[0] - lambdas[1])
    return [-expm1(-h) + share, -share]


def _dpmpp_third(lambdas: list[float], h: float) -> list[float]:
    """DPM-Solver++(3M) as published and as everybody ships it.

    The last difference carries half the weight that its integral has, so that the measured order
    is 2; `exact` has the full one.
    """
    if len(lambdas) < 3:
        return ddim(lambdas, h)
    r0, r1 = (lambdas[0] - lambdas[1]) / h, (lambdas[1] - lambdas[2]) / h
    first = np.array([1, -1, 0]) / r0
    older = np.array([0, 1, -1]) / r1
    d1 = first + r0 / (r0 + r1) * (first - older)
    d2 = (first - older) / (r0 + r1)
    phi1, phi2 = -expm1(-h), (exp(-h) - 1) / h + 1
    phi3 = (exp(-h) - 1 + h) / h**2 - 0.5
    return (phi1 * np.array([1, 0, 0]) + phi2 * d1 - phi3 * d2).tolist()  # type: ignore[no-any-return]


def unip(lambdas: list[float], h: float, bh: int) -> list[float]:
    """The predictor of UniPC (Zhao et al. 2023, eq. 3); `bh` 1 is B(h) = h, 2 is B(h) = e^h - 1."""
    if len(lambdas) == 1:
        return ddim(lambdas, h)
    rates = [(lam - lambdas[0]) / h for lam in lambdas[1:]]
    return _unipc(rates, h, bh, [0.5] if len(rates) == 1 else None)


def unic(lambdas: list[float], h: float, bh: int) -> list[float]:
    """Its corrector (eq. 4): `lambdas[0]` is the level that the step lands on."""
    rates = [(lam - lambdas[1]) / h for lam in lambdas[2:]] + [1.0]
    start, *older, landing = _unipc(rates, h, bh, [0.5] if len(rates) == 1 else None)
    return [landing, start, *older]


def _unipc(rates: list[float], h: float, bh: int, rhos: list[float] | None) -> list[float]:
    """Weights of the prediction at the start and of those at `rates` (in steps) from there.

    Of order 2, and in a corrector of order 1, the one coefficient is 1/2 by definition.
    """
    scale = -h if bh == 1 else expm1(-h)
    term, factorial, right = expm1(-h) / -h - 1, 1.0, []
    for k in range(1, len(rates) + 1):
        right.append(term * factorial / scale)
        factorial *= k + 1
        term = term / -h - 1 / factorial
    if rhos is None:
        rhos = np.linalg.solve(np.vander(rates, increasing=True).T, right).tolist()
    shares = [scale * rho / rate for rho, rate in zip(rhos, rates, strict=True)]
    return [-expm1(-h) + sum(shares), *(-share for share in shares)]


def ipndm(_sigmas: list[float], _h: float) -> list[float]:
    """Adams-Bashforth with the coefficients of even steps (Liu et al. 2022; Zhang & Chen 2023)."""
    return ADAMS_BASHFORTH[len(_sigmas)]


ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}

RULES: dict[str, Rule] = {
    "ddim": ddim,
    "dpmpp-midpoint": dpmpp_midpoint,
    "dpmpp-heun": dpmpp_heun,
    "exact": exact,
    "deis": exact,
    "unipc-bh1": partial(unip, bh=1),
    "unipc-bh2": partial(unip, bh=2),
    "ipndm": ipndm,
    BY_STATISTICS: ddim,  # onto sigma 0, where there are no statistics
}
CORRECTORS: dict[str, Rule] = {
    "unipc-bh1": partial(unic, bh=1),
    "unipc-bh2": partial(unic, bh=2),
}
FORMS = {"deis": "noise", "ipndm": "derivative"}  # all others: data
