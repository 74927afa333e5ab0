"""Foolbox, torchattacks and ART behind one call, on the network that ffjax attacks, restated in PyTorch.

Each is given what a user would type for the same attack: bound, steps and length of a step are those of ffjax, anything
else is the library's own. Where a library lacks an attack, or lacks it for two classes, its table lacks it.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from flax.traverse_util import flatten_dict
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks import starts, torch_networks
from ffjax.attacks import ATTACKS
from ffjax.detectors import Loaded
from ffjax.detectors.layers import MEAN_AND_SPREAD
from ffjax.detectors.pytorch import LEAVES
from ffjax.detectors.resnet import torch_layout
from ffjax.errors import InputError

FAR = 1e6
"""The bound given to an attack that looks for the least distance but wants a bound."""

Attack = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(images (B, 3, H, W) in [0, 1], labels (B,), eps) -> images."""


class Verdict(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 2) logits, class 1 = fake, of a network of one or two outputs. asked: how many
    images it has been shown."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], spread: tuple[float, ...]):
        super().__init__()
        self.network, self.asked = network, 0
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(spread).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        x = (images.to(self.mean.dtype) - self.mean) / self.spread  # ART's HopSkipJump hands doubles over
        logits = self.network(_ChannelsLast.apply(x))
        return logits if logits.shape[1] == 2 else torch.cat([torch.zeros_like(logits), logits], 1)


class _ChannelsLast(torch.autograd.Function):
    """As the network is fastest, and back: torchattacks cannot take a gradient that is not laid out as its image."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.contiguous()


def restated(loaded: Loaded) -> Verdict:
    """The detector in PyTorch with the same weights, channels_last, in evaluation mode, gradients of images only.
    InputError for a network that is not restated here."""
    arch, size = loaded.meta["arch"], loaded.detector.shape[0]
    if arch not in ("meso4", "resnet18"):
        raise InputError(f"{arch}: only meso4 and resnet18 are restated for the peers")
    params = loaded.variables["params"]
    network = torch_networks.build(arch, size, sum(x.size for x in jax.tree.leaves(params)))
    missing, unexpected = network.load_state_dict(_state(loaded, network), strict=False)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise InputError(f"{arch}: weights do not fit ({missing[:2]} missing, {unexpected[:2]} unexpected)")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and arch == "meso4":
            module.eps = 1e-3  # Keras'
    normalise = (loaded.meta.get("options") or {}).get("normalise", "imagenet") if arch == "resnet18" else "none"
    return Verdict(network, *MEAN_AND_SPREAD[normalise]).eval().requires_grad_(False)


def _state(loaded: Loaded, network: nn.Module) -> dict[str, torch.Tensor]:
    names = _names(network) if loaded.meta["arch"] == "meso4" else torch_layout("resnet18").names
    state = {}
    for path, value in flatten_dict(loaded.variables, sep="/").items():
        layer, _, leaf = path.partition("/")[2].rpartition("/")
        x = np.asarray(value)
        if path == "params/dense1/kernel":  # rows of (H, W, C); PyTorch flattens (C, H, W)
            side = loaded.detector.shape[0] // 32
            x = x.reshape(side, side, -1, x.shape[1]).transpose(2, 0, 1, 3).reshape(x.shape)
        if leaf == "kernel":
            x = np.transpose(x, (*range(x.ndim)[::-1][:2], *range(x.ndim - 2)))
        state[f"{names[layer]}.{LEAVES.get(leaf, leaf)}"] = torch.tensor(x.copy())
    return state


def _names(network: nn.Module) -> dict[str, str]:
    """conv1, bn1, dense1 ... -> the module's name, in order of depth."""
    kinds = {"conv": nn.Conv2d, "bn": nn.BatchNorm2d, "dense": nn.Linear}
    found = {kind: [name for name, m in network.named_modules() if isinstance(m, of)] for kind, of in kinds.items()}
    return {f"{kind}{i}": name for kind, names in found.items() for i, name in enumerate(names, 1)}


def attack(library: str, model: Verdict, name: str, norm: str, options: dict[str, Any], batch: int) -> Attack:
    """The library's attack of that name. InputError if it has none, or is not installed."""
    if not has(library, name, norm):
        raise InputError(f"{library} has no {name} in {norm}")
    try:
        return LIBRARIES[library][1](model, name, norm, options, batch)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[bench]'") from None


def has(library: str, name: str, norm: str) -> bool:
    """Whether the library has the attack in that norm."""
    return norm in LIBRARIES[library][0].get(name, ((), None))[0]


def rounds(queries: int) -> int:
    """How many rounds of HopSkipJump take about that many queries: 100 sqrt(t) for the estimate in round t, and some 30
    for the step and the way back to the boundary."""
    spent, done = 0.0, 0
    while spent + 100 * math.sqrt(done + 1) + 30 <= queries:
        done += 1
        spent += 100 * math.sqrt(done) + 30
    return max(1, done)


TITLES = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}

FOOLBOX: dict[str, tuple[tuple[str, ...], Any]] = {
    "fgsm": (("linf", "l2"), lambda a, n, o: getattr(a, f"{n}FastGradientAttack")()),
    "bim": (
        ("linf", "l2", "l1"),
        lambda a, n, o: getattr(a, f"{n}BasicIterativeAttack")(rel_stepsize=o["step"], steps=o["steps"]),
    ),
    "pgd": (
        ("linf", "l2", "l1"),
        lambda a, n, o: getattr(a, f"{n}PGD")(rel_stepsize=o["step"], steps=o["steps"]),
    ),
    "adam_pgd": (
        ("linf", "l2", "l1"),
        lambda a, n, o: getattr(a, f"{n}AdamPGD")(rel_stepsize=o["rate"], steps=o["steps"]),
    ),
    "mi_fgsm": (
        ("linf",),
        lambda a, n, o: a.LinfMomentumIterativeFastGradientMethod(
            momentum=o["decay"], rel_stepsize=1 / o["steps"], steps=o["steps"]
        ),
    ),
    "deepfool": (
        ("linf", "l2"),
        lambda a, n, o: getattr(a, f"{n}DeepFoolAttack")(steps=o["steps"], overshoot=o["overshoot"]),
    ),
    "cw": (
        ("l2",),
        lambda a, n, o: a.L2CarliniWagnerAttack(
            binary_search_steps=o["searches"], steps=o["inner"], stepsize=o["rate"], initial_const=o["initial"]
        ),
    ),
    "ddn": (
        ("l2",),
        lambda a, n, o: a.DDNAttack(init_epsilon=o["initial"], steps=o["steps"], gamma=o["gamma"]),
    ),
    "fmn": (
        ("linf", "l2", "l1", "l0"),
        lambda a, n, o: getattr(a, f"{n.replace('Linf', 'LInf')}FMNAttack")(
            steps=o["steps"], max_stepsize=o["rate"], gamma=o["gamma"]
        ),
    ),
    "boundary": (("l2",), lambda a, n, o: a.BoundaryAttack(steps=o["steps"])),
    "hop_skip_jump": (
        ("l2", "linf"),
        lambda a, n, o: a.HopSkipJumpAttack(steps=rounds(o["steps"]), constraint=n.lower()),
    ),
}
"""Attack -> (norms, (foolbox.attacks, the norm's title, options) -> attack)."""


def _foolbox(model: Verdict, name: str, norm: str, options: dict[str, Any], batch: int) -> Attack:
    del batch
    library = importlib.import_module("foolbox")
    made = FOOLBOX[name][1](library.attacks, TITLES[norm], options)
    wrapped = library.PyTorchModel(model, bounds=(0, 1))
    minimal = ATTACKS[name].bound == "minimal"

    def run(images: torch.Tensor, labels: torch.Tensor, eps: float) -> torch.Tensor:
        # its own search for a start gives up the whole batch for one image without
        begin = {"starting_points": starts.found(model, images, labels)} if name in starts.STARTED else {}
        return made(wrapped, images, labels, epsilons=None if minimal else eps, **begin)[1]

    return run


TORCHATTACKS: dict[str, tuple[tuple[str, ...], Any]] = {
    "fgsm": (("linf",), lambda t, m, n, o, e: t.FGSM(m, eps=e)),
    "bim": (("linf",), lambda t, m, n, o, e: t.BIM(m, eps=e, alpha=o["step"] * e, steps=o["steps"])),
    "pgd": (
        ("linf", "l2"),
        lambda t, m, n, o, e: (t.PGD if n == "Linf" else t.PGDL2)(m, eps=e, alpha=o["step"] * e, steps=o["steps"]),
    ),
    "apgd_ce": (("linf", "l2"), lambda t, m, n, o, e: t.APGD(m, norm=n, eps=e, steps=o["steps"], loss="ce")),
    "mi_fgsm": (
        ("linf",),
        lambda t, m, n, o, e: t.MIFGSM(m, eps=e, alpha=e / o["steps"], steps=o["steps"], decay=o["decay"]),
    ),
    "ni_fgsm": (
        ("linf",),
        lambda t, m, n, o, e: t.NIFGSM(m, eps=e, alpha=e / o["steps"], steps=o["steps"], decay=o["decay"]),
    ),
    "di_fgsm": (
        ("linf",),
        lambda t, m, n, o, e: t.DIFGSM(
            m, eps=e, alpha=e / o["steps"], steps=o["steps"], decay=1.0, resize_rate=o["smallest"], diversity_prob=0.5
        ),
    ),
    "ti_fgsm": (
        ("linf",),
        lambda t, m, n, o, e: t.TIFGSM(
            m, eps=e, alpha=e / o["steps"], steps=o["steps"], decay=1.0, len_kernel=o["size"], diversity_prob=0.0
        ),
    ),
    "si_fgsm": (
        ("linf",),
        lambda t, m, n, o, e: t.SINIFGSM(m, eps=e, alpha=e / o["steps"], steps=o["steps"], decay=1.0, m=o["copies"]),
    ),
    "vmi_fgsm": (
        ("linf",),
        lambda t, m, n, o, e: t.VMIFGSM(
            m, eps=e, alpha=e / o["steps"], steps=o["steps"], decay=1.0, N=o["count"], beta=o["reach"]
        ),
    ),
    # has no search of its own: the library's constant
    "cw": (("l2",), lambda t, m, n, o, e: t.CW(m, c=1, kappa=0, steps=o["inner"], lr=o["rate"])),
    "deepfool": (("l2",), lambda t, m, n, o, e: t.DeepFool(m, steps=o["steps"], overshoot=o["overshoot"])),
    "fab": (
        ("linf", "l2", "l1"),
        lambda t, m, n, o, e: t.FAB(m, norm=n, eps=FAR, steps=o["steps"], n_restarts=1, n_classes=2),
    ),
    "square": (
        ("linf", "l2"),
        lambda t, m, n, o, e: t.Square(m, norm=n, eps=e, n_queries=o["steps"], p_init=o["share"]),
    ),
}
"""Attack -> (norms, (torchattacks, model, the norm's title, options, eps) -> attack)."""


def _torchattacks(model: Verdict, name: str, norm: str, options: dict[str, Any], batch: int) -> Attack:
    del batch
    library = importlib.import_module("torchattacks")
    build = TORCHATTACKS[name][1]
    return lambda images, labels, eps: build(library, model, TITLES[norm], options, eps)(images, labels)


ART: dict[str, tuple[tuple[str, ...], Any]] = {
    "fgsm": (("linf", "l2"), lambda a, c, n, o, e, b: a.FastGradientMethod(c, norm=n, eps=e, eps_step=e, batch_size=b)),
    "bim": (
        ("linf",),
        lambda a, c, n, o, e, b: a.BasicIterativeMethod(
            c, eps=e, eps_step=o["step"] * e, max_iter=o["steps"], batch_size=b, verbose=False
        ),
    ),
    "pgd": (
        ("linf", "l2", "l1"),
        lambda a, c, n, o, e, b: a.ProjectedGradientDescentPyTorch(
            c, norm=n, eps=e, eps_step=o["step"] * e, max_iter=o["steps"], num_random_init=1, batch_size=b,
            verbose=False,
        ),
    ),
    "mi_fgsm": (
        ("linf",),
        lambda a, c, n, o, e, b: a.MomentumIterativeMethod(
            c, norm=n, eps=e, eps_step=e / o["steps"], decay=o["decay"], max_iter=o["steps"], batch_size=b,
            verbose=False,
        ),
    ),
    "apgd_ce": (
        ("linf", "l2", "l1"),
        lambda a, c, n, o, e, b: a.AutoProjectedGradientDescent(
            c, norm=n, eps=e, eps_step=2 * e, max_iter=o["steps"], nb_random_init=1, batch_size=b,
            loss_type="cross_entropy", verbose=False,
        ),
    ),
    "cw": (
        ("l2",),
        lambda a, c, n, o, e, b: a.CarliniL2Method(
            c, learning_rate=o["rate"], binary_search_steps=o["searches"], max_iter=o["inner"],
            initial_const=o["initial"], batch_size=b, verbose=False,
        ),
    ),
    "deepfool": (
        ("l2",),
        lambda a, c, n, o, e, b: a.DeepFool(
            c, max_iter=o["steps"], epsilon=o["overshoot"], nb_grads=2, batch_size=b, verbose=False
        ),
    ),
    "square": (
        ("linf", "l2"),
        lambda a, c, n, o, e, b: a.SquareAttack(
            c, norm=n, max_iter=o["steps"], eps=e, p_init=o["share"], nb_restarts=1, batch_size=b, verbose=False
        ),
    ),
    "boundary": (
        ("l2",),
        lambda a, c, n, o, e, b: a.BoundaryAttack(
            c, targeted=False, max_iter=max(1, o["steps"] // 50), batch_size=b, verbose=False
        ),
    ),
    "hop_skip_jump": (
        ("l2", "linf"),
        lambda a, c, n, o, e, b: a.HopSkipJump(
            c, norm=n, max_iter=rounds(o["steps"]), batch_size=b, verbose=False
        ),
    ),
}  # fmt: skip
"""Attack -> (norms, (art.attacks.evasion, classifier, norm, options, eps, batch) -> attack). The boundary attack asks
25 + 20 and more questions an iteration."""


def _art(model: Verdict, name: str, norm: str, options: dict[str, Any], batch: int) -> Attack:
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")
    build, order = ART[name][1], {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    classifier = None

    def run(images: torch.Tensor, labels: torch.Tensor, eps: float) -> torch.Tensor:
        nonlocal classifier
        if classifier is None:
            classifier = estimators.PyTorchClassifier(
                model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 2, clip_values=(0.0, 1.0), device_type="cpu"
            )
        made = build(evasion, classifier, order, options, eps, batch)
        begin = {"x_adv_init": starts.found(model, images, labels).numpy()} if name in starts.STARTED else {}
        return torch.tensor(made.generate(images.numpy(), labels.numpy(), **begin))

    return run


LIBRARIES: dict[str, tuple[dict[str, tuple[tuple[str, ...], Any]], Callable[..., Attack]]] = {
    "foolbox": (FOOLBOX, _foolbox),
    "torchattacks": (TORCHATTACKS, _torchattacks),
    "art": (ART, _art),
}
